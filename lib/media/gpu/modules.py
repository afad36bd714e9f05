"""The optional packages of the GPU path, imported when they are used."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from reelmill.errors import MissingDependencyError, StageError, told

DALI = "nvidia-dali-cuda130"

_EXTRAS = {"torch": "torch", "torchvision": "raft", DALI: "nvof"}


def torch_module() -> Any:
    """torch. Raises :class:`~reelmill.errors.MissingDependencyError` where it is not installed.

    It computes on one thread of the CPU, as all stages do: the order of its sums, and so their last
    digits, would depend on the number of cores.
    """
    module = _optional("torch", "torch")
    if module.get_num_threads() != 1:
        module.set_num_threads(1)
    return module


def torch_version() -> str:
    """torch's version, without what tells builds for the CPU from those for cards apart; raises as
    :func:`torch_module` does, and imports nothing."""
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError as error:
        raise _missing("torch", "torch") from error


def optical_flow_module() -> Any:
    """torchvision's models of optical flow; raises as :func:`torch_module` does, and
    :class:`~reelmill.errors.StageError` where it was built for another torch."""
    torch_module()
    try:
        return _optional("torchvision.models.optical_flow", "torchvision")
    except (RuntimeError, OSError, ImportError) as error:
        raise StageError(
            f"torchvision does not fit the torch that is installed ({first_lines(error)}); install "
            "both anew, from one index: pip install --force-reinstall torch torchvision"
        ) from error


def torchvision_version() -> str:
    """As :func:`torch_version`, of torchvision."""
    try:
        return version("torchvision").partition("+")[0]
    except PackageNotFoundError as error:
        raise _missing("torchvision", "torchvision") from error


def dali_module() -> Any:
    """NVIDIA's DALI; raises as :func:`torch_module` does."""
    return _optional("nvidia.dali", DALI)


def dali_version() -> str:
    """DALI's version; raises as :func:`torch_module` does, and imports nothing."""
    for package in (DALI, "nvidia-dali-cuda120"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise _missing(DALI, "nvidia.dali")


def nvml_module() -> Any:
    """NVIDIA's management library (``nvidia-ml-py``); raises as :func:`torch_module` does."""
    return _optional("pynvml", "nvidia-ml-py")


def nvc_module() -> Any:
    """PyNvVideoCodec; raises as :func:`torch_module` does.

    Its import opens the driver's own libraries, for encoding even where one only decodes: a
    :class:`~reelmill.errors.StageError` says that the driver lacks them.
    """
    try:
        return _optional("PyNvVideoCodec", "PyNvVideoCodec")
    except MissingDependencyError:
        raise
    except Exception as error:
        raise StageError(
            f"PyNvVideoCodec finds no usable NVIDIA driver on this host ({first_lines(error)}); "
            "install a driver of 570 or newer, and in a container let it in with "
            "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility"
        ) from error


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(package, error.name) from error


def _missing(package: str, module: str | None) -> MissingDependencyError:
    extra = _EXTRAS.get(package, "gpu")
    return MissingDependencyError(
        f"{package} is needed and not installed (no module {module}): "
        f"pip install 'reelmill[{extra}]'"
    )


def first_lines(error: Exception, count: int = 1) -> str:
    """What an error of a foreign library says in its first lines that are not empty, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return told(StageError(" ".join(lines[:count]) or type(error).__name__))
