"""What datasets are to torch's loaders; importing it needs torch."""

from __future__ import annotations

from reelmill.loading.tensors import torch_module

torch_module()  # or the line that installs it

from torch.utils.data import Dataset, IterableDataset, get_worker_info  # noqa: E402

__all__ = ["Dataset", "IterableDataset", "get_worker_info"]
