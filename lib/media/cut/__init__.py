"""Cut clips out of a video: by stream copy at keyframes, frame-exact by encoding anew, or as much
of each as serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeAlias

from reelmill.media.cut.auto import exact_copy, is_alike
from reelmill.media.cut.copy import Copy, snapped, write_copies
from reelmill.media.cut.encode import encode_plans
from reelmill.media.cut.graph import Device
from reelmill.media.cut.output import Audio, Encoding, Variant, Video
from reelmill.media.cut.plan import Clip, CutFailure, Index, Plan, plans_of, read_index
from reelmill.media.cut.rendering import Rendering
from reelmill.media.cut.smart import joined
from reelmill.media.size import Size
from reelmill.media.spans import Span

__all__ = [
    "Audio",
    "Clip",
    "CutFailure",
    "Encoding",
    "Mode",
    "Size",
    "Variant",
    "Video",
    "cut_spans",
]

Mode: TypeAlias = Literal["auto", "copy", "exact", "smart"]


def cut_spans(
    source: Path,
    spans: Iterable[Span],
    out_dir: Path,
    *,
    mode: Mode = "auto",
    encoding: Encoding = Encoding(),  # noqa: B008
    audio: bool = True,
    cover: bool = False,
    timeout_s: float,
    jobs: int = 1,
    progress: Callable[[int, int], object] | None = None,
    device: Device = "cpu",
) -> list[Clip | CutFailure]:
    """Cut ``spans`` (seconds on the source's clock): one outcome for each, in order; clip ``i`` is
    ``out_dir/{i:06d}`` with the ending of its container, and its variants and extracted sound have
    the same name with theirs; the same bytes every time, for any ``jobs``.

    Args:
        mode: ``exact``: to the frame (all with ``start <= pts < end``), encoded anew as
            ``encoding`` says: by default with their own timing (variable rates stay variable), in
            8-bit 4:2:0 for every decoder's sake, and AAC; always upright (rotation is applied), an
            odd last row or column cropped.
            ``auto``: the same frames; clips whose both ends are cut points (the beginning of a
            closed GOP, or the end of the stream) are copied, if the source is of the kind that an
            encode would give. ``smart``: the same frames; of H.264 only the partial GOPs at a
            clip's borders are encoded, in the source's own format, and what lies between is copied.
            ``copy``: nothing is decoded; either end of a span moves to the cut point at or before
            it. Copies keep rotation as it is stored.
        cover: for ``copy``: the end moves to the cut point at or after it instead, so that every
            clip holds all of its span, and neighbours may overlap.
        timeout_s: for all spans together; clips that are not made by then fail (``timeout``).
        jobs: how many processes encode at a time, on one thread each.
        progress: is told, now and then, how many frames are done, and of how many.
        device: decodes what it can of what is encoded, and the CPU the rest.

    The source is read for its index, and once for all copies. A clip that does not come out whole
    is tried once more alone; of a damaged source, it has the frames that could be decoded, and says
    how many.

    Raises :class:`~reelmill.errors.Rejected` where the source itself cannot be used;
    :class:`~reelmill.errors.StageError` where the disk is full, or a device is asked for that is
    not there; ``OSError`` where a clip cannot be written.
    """
    deadline = time.monotonic() + timeout_s
    index = read_index(source, audio and encoding.is_heard)
    rendering = Rendering.of(source, encoding)
    work = _Work(
        index, rendering, cover, jobs, lambda: deadline - time.monotonic(), progress, device
    )
    plans = plans_of(index.video, spans, out_dir, encoding.video.ending)
    return work.cut(list(plans), mode)


class _Work:
    """The cutting of one source."""

    def __init__(
        self,
        index: Index,
        rendering: Rendering,
        cover: bool,
        jobs: int,
        timeout: Callable[[], float],
        progress: Callable[[int, int], object] | None,
        device: Device,
    ) -> None:
        self._index, self._rendering = index, rendering
        self._cover, self._jobs = cover, jobs
        self._timeout, self._progress, self._device = timeout, progress, device
        self._done = self._frames = 0

    def cut(self, plans: list[Plan], mode: Mode) -> list[Clip | CutFailure]:
        made: dict[int, Clip | CutFailure] = {}
        for plan in plans:
            if plan.first == plan.last:
                made[plan.number] = plan.failure("no_frames", "the span holds no frame")
            elif mode != "copy" and self._fills_too_much(plan):
                count = plan.last - plan.first
                text = f"{count} of the source's frames would stand for {float(plan.length):.0f} s"
                made[plan.number] = plan.failure("timestamps", text)
        plans = [plan for plan in plans if plan.number not in made]
        self._frames = sum(plan.last - plan.first for plan in plans)
        made |= self._copied(self._copies(plans, mode))
        if mode == "copy":
            lost = [plan for plan in plans if plan.number not in made]
            why = "no_keyframe", "no keyframe parts it from its neighbour: use `cut: exact`"
            made |= {plan.number: plan.failure(*why) for plan in lost}
        else:
            made |= self._encoded([plan for plan in plans if not _is_made(plan, made)])
        return [made[number] for number in sorted(made)]

    def _fills_too_much(self, plan: Plan) -> bool:
        return self._rendering.encoding.fills_too_much(plan.length, plan.last - plan.first)

    def _copies(self, plans: list[Plan], mode: Mode) -> list[Copy]:
        index, encoding = self._index, self._rendering.encoding
        kept = not self._rendering.toned
        found: list[Copy | None] = []
        if mode == "copy":
            found = [snapped(index, plan, self._cover) for plan in plans]
        elif mode == "smart" and encoding.allows_joining and kept:
            found = [exact_copy(index, plan) or joined(index, plan, encoding) for plan in plans]
        elif mode == "auto" and encoding.allows_copy and kept:
            found = [exact_copy(index, plan) for plan in plans]
            if any(found) and not is_alike(index, self._rendering.picture, encoding):
                found = []
        return [copy for copy in found if copy is not None]

    def _copied(self, copies: list[Copy]) -> dict[int, Clip | CutFailure]:
        made = write_copies(self._index, copies, self._timeout)
        self._tell(sum(clip.frames for clip in made.values() if isinstance(clip, Clip)))
        return made

    def _encoded(self, plans: list[Plan]) -> dict[int, Clip | CutFailure]:
        return encode_plans(
            self._index,
            plans,
            self._rendering,
            jobs=self._jobs,
            timeout=self._timeout,
            progress=self._tell if self._progress is not None else None,
            device=self._device,
        )

    def _tell(self, frames: int) -> None:
        # What is tried twice is counted once.
        self._done = min(self._frames, self._done + frames)
        if self._progress is not None:
            self._progress(self._done, self._frames)


def _is_made(plan: Plan, made: dict[int, Clip | CutFailure]) -> bool:
    one = made.get(plan.number)
    return isinstance(one, Clip) or (one is not None and one.reason in ("no_frames", "timeout"))
