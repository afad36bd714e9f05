"""Flow: optical flow between the pictures of each sample, or between the frames of each clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.metadata import version
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from av import VideoFrame
from pydantic import Field, model_validator

from reelmill.errors import Rejected, StageError
from reelmill.media.decode import Device, frames
from reelmill.media.flow import (
    ENDINGS,
    PRESETS,
    RAFT_BATCH,
    Estimator,
    Format,
    Method,
    encode,
    encode_mask,
    estimator,
    mean_motion,
    occluded,
    rescaled,
    rescaled_mask,
)
from reelmill.media.flow import Flow as Vectors
from reelmill.media.flow.pictures import encode_rgb, from_frame, from_image, on_host, scaled
from reelmill.media.pictures import PictureFormat, fit_of
from reelmill.media.pictures import encode as encode_frame
from reelmill.media.size import Fit, PictureSide, Sizing
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import (
    Job,
    Output,
    Reject,
    Runtime,
    Sample,
    SampleStage,
    sample_json,
)
from reelmill.tasks.cuts import scene_starts
from reelmill.tasks.frames import Clip, tuple_about, tuples_of
from reelmill.tasks.media_fields import (
    FIRST_PICTURES,
    VIDEO,
    about_of,
    flow_field,
    mask_field,
    picture_field,
    pictures_of,
    video_of,
)
from reelmill.tasks.selection import SelectionParams
from reelmill.tasks.site_params import AbsolutePath

T = TypeVar("T")

Preset = Literal["ultrafast", "fast", "medium", "slow", "small", "large"]
Direction = Literal["forward", "backward", "both"]

STORERS = 4
"""Threads that store flow while a card estimates more."""

_JPEG = PictureFormat.model_validate({})

_OF_CLIPS = {
    name: field.default
    for name, field in sorted(SelectionParams.model_fields.items())
    if name != "stride"
}
"""Parameters that choose frames, as they are if not set."""


class OutputSize(Sizing[PictureSide]):
    """The size that flow is stored at: it is scaled, and neither cropped nor padded."""

    @model_validator(mode="after")
    def _is_scaled_to(self) -> OutputSize:
        if self.mode != "scale":
            raise ValueError("output scales flow: its mode can be no other")
        return self


class FlowParams(SelectionParams, Sizing[PictureSide]):
    """Which flow, between which pictures, at which size, and how it is stored.

    Sides and ``size`` say at which size flow is estimated: without them at the pictures' own.
    """

    count: Annotated[int, Field(ge=2, le=1000)] = Field(
        3, description="of clips: frames in a sample; 3 makes triplets, with two fields of flow"
    )
    method: Method = Field(
        "dis",
        description="dis: dense inverse search; farneback: slower, a classic; raft: a network, "
        "best on a GPU; nvof: the optical flow engine of NVIDIA's GPUs",
    )
    preset: Preset | None = Field(
        None,
        description="of dis: ultrafast, fast (if not set) or medium; of raft: small or large (if "
        "not set); of nvof: fast, medium or slow (if not set), which is the best",
    )
    direction: Direction = Field(
        "forward", description="from each picture to the next, back to the one before, or both"
    )
    occlusions: bool = Field(
        False, description="store masks of what has no counterpart, by flow in both directions"
    )
    format: Format = Field(
        "kitti",
        description="kitti: 16-bit PNG in 1/64 pixel; flo: Middlebury's float32, 8 bytes a pixel; "
        "npy: float16 for NumPy, 4 bytes a pixel",
    )
    output: OutputSize | None = Field(
        None, description="size that flow is stored at, its vectors with it, if not as estimated"
    )
    keep_frames: bool = Field(True, description="store the pictures beside the flow")
    pictures: PictureFormat = Field(
        _JPEG, description="of clips: format of the frames that are kept"
    )
    weights: Annotated[AbsolutePath | None, Runtime] = Field(
        None,
        description="of raft: file of torchvision's weights, at this path on every worker; without "
        "it each worker gets them from PyTorch's hub",
    )
    device: Device | None = Field(None, description="of raft: cuda if not set, or cpu")
    batch: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None, description=f"of raft: pairs at once, {RAFT_BATCH} if not set; makes last digits vary"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> FlowParams:
        presets = PRESETS[self.method]
        if self.preset is not None and self.preset not in presets:
            known = f"is one of {', '.join(presets)}" if presets else "has no effect"
            raise ValueError(f"preset of method {self.method!r} {known}")
        for name in ("weights", "device", "batch"):
            if getattr(self, name) is not None and self.method != "raft":
                raise ValueError(f"{name} is for method 'raft'")
        if self.pictures.bits > 8 and self.computed_on == "cuda":
            raise ValueError("pictures of 16 bits are kept where the CPU estimates flow")
        return self

    def effective(self) -> dict[str, Any]:
        is_raft = self.method == "raft"
        return SelectionParams.effective(self) | {
            "preset": self.chosen_preset,
            "output": None if self.output == OutputSize() else self.output,
            "pictures": self._pictures if self.keep_frames else None,
            "device": self.computed_on if is_raft else None,
            "batch": self.batch or RAFT_BATCH if is_raft else None,
        }

    @property
    def _pictures(self) -> PictureFormat:
        """The format of pictures as it is meant, with nothing set that has no effect."""
        unset = PictureFormat.model_fields
        return self.pictures.model_copy(
            update={
                name: unset[name].default if value is None else value
                for name, value in self.pictures.effective().items()
            }
        )

    @property
    def chosen_preset(self) -> str | None:
        """The preset, by name where it is the method's default; None where it has none."""
        return self.preset or next(iter(PRESETS[self.method]), None)

    @property
    def computed_on(self) -> Device:
        """Where flow is estimated."""
        if self.method == "raft":
            return self.device or "cuda"
        return "cuda" if self.method == "nvof" else "cpu"

    def estimator(self) -> Estimator:
        """What estimates it, in this process."""
        return estimator(
            self.method,
            self.preset,
            weights=Path(self.weights) if self.weights else None,
            device=self.computed_on,
            batch=self.batch or RAFT_BATCH,
        )

    def stored_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) at which flow that was estimated at another size is stored."""
        return self.output.fit(width, height).scaled if self.output else (width, height)

    def stored_fit(self, fit: Fit) -> Fit:
        """How a picture comes to the size that flow is stored at, where ``fit`` tells how it comes
        to that at which flow is estimated."""
        stored = self.stored_size(*fit.padded)
        if stored == fit.padded:
            return fit
        scaled, cropped = (
            (_part(size[0], stored[0], fit.padded[0]), _part(size[1], stored[1], fit.padded[1]))
            for size in (fit.scaled, fit.cropped)
        )
        return Fit(scaled, cropped, stored)


class Flow(SampleStage[FlowParams]):
    """Fields are (H, W, 2) in pixels, x right and y down.

    A sample of N pictures gets a field for each that has one ``stride`` further on:
    ``000000.flow.png`` leads from picture 0 to that, ``000001.flow_back.png`` back from picture 1.
    Of a sample with no picture but a video, samples are made as stage ``frames`` makes them, with
    the same keys, and N-1 fields each: the video is decoded once, and no picture is stored for it.
    """

    name = "flow"
    version = 3
    roles = ("source", "scenes")
    optional = ("scenes",)
    params = FlowParams
    memory = 350_000_000
    works_on = (*FIRST_PICTURES, *VIDEO)
    columns = pa.schema(
        [
            pa.field("pairs", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("mean_motion", pa.float64()),
            pa.field("max_motion", pa.float64()),
            pa.field("occluded", pa.float64()),
        ]
    )

    def tools(self, params: FlowParams) -> dict[str, str]:
        packages = ["av", "opencv-python-headless", "simplejpeg", "numpy", "deflate"]
        tools = {package: version(package) for package in packages}
        # Imported here: methods of the CPU need neither torch nor a card.
        if params.method == "raft":
            from reelmill.media.gpu import raft

            weights = Path(params.weights) if params.weights else None
            tools |= raft.tools(params.chosen_preset or "", weights)
        if params.method == "nvof":
            from reelmill.media.gpu import nvof

            tools |= nvof.tools()
        return tools

    def needs(self, params: FlowParams) -> Mapping[str, float]:
        return {"GPU": 1} if params.computed_on == "cuda" else {}

    def each(self, job: Job[FlowParams], sample: InputSample) -> Iterator[Output]:
        on_card = job.params.computed_on == "cuda"
        with ThreadPoolExecutor(STORERS) if on_card else _Here() as pool:
            work = _Work(job, pool)
            if pictures_of(sample.fields):
                yield work.of_pictures(sample)
            else:
                yield from work.of_clip(sample)


@dataclass(eq=False)
class _Picture:
    """A picture on its way: ``pixels`` are what flow is estimated from, ``data`` how it is stored,
    if it is. ``pairs`` has the flow between it and others, by their numbers: None until that is
    estimated."""

    number: int
    time: Fraction
    pixels: Any
    data: bytes | None = None
    pairs: dict[int, Future[_Pair] | None] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[0])


@dataclass(frozen=True)
class _Side:
    """Flow in one direction as it is stored, and what columns say of it."""

    data: bytes
    mean: float
    longest: float
    mask: bytes | None = None
    occluded: float | None = None


@dataclass(frozen=True)
class _Pair:
    """The flow between two pictures, in the directions that are stored."""

    forward: _Side | None
    backward: _Side | None


class _Work:
    """One sample's work. Pairs are estimated as many at once as the method likes. Where a card does
    that, other threads store what it has estimated."""

    def __init__(self, job: Job[FlowParams], pool: Executor) -> None:
        self._job = job
        self._params = job.params
        self._estimator = job.params.estimator()
        self._pool = pool

    def of_pictures(self, sample: InputSample) -> Sample:
        """A sample of pictures, with the flow between them."""
        params = self._params
        if given := [name for name, unset in _OF_CLIPS.items() if getattr(params, name) != unset]:
            raise StageError(
                f"{' and '.join(given)} would choose frames of clips, and samples such as "
                f"{sample.key} hold pictures: leave them out"
            )
        shown = pictures_of(sample.fields)
        if len(shown) <= params.stride:
            raise Rejected(
                "no_pair", f"{len(shown)} pictures; flow leads {params.stride} further on"
            )
        for (number, first), (following, second) in pairwise(shown):
            if number == following:
                raise Rejected("same_number", f"{first} and {second} are one picture's fields")
        about = about_of(sample.fields)
        kept = dict(sample.fields) if params.keep_frames else {}
        pairs = [
            (first.number, second.number, first, second)
            for first, second in self._estimated(self._neighbours(sample, shown))
        ]
        return self._sample(sample.key, pairs, about, kept)

    def _neighbours(
        self, sample: InputSample, shown: Sequence[tuple[int, str]]
    ) -> Iterator[list[_Picture]]:
        """Each picture with the one that is ``stride`` further on; no more are held than that."""
        held: deque[_Picture] = deque()
        for number, name in shown:
            pixels = from_image(sample.fields[name], self._params, self._estimator.colour)
            held.append(_Picture(number, Fraction(0), pixels))
            if len(held) > self._params.stride:
                yield [held.popleft(), held[-1]]

    def of_clip(self, sample: InputSample) -> Iterator[Output]:
        """The samples of a clip's frames, and what cannot be had of those that were asked for."""
        params = self._params
        clip = Clip(sample.key, video_of(sample.fields), about_of(sample.fields))
        starts = scene_starts(self._job, clip.key, clip.about) if params.minds_cuts else []
        rejects: deque[Reject] = deque()
        names: deque[int] = deque()

        def tuples() -> Iterator[list[_Picture]]:
            source = self._decoder(starts)
            for made in tuples_of(clip, params, starts, self._picture, source):
                if isinstance(made, Reject):
                    rejects.append(made)
                else:
                    names.append(made[0])
                    yield made[1]

        for made in self._estimated(tuples()):
            yield self._of_frames(clip, names.popleft(), made)
        yield from rejects

    def _of_frames(self, clip: Clip, first: int, made: Sequence[_Picture]) -> Sample:
        """A sample of frames, named by a number."""
        params = self._params
        size = params.stored_size(*made[0].size)
        key, value = tuple_about(clip, first, made, size)
        kept = {
            picture_field(place, params.pictures.format): picture.data
            for place, picture in enumerate(made)
            if picture.data is not None
        }
        pairs = [(place, place + 1, *pair) for place, pair in enumerate(pairwise(made))]
        return self._sample(key, pairs, value, kept)

    def _decoder(self, starts: Sequence[Fraction] | None) -> Callable[..., Iterable[Any]]:
        """What decodes all frames of a clip: the card where flow is estimated there, unless the CPU
        must see them to find scene cuts."""
        params = self._params
        if params.computed_on == "cpu" or (params.minds_cuts and starts is None):
            return frames
        from reelmill.media.gpu.sources import pictures_on_card

        return lambda video, _: pictures_on_card(video, params)

    def _picture(self, number: int, frame: Any, shape: Fraction) -> _Picture:
        """A frame of PyAV, or as a card decoded it, that is part of a sample."""
        params = self._params
        time = frame.pts * Fraction(frame.time_base)
        if not isinstance(frame, VideoFrame):
            picture = _Picture(number, time, frame.rgb)
            if params.keep_frames:
                rgb = scaled(on_host(frame.rgb), *params.stored_size(*picture.size))
                picture.data = encode_rgb(rgb, params.pictures)
            return picture
        fit, data = fit_of(frame, shape, params), None
        if params.keep_frames:
            data = encode_frame(frame, params.stored_fit(fit), params.pictures)
        pixels = from_frame(frame, fit, self._estimator.colour)
        return _Picture(number, time, pixels, data)

    def _estimated(self, tuples: Iterable[list[_Picture]]) -> Iterator[list[_Picture]]:
        """The same tuples, with the flow from each of their pictures to the next. A pair that is in
        several of them is estimated and stored once."""
        waiting: list[list[_Picture]] = []
        storing: list[list[_Picture]] = []
        todo: list[tuple[_Picture, _Picture]] = []
        for made in tuples:
            waiting.append(made)
            for first, second in pairwise(made):
                if second.number not in first.pairs:
                    first.pairs[second.number] = None
                    todo.append((first, second))
            if len(todo) * self._directions >= self._estimator.at_once:
                self._estimate(todo)
                yield from storing
                waiting, storing, todo = [], waiting, []
        self._estimate(todo)
        yield from storing
        yield from waiting

    @property
    def _directions(self) -> int:
        params = self._params
        return 2 if params.direction == "both" or params.occlusions else 1

    def _estimate(self, pairs: Sequence[tuple[_Picture, _Picture]]) -> None:
        """Estimate the flow of all ``pairs``, and have it stored."""
        for first, second in pairs:
            if first.pixels.shape != second.pixels.shape:
                raise Rejected("sizes_differ", f"pictures of {first.size} and {second.size} pixels")
        for _, alike in groupby(pairs, lambda pair: pair[0].size):
            group = list(alike)
            asked = [(first.pixels, second.pixels) for first, second in group]
            if self._directions == 2:
                asked = [one for pair in asked for one in (pair, pair[::-1])]
            elif self._params.direction == "backward":
                asked = [pair[::-1] for pair in asked]
            many = self._estimator.at_once
            found = [
                field
                for start in range(0, len(asked), many)
                for field in self._estimator(asked[start : start + many])
            ]
            each = len(asked) // len(group)
            for place, (first, second) in enumerate(group):
                fields = found[each * place : each * (place + 1)]
                first.pairs[second.number] = self._pool.submit(_stored, fields, self._params)

    def _sample(
        self,
        key: str,
        pairs: Sequence[tuple[int, int, _Picture, _Picture]],
        about: Mapping[str, Any],
        kept: Mapping[str, bytes],
    ) -> Sample:
        """A sample with the flow of ``pairs``: the numbers of their pictures' fields, and these."""
        params = self._params
        ending = ENDINGS[params.format]
        fields: dict[str, bytes] = {}
        sides: list[_Side] = []
        for number, following, first, second in pairs:
            stored = first.pairs[second.number]
            assert stored is not None
            pair = stored.result()
            for side, start, back in (
                (pair.forward, number, False),
                (pair.backward, following, True),
            ):
                if side is None:
                    continue
                sides.append(side)
                fields[flow_field(start, ending, back)] = side.data
                if side.mask is not None:
                    fields[mask_field(start, back)] = side.mask
        computed = pairs[0][2].size
        width, height = params.stored_size(*computed)
        flow = {
            "method": params.method,
            **({"preset": params.chosen_preset} if params.chosen_preset else {}),
            "stride": params.stride,
            "format": params.format,
            "direction": params.direction,
            "occlusions": params.occlusions,
            "pairs": [[number, following] for number, following, *_ in pairs],
            "estimated_at": list(computed),
            "width": width,
            "height": height,
        }
        columns = {
            "pairs": len(pairs),
            "width": width,
            "height": height,
            "mean_motion": round(sum(side.mean for side in sides) / len(sides), 3),
            "max_motion": round(max(side.longest for side in sides), 3),
            "occluded": _mean([side.occluded for side in sides if side.occluded is not None]),
        }
        value = {**about, "flow": flow}
        return Sample(key, {**kept, **fields, "json": sample_json(value)}, columns)


class _Here(Executor):
    """Does at once what it is given, on the thread that gives it."""

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(work(*args, **kwargs))
        return done


def _stored(found: Sequence[Vectors], params: FlowParams) -> _Pair:
    """Flow as it is stored: of one direction, or there and back."""
    if len(found) == 1:
        side = _side(found[0], None, params)
        return _Pair(None, side) if params.direction == "backward" else _Pair(side, None)
    there, back = found
    return _Pair(
        forward=None if params.direction == "backward" else _side(there, back, params),
        backward=None if params.direction == "forward" else _side(back, there, params),
    )


def _side(there: Vectors, back: Vectors | None, params: FlowParams) -> _Side:
    height, width = there.shape[:2]
    width, height = params.stored_size(width, height)
    stored = rescaled(there, width, height)
    mean, longest = mean_motion(stored)
    side = _Side(encode(stored, params.format), mean, longest)
    if back is None or not params.occlusions:
        return side
    mask = rescaled_mask(occluded(there, back), width, height)
    return replace(side, mask=encode_mask(mask), occluded=float(np.count_nonzero(mask)) / mask.size)


def _part(length: int, stored: int, computed: int) -> int:
    """A length in pixels at another size, to the nearest, but one at least."""
    return max(1, (2 * length * stored + computed) // (2 * computed))


def _mean(shares: Sequence[float]) -> float | None:
    return round(sum(shares) / len(shares), 4) if shares else None
