"""What datasets are to torch's loaders; importing it needs torch."""

from __future__ import annotations

from reelmill.errors import MissingDependencyError

try:
    from torch.utils.data import Dataset, IterableDataset, get_worker_info
except ImportError as error:
    raise MissingDependencyError(
        "loading samples for training needs torch: pip install 'reelmill[torch]'"
    ) from error

__all__ = ["Dataset", "IterableDataset", "get_worker_info"]
