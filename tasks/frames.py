"""Frames: each clip becomes samples of N frames, as pictures side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from reelmill.errors import Rejected
from reelmill.media.decode import frames, pixel_shape
from reelmill.media.pictures import PictureFormat, encode, fit_of
from reelmill.media.probe import ratio
from reelmill.media.shown import Shown, frames_at, shown
from reelmill.media.size import PictureSide, Sizing
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Output, Reject, Sample, SampleStage, sample_json
from reelmill.tasks.cuts import looked_for, scene_starts, watched
from reelmill.tasks.media_fields import (
    OF_SOURCE,
    VIDEO,
    about_of,
    picture_field,
    start_of,
    texts_of,
    video_of,
)
from reelmill.tasks.selection import MAX_PLACES, Chosen, Places, SelectionParams, choose
from reelmill.tasks.tuples import Window, gathered

if TYPE_CHECKING:
    from av import VideoFrame


class FramesParams(SelectionParams, Sizing[PictureSide], PictureFormat):
    """Which frames belong together, and what becomes of them."""

    def effective(self) -> dict[str, Any]:
        return SelectionParams.effective(self) | PictureFormat.effective(self)


class Frames(SampleStage[FramesParams]):
    """A sample is keyed by its clip's key and its first frame's number: ``000010005_003_000012``.
    At a rate (``fps``), that is the number of its time, from 0.

    Its pictures are ``000000.image.jpg``, ``000001.image.jpg``, …; its ``json`` has the frames'
    numbers and their times, in the clip and in the source video: in seconds, and exactly. With an
    input in the role ``scenes``, what stage ``scenes`` made of the same videos, no sample spans two
    of these.
    """

    name = "frames"
    version = 2
    roles = ("source", "scenes")
    optional = ("scenes",)
    params = FramesParams
    memory = 350_000_000
    reads = (*VIDEO, "json")
    columns = pa.schema(
        [
            pa.field("clip", pa.string()),
            pa.field("frame", pa.int64()),
            pa.field("time", pa.float64()),
            pa.field("source_time", pa.float64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
        ]
    )

    def tools(self, params: FramesParams) -> dict[str, str]:
        tools = {"av": version("av"), params.encoder: version(params.encoder)}
        return tools | params.cut_tools()

    def each(self, job: Job[FramesParams], sample: InputSample) -> Iterator[Output]:
        params = job.params
        clip = Clip(sample.key, video_of(sample.fields), about_of(sample.fields))
        starts = scene_starts(job, clip.key, clip.about) if params.minds_cuts else []

        def picture(number: int, frame: VideoFrame, shape: Fraction) -> _Picture:
            return _picture(number, frame, shape, params)

        for made in tuples_of(clip, params, starts, picture):
            yield made if isinstance(made, Reject) else _sample(clip, *made, params.format)


LONG_REACH = 1000
"""Frames that samples span from which on it is looked beforehand whether a clip has so many: where
they overlap, the pictures of as many are held."""

_NO_CUT = {True: ", and no scene cut", False: ""}


@dataclass(frozen=True, slots=True)
class Clip:
    """A sample of one video, by its key, with what its ``json`` says."""

    key: str
    video: bytes
    about: Mapping[str, Any]


class Framed(Protocol):
    """What is made of one frame: its number in the clip, and its time there in seconds."""

    @property
    def number(self) -> int: ...

    @property
    def time(self) -> Fraction: ...


P = TypeVar("P", bound=Framed)


@dataclass(frozen=True, slots=True)
class _Picture:
    number: int
    time: Fraction
    width: int
    height: int
    data: bytes


def tuples_of(
    clip: Clip,
    params: SelectionParams,
    starts: Sequence[Fraction] | None,
    picture: Callable[[int, Any, Fraction], P],
    source: Callable[..., Iterable[Any]] = frames,
) -> Iterator[tuple[int, list[P]] | Reject]:
    """The samples of a clip's frames: the number that names each, and what ``picture`` makes of its
    frames, once of each, however many samples have it; or why one that was asked for is not there.

    Args:
        starts: where scenes begin, in seconds, if that is known.
        picture: is told a frame's number, the frame, and the shape of its pixels as they are
            stored.
        source: what decodes all frames, where all are, called as
            :func:`~reelmill.media.decode.frames` is; they need ``pts`` and ``time_base``.
    """
    if params.begin_at_steps and (params.takes_every_frame or starts is None):
        return _gathered(clip, params, starts, picture, source)
    return _selected(clip, params, starts, picture)


def _gathered(
    clip: Clip,
    params: SelectionParams,
    starts: Sequence[Fraction] | None,
    picture: Callable[[int, Any, Fraction], P],
    source: Callable[..., Iterable[Any]],
) -> Iterator[tuple[int, list[P]]]:
    """Samples at every step, from frames that pass by: one decode, which ends with the last sample;
    memory for one sample's pictures."""
    window: Window[P] = params.window()
    shape, numbers = Fraction(1), None
    if not params.takes_every_frame or params.reach >= LONG_REACH:
        sequence = _sequence(shown(clip.video), params)
        if len(sequence) <= params.reach:
            raise _too_short(len(sequence), params)
        numbers = None if params.takes_every_frame else sequence.tolist()
    seen = 0

    def opened(stream: Any) -> None:
        nonlocal shape
        shape = pixel_shape(stream)

    def made(number: int, frame: Any) -> P:
        return picture(number, frame, shape)

    def counted() -> Iterator[Any]:
        nonlocal seen
        for frame in source(clip.video, opened):
            seen += 1
            yield frame

    cuts = watched(params, starts, clip.video)
    for places, pictures in gathered(counted(), window, cuts, made, numbers):
        yield _name_of(places, pictures, params), pictures
    if not window.given:
        raise _too_short(seen if numbers is None else len(numbers), params)


def _selected(
    clip: Clip,
    params: SelectionParams,
    starts: Sequence[Fraction] | None,
    picture: Callable[[int, Any, Fraction], P],
) -> Iterator[tuple[int, list[P]] | Reject]:
    """Samples of chosen frames: they are known before anything is decoded, and most of the others
    are left out where that is possible."""
    cuts = looked_for(params, starts, clip.video)
    there = shown(clip.video)
    numbers = _sequence(there, params)
    places = Places(len(numbers), params.reach, _places_of(cuts, there, numbers))

    def place_at(seconds: Fraction) -> int | None:
        number = there.at(seconds)
        if number is None:
            return None
        if params.fps is not None:
            # By its time: at a rate above the video's own, one frame is at several places.
            return min(int((seconds + there.slack) * Fraction(params.fps)), len(numbers) - 1)
        return int(np.searchsorted(numbers, number, side="right")) - 1

    chosen = choose(params, places, clip.key, place_at)
    for order, missed in enumerate(chosen.missed):
        yield Reject(f"{clip.key}_missed_{order:03d}", missed.reason, missed.message)
    if not chosen.starts:
        if not chosen.missed:
            raise _too_short(len(numbers), params)
        return
    window: Window[P] = params.window(chosen.starts)
    for at, made in _pictures(clip, params, there, numbers, chosen, picture):
        for place in at:
            if window.wants(place):
                window.put(place, made)
            for gathered_at, pictures in window.take():
                yield _name_of(gathered_at, pictures, params), pictures


def _name_of(places: Sequence[int], pictures: Sequence[Framed], params: SelectionParams) -> int:
    """The number that names a sample. At a rate, one frame may be the first of several."""
    return places[0] if params.fps is not None else pictures[0].number


def _sequence(there: Shown, params: SelectionParams) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The numbers of the frames that count, ascending; at a rate, some more than once."""
    if params.keyframes:
        return np.flatnonzero(there.keyframe).astype(np.int64)
    if params.fps is not None:
        return there.paced(Fraction(params.fps), MAX_PLACES)
    return np.arange(len(there), dtype=np.int64)


def _places_of(
    cuts: Sequence[Fraction], there: Shown, numbers: np.ndarray[Any, np.dtype[np.int64]]
) -> list[int]:
    """The places with which scenes begin: those of the first frames that count behind each cut."""
    first, last = int(there.pts[0]), int(there.pts[-1])
    # Cuts that a dataset tells may lie anywhere, and beyond 64 bits.
    ticks = (-(-cut // there.time_base) for cut in cuts)
    inside = np.array([tick for tick in ticks if first < tick <= last], dtype=np.int64)
    found = np.searchsorted(numbers, np.searchsorted(there.pts, inside))
    return sorted({int(place) for place in found if 0 < place < len(numbers)})


def _pictures(
    clip: Clip,
    params: SelectionParams,
    there: Shown,
    numbers: np.ndarray[Any, np.dtype[np.int64]],
    chosen: Chosen,
    picture: Callable[[int, Any, Fraction], P],
) -> Iterator[tuple[list[int], P]]:
    """Each picture that samples need, made once, and the places it is for."""
    starts = np.asarray(chosen.starts, dtype=np.int64)
    is_needed = np.zeros(len(numbers), dtype=np.bool_)
    for picture_at in range(params.count):
        is_needed[starts + picture_at * params.stride] = True
    needed = np.flatnonzero(is_needed)
    wanted, first = np.unique(numbers[needed], return_index=True)
    groups = np.split(needed, first[1:])
    decoded = frames_at(clip.video, there, wanted.tolist())
    for (number, frame), places in zip(decoded, groups, strict=True):
        yield places.tolist(), picture(number, frame, there.shape)


def _picture(number: int, frame: VideoFrame, shape: Fraction, params: FramesParams) -> _Picture:
    fit = fit_of(frame, shape, params)
    data = encode(frame, fit, params)
    assert frame.pts is not None
    assert frame.time_base is not None
    return _Picture(number, frame.pts * frame.time_base, *fit.padded, data)


def _too_short(count: int, params: SelectionParams) -> Rejected:
    return Rejected(
        "too_short",
        f"{count} frames; a sample spans {params.reach + 1}{_NO_CUT[params.minds_cuts]}",
    )


def tuple_about(
    clip: Clip, first: int, pictures: Sequence[Framed], size: tuple[int, int]
) -> tuple[str, dict[str, Any]]:
    """The key of a sample that a number names, and what its ``json`` says of its frames; ``size``
    is (width, height)."""
    key = f"{clip.key}_{first:06d}"
    times = [picture.time for picture in pictures]
    exact: dict[str, list[str]] = {"times": [ratio(time) for time in times]}
    start, is_exact = start_of(clip.about)
    in_source = [start + time for time in times]
    if is_exact:
        exact["source_times"] = [ratio(time) for time in in_source]
    return key, {
        "key": key,
        "clip": clip.key,
        "source": texts_of(clip.about.get("source"), ("key", *OF_SOURCE)),
        "frames": [picture.number for picture in pictures],
        "times": [_rounded(time) for time in times],
        "source_times": [_rounded(time) for time in in_source],
        "exact": exact,
        "width": size[0],
        "height": size[1],
    }


def _sample(clip: Clip, first: int, pictures: Sequence[_Picture], ending: str) -> Sample:
    width, height = pictures[0].width, pictures[0].height
    key, value = tuple_about(clip, first, pictures, (width, height))
    fields = {picture_field(place, ending): picture.data for place, picture in enumerate(pictures)}
    columns = {
        "clip": clip.key,
        "frame": pictures[0].number,
        "time": value["times"][0],
        "source_time": value["source_times"][0],
        "width": width,
        "height": height,
    }
    return Sample(key, {**fields, "json": sample_json(value)}, columns)


def _rounded(time: Fraction) -> float:
    """Seconds, to the microsecond."""
    return round(float(time), 6)
