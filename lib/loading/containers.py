"""Containers of arrays and values, to bytes and back: tenbin, msgpack, npy, npz, CBOR.

Whatever the bytes say, nothing is run, and memory is bounded by their size (of an npz, by
MAX_UNPACKED).
"""

from __future__ import annotations

import importlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reelmill.errors import MissingDependencyError

Array: TypeAlias = NDArray[Any]

MAX_UNPACKED: Final = 1 << 30
"""Bytes that a packed field may hold: a few packed bytes can claim any number."""

_MAX_MEMBERS: Final = 10_000
_PACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAGIC: Final = b"~TenBin~"
_HEAD: Final = struct.Struct("<8sq")
_ALIGN: Final = 64
_MAX_RANK: Final = 9
"""The format's own limit."""

_SHORT: Final = {
    "float16": "f2",
    "float32": "f4",
    "float64": "f8",
    "int8": "i1",
    "int16": "i2",
    "int32": "i4",
    "int64": "i8",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
}
_CODES: Final = frozenset(_SHORT.values())


def encode_tenbin(arrays: Sequence[Array], infos: Sequence[str] | None = None) -> bytes:
    """Arrays in the format of ``webdataset.tenbin``, which its readers open: ``ten``, ``tb``.

    Args:
        infos: a word of at most eight ASCII characters for each array.

    Raises:
        ValueError: an array has another type of element than whole numbers and floats of 8 to 64
            bits, or more than nine dimensions; an info is too long. uint32 too: webdataset has a
            slip in its table, and can neither write nor read it.
    """
    words = [""] * len(arrays) if infos is None else list(infos)
    if len(words) != len(arrays):
        raise ValueError(f"{len(words)} infos for {len(arrays)} arrays")
    out: list[bytes] = []
    for array, word in zip(arrays, words, strict=True):
        code = _SHORT.get(array.dtype.name)
        if code is None or code == "u4":
            raise ValueError(f"tenbin does not hold {array.dtype}; convert to int64 or float32")
        if array.ndim > _MAX_RANK:
            raise ValueError(f"tenbin holds at most {_MAX_RANK} dimensions, not {array.ndim}")
        encoded = word.encode("ascii")
        if len(encoded) > 8:
            raise ValueError(f"the info {word!r} has more than eight characters")
        numbers = np.array([array.ndim, *array.shape], "<i8").tobytes()
        out += _chunk(code.encode().ljust(8, b"\0") + encoded.ljust(8, b"\0") + numbers)
        out += _chunk(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return b"".join(out)


def _chunk(body: bytes) -> list[bytes]:
    return [_HEAD.pack(_MAGIC, len(body)), body, bytes(-len(body) % _ALIGN)]


def decode_tenbin(data: bytes) -> list[Array]:
    """The arrays of a tenbin container.

    Raises:
        ValueError: it is damaged.
    """
    chunks = _chunks(memoryview(data))
    if len(chunks) % 2:
        raise ValueError("tenbin: the last array has no data")
    return [_array(*pair) for pair in zip(chunks[::2], chunks[1::2], strict=True)]


def _chunks(data: memoryview) -> list[memoryview]:
    found = []
    place = 0
    while place < len(data):
        if len(data) - place < _HEAD.size:
            raise ValueError("tenbin: it ends in a chunk's head")
        magic, size = _HEAD.unpack_from(data, place)
        if magic != _MAGIC:
            raise ValueError("tenbin: a chunk does not begin with its mark")
        place += _HEAD.size
        if not 0 <= size <= len(data) - place:
            raise ValueError(f"tenbin: a chunk says that it has {size} bytes")
        found.append(data[place : place + size])
        place += size + -size % _ALIGN
    return found


def _array(head: memoryview, body: memoryview) -> Array:
    if len(head) < 24 or len(head) % 8:
        raise ValueError("tenbin: an array's header is no header")
    code = bytes(head[:8]).rstrip(b"\0").decode("ascii", "replace")
    if code not in _CODES:
        raise ValueError(f"tenbin: there is no type {code!r}")
    rank, *shape = (int(n) for n in np.frombuffer(head, "<i8", offset=16))
    if not 0 <= rank <= _MAX_RANK or len(shape) < rank or min(shape, default=0) < 0:
        raise ValueError("tenbin: an array's header is no header")
    kind = np.dtype(f"<{code}")
    if math.prod(shape[:rank]) * kind.itemsize != len(body):
        raise ValueError(f"tenbin: {len(body)} bytes do not hold {tuple(shape[:rank])} of {kind}")
    return np.frombuffer(body, kind).reshape(shape[:rank]).copy()


def encode_msgpack(value: object) -> bytes:
    """A value of dicts, lists, texts, bytes, numbers and None as msgpack: ``mp``, ``msg``.

    Raises:
        TypeError, ValueError: it holds something else.
    """
    packed: bytes = _module("msgpack").packb(value, use_bin_type=True)
    return packed


def decode_msgpack(data: bytes) -> Any:
    """What ``encode_msgpack`` was given; tuples come back as lists.

    Raises:
        ValueError: it is damaged.
    """
    msgpack = _module("msgpack")
    try:
        return msgpack.unpackb(data)
    except (msgpack.UnpackException, ValueError) as error:
        raise ValueError(f"damaged msgpack: {error or type(error).__name__}") from error


def decode_cbor(data: bytes) -> Any:
    """The value of CBOR (RFC 8949), by the package ``cbor2``.

    Raises:
        ValueError: it is damaged.
        MissingDependencyError: ``cbor2`` is not there.
    """
    return _module("cbor2").loads(data)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingDependencyError(f"this needs one more package: pip install {name}") from None


def decode_npy(data: bytes) -> Array:
    """The array of a .npy; never unpickles.

    Raises:
        ValueError: it is damaged, or holds Python objects.
    """
    file = io.BytesIO(data)
    shape, fortran, kind = _npy_header(file)
    if kind.hasobject:
        raise ValueError("it holds Python objects, which would have to be unpickled")
    # Of elements without size, no bytes at all would hold any number.
    if not kind.itemsize:
        raise ValueError("its elements have no size")
    # NumPy would take memory for whatever the header says, before it looks for the data.
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(data) - file.tell():
        raise ValueError(f"{len(data) - file.tell()} bytes do not hold {shape} of {kind}")
    array: Array = np.ndarray(shape, kind, data, file.tell(), order="F" if fortran else "C")
    return array.copy(order="K")


def _npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    try:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    # NumPy takes it for a literal of Python's, and raises whatever parsing one does.
    except Exception as error:
        raise ValueError(f"damaged .npy: {error}") from error
    raise ValueError(f"a .npy of version {version[0]}.{version[1]}, not 1.0 or 2.0")


def decode_npz(data: bytes) -> dict[str, Array]:
    """The arrays of a .npz by name; never unpickles.

    Raises:
        ValueError: it is damaged, holds Python objects, or more than MAX_UNPACKED bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS or sum(m.file_size for m in members) > MAX_UNPACKED:
                raise ValueError(f"more than {MAX_UNPACKED} bytes when unpacked")
            # Of other ways to pack, zipfile unpacks all before it looks at the size.
            if any(m.compress_type not in _PACKED for m in members):
                raise ValueError("it is packed as NumPy packs none")
            return {m.filename.removesuffix(".npy"): decode_npy(archive.read(m)) for m in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"damaged .npz: {error}") from error


def unpack_gzip(data: bytes) -> bytes:
    """What gzip packed, of one member or several.

    Raises:
        ValueError: it is damaged, or holds more than MAX_UNPACKED bytes.
    """
    parts: list[bytes] = []
    left = MAX_UNPACKED
    while data:
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            parts.append(inflater.decompress(data, left + 1))
        except zlib.error as error:
            raise ValueError(f"damaged gzip: {error}") from error
        left -= len(parts[-1])
        if left < 0:
            raise ValueError(f"more than {MAX_UNPACKED} bytes when unpacked")
        if not inflater.eof:
            raise ValueError("damaged gzip: it ends too early")
        # Zero bytes may follow as padding.
        data = inflater.unused_data.lstrip(b"\0")
    return b"".join(parts)
