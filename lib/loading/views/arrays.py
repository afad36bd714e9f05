"""What NumPy's files hold, by their headers alone."""

from __future__ import annotations

import io
import zipfile
from typing import BinaryIO, Final

from numpy.lib import format as npy

from reelmill.errors import Rejected

_LONGEST_HEADER: Final = 10_000
"""Bytes; NumPy's own limit for files that are not trusted."""

Header = tuple[str, int]
"""An array's type, such as ``float16``, and how many dimensions it has."""


def npy_header(data: bytes) -> Header:
    """Of a ``.npy``. Raises: Rejected ``undecodable``."""
    return _header(io.BytesIO(data))


def npz_headers(data: bytes) -> dict[str, Header]:
    """Of each array of a ``.npz``, by its name. Raises: Rejected ``undecodable``."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = {}
            for name in archive.namelist():
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = _header(member)  # type: ignore[arg-type]
            return found
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise Rejected("undecodable", f"damaged .npz: {error}") from error


def _header(file: BinaryIO) -> Header:
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, dtype = read(file, max_header_size=_LONGEST_HEADER)
    except (ValueError, KeyError, EOFError) as error:
        raise Rejected("undecodable", f"damaged .npy: {error}") from error
    return dtype.name, len(shape)
