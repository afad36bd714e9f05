"""What a state calls the functions of a pipeline: the same in each run of a program, and another
where they are others, as far as can be told."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Set
from functools import partial
from typing import Any, Final

from reelmill.digest import SHORT, sha256
from reelmill.errors import LoadError

_LONGEST: Final = 160
"""Characters; what is longer is told by its beginning and a digest."""

_MOST: Final = 1000
_DEEPEST: Final = 6
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


def described(thing: Any) -> str:
    """A function by its name, with the arguments that are bound to it or values that it closes
    over; a lambda also by its code, since all are called alike; anything else by its type and what
    ``repr`` says of it. Where that says nothing it is told by its attributes if it can be called;
    else nobody knows which of them matter, and which change as it works. A container longer than
    1,000 counts by its length."""
    text = _told(thing, 0)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… {sha256(text.encode())[:SHORT]}"


def agree(state: Mapping[str, Any], terms: Mapping[str, Any]) -> None:
    """Raise LoadError where a state is of other terms than these."""
    for name, mine in terms.items():
        if state.get(name) != mine:
            raise LoadError(
                f"the state is of {name} {state.get(name)}, and cannot go on with "
                f"{name} {mine}: load it into what it was taken from"
            )


def _told(thing: Any, depth: int) -> str:
    if depth > _DEEPEST:
        return _name(type(thing))
    deeper = depth + 1
    if isinstance(thing, partial):
        bound = [_told(one, deeper) for one in thing.args] + _named(thing.keywords, deeper)
        return f"{_told(thing.func, deeper)}({', '.join(bound)})"
    if isinstance(thing, types.MethodType):
        return f"{_told(thing.__self__, deeper)}.{thing.__name__}"
    if isinstance(thing, types.FunctionType):
        return _function(thing, deeper)
    if hasattr(thing, "__qualname__"):
        return _name(thing)
    if isinstance(thing, Mapping | Set | list | tuple) and len(thing) > _MOST:
        return f"{len(thing)} in {_name(type(thing))}"
    if isinstance(thing, Mapping):
        pairs = (f"{_told(key, deeper)}: {_told(one, deeper)}" for key, one in thing.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(thing, Set):
        return f"{{{', '.join(sorted(_told(one, deeper) for one in thing))}}}"
    if isinstance(thing, list | tuple):
        return f"[{', '.join(_told(one, deeper) for one in thing)}]"
    return _object(thing, deeper)


def _function(function: types.FunctionType, depth: int) -> str:
    """A function that is made anew each time differs by what it was made with, too."""
    if "<" not in function.__qualname__:
        return _name(function)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    values = {name: cell.cell_contents for name, cell in cells if _is_full(cell)}
    told = [f"={_told(one, depth)}" for one in function.__defaults__ or ()]
    told += _named({**values, **(function.__kwdefaults__ or {})}, depth)
    if function.__name__ == "<lambda>":
        told.append(sha256(_code(function.__code__).encode())[:SHORT])
    return f"{_name(function)}({', '.join(told)})" if told else _name(function)


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - whether it raises is what is asked
    except ValueError:
        return False
    return True


def _code(code: types.CodeType) -> str:
    """What a function does, wherever it is written."""
    constants = [
        _code(one) if isinstance(one, types.CodeType) else _told(one, 0) for one in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _object(thing: Any, depth: int) -> str:
    kind = type(thing)
    if dataclasses.is_dataclass(thing):
        fields = {one.name: getattr(thing, one.name) for one in dataclasses.fields(thing)}
        return f"{_name(kind)}({', '.join(_named(fields, depth))})"
    if any("__repr__" in vars(one) for one in kind.__mro__[:-1]):
        try:
            text = _ADDRESS.sub("", repr(thing))
        except Exception:
            return _name(kind)
        return text if isinstance(thing, _PLAIN) else f"{_name(kind)} {text}"
    attributes = getattr(thing, "__dict__", {}) if callable(thing) else {}
    return f"{_name(kind)}({', '.join(_named(attributes, depth))})" if attributes else _name(kind)


_PLAIN: Final = (str, bytes, bool, int, float, type(None), slice, range)


def _named(values: Mapping[str, Any], depth: int) -> list[str]:
    return [f"{name}={_told(one, depth)}" for name, one in values.items()]


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', None) or 'builtins'}.{thing.__qualname__}"
