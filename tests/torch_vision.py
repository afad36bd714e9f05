"""torchvision beside a build of torch that its wheel was not made for.

PyPI's wheels of torchvision for Linux hold operators for CUDA, which torch's CPU build cannot load;
then torchvision does not even import, since it says how gradients go through operators that are not
there. Transforms, networks and flow are Python and need none of them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_FORWARD = ("deform_conv2d", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool")
_OPERATORS = ("nms", "qnms", "qroi_align", *_FORWARD, *(f"_{name}_backward" for name in _FORWARD))


_declared: list[object] = []
"""Keeps alive what was declared: operators go with the object that declares them."""


class Operators(MetaPathFinder):
    """Declares torchvision's operators when it is first imported, where its own cannot be loaded.

    Calling one of them still fails, as torchvision has it where they are missing.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            if spec and spec.origin and importlib.util.find_spec("torch"):
                _declare(Path(spec.origin).parent)
        return None


def _declare(folder: Path) -> None:
    import torch

    try:
        for built in folder.glob("_C.*"):
            torch.ops.load_library(built)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor any) -> Tensor")
        _declared.append(library)


def allow_any_build() -> None:
    """Let torchvision be imported in this process, and in those it forks, whatever its build."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, Operators())
