"""Weights of networks: files that PyTorch or safetensors wrote, known by their digests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reelmill.errors import StageError
from reelmill.media.gpu.modules import first_lines, torch_module

MAX_WEIGHTS_BYTES = 1 << 28


@dataclass(frozen=True)
class Kind:
    """Weights of what, and whose state dictionary for PyTorch is meant: ``the authors'``."""

    network: str
    whose: str

    def digest(self, path: Path) -> str:
        """``sha256:<hex>`` of a file of weights: another file gives other results.

        Raises :class:`~reelmill.errors.StageError` where it cannot be read.
        """
        try:
            about = path.stat()
            return _digest(path, about.st_ino, about.st_size, about.st_mtime_ns)
        except OSError as error:
            raise StageError(
                f"the weights of {self.network} cannot be read at {path}: {error.strerror}; "
                "give their path as weights"
            ) from error

    def read(self, path: Path) -> dict[str, Any]:
        """The tensors of a file, by name. It is read as numbers alone, so that a stranger's file
        runs no code.

        Raises :class:`~reelmill.errors.StageError` where it is no such file, or
        :class:`~reelmill.errors.MissingDependencyError` where torch is missing.
        """
        torch = torch_module()
        try:
            if path.stat().st_size > MAX_WEIGHTS_BYTES:
                raise ValueError(f"larger than {MAX_WEIGHTS_BYTES} bytes")
            if path.suffix == ".safetensors":
                return _read_safetensors(torch, path.read_bytes())
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise StageError(
                f"the weights of {self.network} at {path} cannot be read ({first_lines(error)}); "
                f"use {self.whose} state dictionary for PyTorch"
            ) from error
        if not isinstance(found, dict) or not all(map(torch.is_tensor, found.values())):
            raise StageError(f"{path} holds no state dictionary; use {self.whose} for PyTorch")
        return found

    def fill(self, module: Any, path: Path) -> None:
        """Give a ``torch.nn.Module`` the weights of a file; raises as :meth:`read` does, also
        where they are another network's."""
        state = self.read(path)
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise StageError(
                f"{path} does not hold the weights of {self.network} ({first_lines(error)}); "
                f"use {self.whose} state dictionary for PyTorch"
            ) from error


@lru_cache(maxsize=8)
def _digest(path: Path, *_: int) -> str:
    """The digest of a file, taken once for as long as it stays as it is."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _read_safetensors(torch: Any, data: bytes) -> dict[str, Any]:
    """The float32 and int64 tensors of a safetensors file: a JSON header of names, kinds, shapes
    and places, then the numbers, little-endian."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
    kinds: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
    return {
        name: torch.from_numpy(
            np.frombuffer(body[slice(*one["data_offsets"])], kinds[one["dtype"]])
            .reshape(one["shape"])
            .copy()
        )
        for name, one in header.items()
        if name != "__metadata__"
    }
