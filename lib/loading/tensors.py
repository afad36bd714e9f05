"""torch, imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any

from reelmill.errors import MissingDependencyError, StageError


def torch_module() -> Any:
    """torch, as it is set up: how many threads it has is the training program's affair.

    Raises: MissingDependencyError where it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"torch is needed and not installed (no module {error.name}): "
            "pip install 'reelmill[torch]'"
        ) from error


def need_card(device: str) -> None:
    """Raise StageError where torch does not see the card of ``device``, such as ``cuda:0``."""
    cuda = torch_module().cuda
    seen = cuda.device_count() if cuda.is_available() else 0
    ordinal = int(device.partition(":")[2] or 0)
    if ordinal >= seen:
        raise StageError(
            f"device {device} needs an NVIDIA GPU, and torch {torch_module().__version__} sees "
            f"{seen} on this host; check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch is not a "
            "build for CPUs, or say device='cpu'"
        )
