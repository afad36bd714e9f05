"""Which members of a sequence are a frame together, and what its fields are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from reelmill.sequences.members import Member

FRAME: Final = "{frame}"
"""Stands for a frame's number in a pattern."""

MAX_FIELDS: Final = 1000
"""Fields of one frame, at most."""

MAX_NUMBER: Final = 2**63 - 1
"""The largest number of a frame: what an index holds."""

_DIGITS: Final = re.compile(r"[0-9]+")
_UNFIT: Final = re.compile(r"[^a-z0-9_.-]|(?<![^.])\.|\.$")


@dataclass(slots=True)
class Frame:
    """Members with one number, by field. ``problem`` says why they are no sample, if so."""

    number: int
    members: dict[str, Member] = field(default_factory=dict)
    problem: tuple[str, str] | None = None

    @property
    def size(self) -> int:
        """Bytes of all members, unpacked."""
        return sum(member.size for member in self.members.values())

    def refuse(self, reason: str, message: str) -> None:
        """Let it be no sample, unless it is none already."""
        self.problem = self.problem or (reason, message)


class Grouped(NamedTuple):
    """The frames of a sequence by number, what belongs to all of them, and the pictures that
    nobody can tell the frame of."""

    frames: list[Frame]
    shared: dict[str, Member]
    unnumbered: list[Member]


class Rule:
    """How members become frames.

    Args:
        fields: patterns of members by field, such as ``{"depth.png": "depth/{frame}.png"}``, below
            the sequence's folder. Without any, WebDataset's rule holds: a frame is what names have
            up to their first dot, where the last digits are its number, and a field is the rest,
            behind the folders in between.
        shared: members of the whole sequence by field.
    """

    def __init__(self, fields: Mapping[str, str], shared: Mapping[str, str]) -> None:
        self._patterns = {name: _compiled(pattern) for name, pattern in fields.items()}
        self._shared = {path: name for name, path in shared.items()}

    def group(self, members: Iterable[Member], folder: str) -> Grouped:
        """The frames of the members below a folder, which their names begin with."""
        frames: dict[int, Frame] = {}
        shared: dict[str, Member] = {}
        unnumbered: list[Member] = []
        start = len(folder) + 1 if folder else 0
        for member in members:
            path = member.name[start:]
            if path in self._shared:
                shared[self._shared[path]] = member
                continue
            places = self._places(path)
            if not places and member.is_picture and not self._patterns:
                unnumbered.append(member)
            for number, name in places:
                _enter(frames.setdefault(number, Frame(number)), name, member)
        return Grouped([frames[number] for number in sorted(frames)], shared, unnumbered)

    def _places(self, path: str) -> list[tuple[int, str]]:
        """The frames, and the fields there, that a member is."""
        if not self._patterns:
            return _by_name(path)
        found = ((name, one.fullmatch(path)) for name, one in self._patterns.items())
        places = [(int(match[1]), name) for name, match in found if match]
        return [place for place in places if place[0] <= MAX_NUMBER]


def _compiled(pattern: str) -> re.Pattern[str]:
    head, _, tail = pattern.partition(FRAME)
    return re.compile(f"{re.escape(head)}([0-9]{{1,19}}){re.escape(tail)}")


def _by_name(path: str) -> list[tuple[int, str]]:
    folder, _, name = path.rpartition("/")
    base, _, rest = name.partition(".")
    digits = _DIGITS.findall(base)
    if not digits or not rest or base.startswith("_"):
        return []
    if len(digits[-1]) > 19 or int(digits[-1]) > MAX_NUMBER:
        return []
    field_name = ".".join([*folder.split("/"), rest]).strip(".").lower()
    return [(int(digits[-1]), _UNFIT.sub("_", field_name))]


def _enter(frame: Frame, name: str, member: Member) -> None:
    other = frame.members.setdefault(name, member)
    if other is not member:
        frame.refuse(
            "two_members",
            f"{other.name[:200]!r} and {member.name[:200]!r} would both be its {name}",
        )
    elif len(frame.members) > MAX_FIELDS:
        del frame.members[name]
        frame.refuse("too_many_members", f"more than {MAX_FIELDS} fields")
    elif member.problem is not None:
        frame.refuse(*member.problem)
