"""Reelmill: the build system for video datasets.

>>> store = reelmill.open_store("./store")
>>> clips = reelmill.open_version(store, "clips@latest")
>>> for sample in clips.samples(fields=["json"]):
...     print(sample.key, sample.fields["json"])
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reelmill.dataset import Version, open_version
    from reelmill.errors import ReelmillError, Rejected
    from reelmill.functions import function
    from reelmill.loading.dataset import load
    from reelmill.loading.readers import open_video
    from reelmill.recipe import Recipe
    from reelmill.shards.reader import Sample
    from reelmill.store import Store

try:
    __version__ = version("reelmill")
except PackageNotFoundError:
    __version__ = "0+unknown"

_PUBLIC = {
    "Recipe": "reelmill.recipe",
    "ReelmillError": "reelmill.errors",
    "Rejected": "reelmill.errors",
    "Sample": "reelmill.shards.reader",
    "Store": "reelmill.store",
    "Version": "reelmill.dataset",
    "function": "reelmill.functions",
    "load": "reelmill.loading.dataset",
    "open_version": "reelmill.dataset",
    "open_video": "reelmill.loading.readers",
}

__all__ = [
    "Recipe",
    "ReelmillError",
    "Rejected",
    "Sample",
    "Store",
    "Version",
    "__version__",
    "function",
    "load",
    "open_store",
    "open_version",
    "open_video",
]


def open_store(url: str, *, create: bool = False) -> Store:
    """Open the store at ``url``; see :meth:`reelmill.store.Store.open`."""
    from reelmill.store import Store

    return Store.open(url, create=create)


def __getattr__(name: str) -> Any:
    # Imported on first use: a worker that splits video loads nothing that it does not need.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'reelmill' has no attribute '{name}'")
