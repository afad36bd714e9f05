"""A user's own function: what it declares, where its source is, and how a worker gets it.

A function in a file travels as the text of that file, which a worker runs as a module; one in an
installed module is imported, wherever it runs. Nothing is pickled.

>>> @reelmill.function(reads=("mp4",), writes=("txt",), columns={"score": "float64"})
... def caption(sample, *, model="small"):
...     return {"txt": "a cat", "score": 0.7}
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import inspect
import json
import re
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reelmill.digest import plain_json, sha256
from reelmill.errors import ReelmillError, told
from reelmill.shards import index
from reelmill.units import nearest, parse_bytes, parse_number

F = TypeVar("F", bound=Callable[..., Any])

MAX_SOURCE: Final = 1 << 20
"""Bytes of the longest file that a function may come from."""

_MARK: Final = "__reelmill_function__"
_FILE: Final = re.compile(r"(?P<file>[^:\0]+\.py):(?P<name>[A-Za-z_]\w*)")
_MODULE: Final = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
_PLACE: Final = re.compile(r"0x[0-9a-fA-F]+")

_loading = threading.Lock()

Names = tuple[str, ...]


class FunctionError(ReelmillError):
    """A function that cannot be found, loaded or called as it should be."""


class Declared(BaseModel):
    """What a function says of itself.

    Attributes:
        reads: fields that it is given, by names or patterns (``*.image.jpg``); ``None`` for all.
        writes: fields that it may return, likewise; ``None`` for any.
        columns: names and Arrow types of the index columns that it gives.
        version: stands for its source, which then may change without a sample being made anew.
        resources: what a worker must have, as Dask resources.
        memory: bytes that a worker takes.
        packages: distributions whose versions its results depend on.
        batch: how many samples it is called with at once, as a list; ``None`` for one by one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reads: Names | None = None
    writes: Names | None = None
    columns: tuple[tuple[str, str], ...] = ()
    version: str | None = None
    resources: tuple[tuple[str, Decimal], ...] = ()
    memory: int | None = None
    packages: Names = ()
    batch: Annotated[int, Field(ge=1, le=100_000)] | None = None

    def arrow(self) -> pa.Schema:
        """The function's index columns."""
        return pa.schema([pa.field(name, pa.type_for_alias(kind)) for name, kind in self.columns])


def function(
    *,
    reads: Sequence[str] | None = None,
    writes: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    version: str | int | None = None,
    resources: Mapping[str, float] | None = None,
    memory: int | str | None = None,
    packages: Sequence[str] = (),
    batch: int | None = None,
) -> Callable[[F], F]:
    """Declare what a function, or a class whose instances are called, needs and gives.

    The function stays what it is, and can be called as before. See ``Declared`` for what the
    arguments mean; ``memory`` may be text such as ``2 GB``.

    Raises:
        ValueError: an argument cannot be.
    """
    try:
        declared = Declared(
            reads=_names("reads", reads),
            writes=_names("writes", writes),
            columns=tuple((columns or {}).items()),
            version=None if version is None else str(version),
            resources=tuple((n, parse_number(v)) for n, v in sorted((resources or {}).items())),
            memory=None if memory is None else parse_bytes(memory),
            packages=_names("packages", packages) or (),
            batch=batch,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name, kind in declared.columns:
        try:
            pa.type_for_alias(kind)
        except ValueError:
            raise ValueError(f"column {name}: Arrow has no type {kind!r}; try float64") from None
        if name in index.BASE.names:
            raise ValueError(f"column {name}: every index has one of that name; call it otherwise")
        if name in (declared.writes or ()):
            raise ValueError(f"{name} is declared as a field and as a column")

    def mark(marked: F) -> F:
        setattr(marked, _MARK, declared)
        return marked

    return mark


def _names(what: str, names: Sequence[str] | None) -> Names | None:
    if isinstance(names, str):
        raise ValueError(f"{what} is a list of names, such as ({names!r},)")
    return None if names is None else tuple(names)


def declared_of(target: Any) -> Declared:
    """What a function declares; nothing, where it has no decorator."""
    found = vars(target).get(_MARK) if hasattr(target, "__dict__") else None
    return found if isinstance(found, Declared) else Declared()


# Where it is


@dataclass(frozen=True, slots=True)
class Located:
    """A function and where it was found.

    ``address`` is what people call it. ``document`` holds the text of the file that it came from;
    a function without one is imported from its module.
    """

    target: Any
    address: str
    name: str
    document: bytes | None = None


def locate(given: Any, base: Path) -> Located:
    """The function at an address, ``module:function`` or ``./file.py:function``; or a function.

    Args:
        base: the folder that a file's address starts from, and in which the file must be.

    Raises:
        FunctionError: there is none, its module cannot be loaded, or it may not be called.
    """
    if not isinstance(given, str):
        return _of_object(given)
    if found := _FILE.fullmatch(given):
        return _in_file(given, base, found["file"], found["name"])
    if found := _MODULE.fullmatch(given):
        target = imported(given)
        if vars(target).get(_MARK) is None:
            # A recipe's text must not be able to call whatever happens to be installed.
            raise FunctionError(
                f"{given} is not marked as a function of samples; decorate it with "
                "@reelmill.function()"
            )
        return Located(target, given, found["name"])
    raise FunctionError(
        f"{told_of(given)} is no function's address; write module:function or ./file.py:function"
    )


def told_of(given: str) -> str:
    """An address that may be anything, for a message."""
    return repr(given if len(given) <= 80 else f"{given[:79]}…")


def _in_file(address: str, base: Path, file: str, name: str) -> Located:
    base = base.resolve()
    path = (base / file).resolve()
    if not path.is_relative_to(base):
        raise FunctionError(f"{file} is not in the recipe's folder {base}; a function's file is")
    document = _document(path, file)
    return Located(load(document, path.name, name), address, name, document)


def _document(path: Path, shown: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SOURCE + 1)
    except OSError as error:
        raise FunctionError(f"{shown} cannot be read: {error.strerror}") from None
    if len(data) > MAX_SOURCE:
        raise FunctionError(f"{shown} is longer than {MAX_SOURCE} bytes")
    try:
        return plain_json({"python": data.decode("utf-8-sig")})
    except UnicodeDecodeError:
        raise FunctionError(f"{shown} is not UTF-8 text") from None


def _of_object(target: Any) -> Located:
    if not isinstance(target, types.FunctionType | type):
        raise FunctionError(
            f"must be module:function, ./file.py:function, a function or a class, not "
            f"{type(target).__name__}"
        )
    name = target.__qualname__
    if not name.isidentifier():
        raise FunctionError(
            f"{name} is not at the top level of its module, where a worker could find it"
        )
    module = sys.modules.get(target.__module__)
    if target.__module__ != "__main__" and getattr(module, name, None) is target:
        return Located(target, f"{target.__module__}:{name}", name)
    file = _file_of(target)
    if file is None or not Path(file).is_file():
        raise FunctionError(f"the source of {name} is in no file; put it into one")
    path = Path(file)
    return Located(target, f"{path.name}:{name}", name, _document(path, path.name))


def _file_of(target: Any) -> str | None:
    """The file that holds the source of a function, or of a class's methods."""
    found = inspect.unwrap(target) if not isinstance(target, type) else target
    methods = vars(found).values() if isinstance(found, type) else (found,)
    codes = (getattr(method, "__code__", None) for method in methods)
    files = (code.co_filename for code in codes if code is not None)
    # A dataclass's own methods come from no file.
    return next((file for file in files if not file.startswith("<")), None)


def imported(address: str) -> Any:
    """The function ``module:function``, imported.

    Raises:
        FunctionError: it cannot be.
    """
    module, _, name = address.partition(":")
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise FunctionError(f"cannot import {module}: {told(error)}") from error
    return _attribute(loaded, name, module)


def source_digest(address: str) -> str:
    """The sha256 of the file that defines ``module:function``.

    Raises:
        FunctionError: it cannot be imported, or has no source.
    """
    file = _file_of(imported(address))
    try:
        return sha256(Path(file or "").read_bytes())
    except OSError:
        raise FunctionError(
            f"{address} has no source to tell its versions apart by; declare version="
        ) from None


def load(document: bytes, file: str, name: str) -> Any:
    """The function of a name in a document's source, run once in a process as a module.

    Args:
        file: what errors call the file.

    Raises:
        FunctionError: the source cannot be run, or has no such function.
    """
    with _loading:
        return _attribute(_module(document, file), name, file)


class _Text(importlib.abc.ExecutionLoader):
    """Loads a module from the text of its file, which need not be on this machine."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file

    def get_source(self, fullname: str) -> str:
        return self._text

    def get_filename(self, fullname: str) -> str:
        return self._file


@functools.lru_cache(maxsize=64)
def _module(document: bytes, file: str) -> types.ModuleType:
    text = json.loads(document)["python"]
    name = f"reelmill_own_{sha256(document)[:16]}"
    loader = _Text(text, file)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: a dataclass looks for its module there.
    sys.modules[name] = module
    try:
        # This is the recipe's own code: whoever names a function in a file wants that file run.
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise FunctionError(placed(error, file)) from error
    return module


def _attribute(module: types.ModuleType, name: str, shown: str) -> Any:
    target = getattr(module, name, None)
    if not isinstance(target, types.FunctionType | type):
        names = [n for n, v in vars(module).items() if isinstance(v, types.FunctionType | type)]
        near = nearest(name, names)
        hint = f"; did you mean {near}?" if near else ""
        raise FunctionError(f"{shown} has no function {name}{hint}")
    return target


def placed(error: BaseException, file: str) -> str:
    """What an error of a function says, with the line of its file: ``own.py:3: ValueError: …``.

    Addresses in memory, which differ from run to run, are left out.
    """
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file and frame.lineno is not None
    ]
    message = told(error)
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno or 1)
        message = f"{type(error).__name__}: {error.msg}"
    place = f"{Path(file).name}:{lines[-1]}" if lines else Path(file).name
    return f"{place}: {_PLACE.sub('0x…', message)}"


# How it is called


def refuse_arguments(target: Any, address: str, given: Mapping[str, Any]) -> None:
    """Raise ``FunctionError`` if a function cannot be called with these arguments by name."""
    is_class = isinstance(target, type)
    if is_class and not any("__call__" in vars(one) for one in target.__mro__[:-1]):
        raise FunctionError(f"{address} has no method __call__ to be called with a sample")
    try:
        inspect.signature(target).bind(*(() if is_class else (None,)), **given)
    except (TypeError, ValueError) as error:
        raise FunctionError(f"{address}: {error}") from None


class Called:
    """A function with its arguments, set up: a class is instantiated once, here.

    One call at a time, whatever threads there are: a model on a GPU is no place for two.

    Raises:
        FunctionError: the class cannot be instantiated.
    """

    def __init__(self, target: Any, file: str, given: Mapping[str, Any]) -> None:
        self.file = file
        self._lock = threading.Lock()
        if isinstance(target, type):
            try:
                self._call: Callable[..., Any] = target(**given)
            except (Exception, SystemExit) as error:
                raise FunctionError(placed(error, file)) from error
        else:
            self._call = functools.partial(target, **given)

    def __call__(self, given: Any) -> Any:
        """What the function returns; what it yields, as a list."""
        with self._lock:
            found = self._call(given)
            return list(found) if isinstance(found, Iterator) else found


def called(target: Any, given: Mapping[str, Any]) -> Called:
    """A function, or a class, set up to be called with samples."""
    return Called(target, _file_of(target) or target.__module__, given)
