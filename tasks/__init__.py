"""Stages: one file each, listed here by the word that a recipe uses for them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reelmill.tasks.contract import Stage

BUILT_IN = {
    "download": "reelmill.tasks.download:Download",
    "adopt": "reelmill.tasks.adopt:Adopt",
    "scores": "reelmill.tasks.scores:ScoreFrames",
    "scenes": "reelmill.tasks.scenes:Scenes",
    "split": "reelmill.tasks.split:Split",
    "dedup": "reelmill.tasks.dedup:Dedup",
    "probe": "reelmill.tasks.probe:Probe",
    "motion": "reelmill.tasks.motion:Motion",
    "convert": "reelmill.tasks.convert:Convert",
    "shuffle": "reelmill.tasks.shuffle:Shuffle",
    "frames": "reelmill.tasks.frames:Frames",
    "flow": "reelmill.tasks.flow:Flow",
    "map": "reelmill.tasks.map:Map",
    "filter": "reelmill.tasks.filter:Filter",
    "join": "reelmill.tasks.join:Join",
    "concat": "reelmill.tasks.concat:Concat",
    "sample": "reelmill.tasks.sample:PickSamples",
    "sequences": "reelmill.tasks.sequences:Sequences",
    "windows": "reelmill.tasks.windows:Windows",
}
"""``module:class`` of each stage; a module is imported when its stage is first used."""

CHECK = "check"
INTERNAL = {CHECK: "reelmill.tasks.check:Check"}
"""Stages that workers know and recipes do not."""

ENTRY_POINTS = "reelmill.stages"
"""The entry point group by which an installed package adds stages of its own."""


@functools.cache
def _addresses() -> dict[str, str]:
    plugins = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**plugins, **BUILT_IN}


@functools.cache
def get_stage(name: str) -> Stage[Any]:
    """The stage of that name.

    Raises:
        KeyError: there is none.
    """
    module, _, attribute = {**_addresses(), **INTERNAL}[name].partition(":")
    found: type[Stage[Any]] = getattr(importlib.import_module(module), attribute)
    return found()


class Stages(Mapping[str, "Stage[Any]"]):
    """All stages by name, each imported when it is asked for."""

    def __getitem__(self, name: str) -> Stage[Any]:
        if name not in self:
            raise KeyError(name)
        return get_stage(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(_addresses()))

    def __len__(self) -> int:
        return len(_addresses())

    def __contains__(self, name: object) -> bool:
        return name in _addresses()
