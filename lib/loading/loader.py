"""Batches of a dataset from worker processes, epoch after epoch, resumable in the middle."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from reelmill.errors import LoadError, MissingDependencyError
from reelmill.loading.batch import FrameBatch
from reelmill.loading.plan import Reader
from reelmill.loading.told import agree

if TYPE_CHECKING:
    from reelmill.loading.dataset import Dataset

_STATE: Final = 1

_FINISHED: Final = "_iterator_finished"
"""What torchdata calls it that a state is of the end of an iteration."""


class Loader:
    """A dataset's items from torchdata's ``StatefulDataLoader``; made by `Dataset.loader`.

    Each iteration is of the next epoch, from 0, whatever the workers did before. ``state_dict``
    tells where it stands, and in which epoch.

    Attributes:
        dataset: what the workers iterate.
        epoch: that of the next iteration.
    """

    def __init__(self, dataset: Dataset, num_workers: int = 0, **options: Any) -> None:
        try:
            from torchdata.stateful_dataloader import StatefulDataLoader
        except ImportError as error:
            raise MissingDependencyError(
                "a loader that can be resumed needs torchdata: pip install 'reelmill[torch]'"
            ) from error
        self.dataset = dataset.for_workers(num_workers)
        self.epoch = 0
        with warnings.catch_warnings():
            # Of a call of torchdata's own.
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")
            self._loader = StatefulDataLoader(
                self.dataset, batch_size=None, num_workers=num_workers, **options
            )
        self._is_new = True
        self._has_begun = False

    def __iter__(self) -> Iterator[Any]:
        if not self._has_begun:
            self._begin()
        self._has_begun = False
        batches: Iterator[Any] = iter(self._loader)
        return batches

    def _begin(self) -> None:
        self._is_new = False
        self.dataset.set_epoch(self.epoch)
        self.epoch += 1

    def __len__(self) -> int:
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration be of this epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the latest iteration stands; the first is begun if there was none."""
        if self._is_new and not self._has_begun:
            self._begin()
            self._has_begun = True
        return {
            "format": _STATE,
            "workers": self._loader.num_workers,
            **self._terms(),
            "epoch": self.epoch,
            "loader": self._loader.state_dict(),
        }

    def _terms(self) -> dict[str, Any]:
        """What a state must agree in, here as in each worker, where it is found out late."""
        rank, world = self.dataset.nodes
        return {**self.dataset.terms(Reader(rank, world)), "reader": [rank, world]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on where another loader of the same dataset stood.

        Raises:
            LoadError: it is no state of a loader, or of one with another number of workers or of
                something else.
        """
        if state.get("format") != _STATE or "loader" not in state:
            raise LoadError("this is no state of a loader of this version of Reelmill")
        if state["workers"] != self._loader.num_workers:
            raise LoadError(
                f"the state is of a loader with {state['workers']} workers, and cannot go on with "
                f"{self._loader.num_workers}: say num_workers={state['workers']}"
            )
        agree(state, self._terms())
        self.epoch = state["epoch"]
        self._is_new = False
        # Workers that find their epoch at its end begin the next one.
        self._has_begun = not state["loader"][_FINISHED]
        self.dataset.set_epoch(self.epoch)
        self._loader.load_state_dict(state["loader"])


def collate(samples: list[Any]) -> Any:
    """A batch as webdataset makes it, of tensors: a dict or tuple of what the samples have, where
    numbers and arrays of one shape become a tensor, frames with their times one `FrameBatch`, flow
    one `FlowField`, and all else a list. The keys of the samples stay with it as the list
    ``__key__``.

    Raises:
        ValueError: the samples have not the same fields, or arrays of different shapes.
    """
    first = samples[0]
    if isinstance(first, Mapping):
        names = list(first)
        if odd := next((one for one in samples if one.keys() != first.keys()), None):
            raise ValueError(f"samples of fields {sorted(first)} and {sorted(odd)}")
        return {name: _together([one[name] for one in samples]) for name in names}
    if isinstance(first, tuple) and not hasattr(first, "_fields"):
        return tuple(_together(list(values)) for values in zip(*samples, strict=True))
    return _together(samples)


def _together(values: list[Any]) -> Any:
    import numpy as np
    import torch

    from reelmill.loading.pictures import FlowField

    first = values[0]
    if isinstance(first, FrameBatch):
        parts = ("data", "pts_seconds", "duration_seconds")
        return FrameBatch(*(_together([getattr(one, part) for one in values]) for part in parts))
    if isinstance(first, FlowField):
        return FlowField(*(_together(list(parts)) for parts in zip(*values, strict=True)))
    if isinstance(first, bool | int | float | np.number):
        return torch.tensor(values)
    if isinstance(first, np.ndarray | torch.Tensor):
        shapes = {tuple(one.shape) for one in values}
        if len(shapes) > 1:
            raise ValueError(f"arrays of shapes {', '.join(map(str, sorted(shapes)))}")
        tensors = [torch.as_tensor(one) for one in values]
        return torch.stack(tensors)
    return values
