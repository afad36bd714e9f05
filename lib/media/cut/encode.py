"""Cut to the frame, by encoding anew: which clips share a process, and what came of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelmill.media.cut.graph import Device, compose
from reelmill.media.cut.plan import LATE, Clip, CutFailure, Index, Plan, clamp
from reelmill.media.cut.rendering import Rendering, Texts
from reelmill.media.ffmpeg import FfmpegError, run_each

MAX_GROUP = 32
"""Most clips that one ffmpeg process encodes from one decode."""

MAX_GROUP_PIXELS = 2**23
"""Most pixels of a frame of each clip of a process, together: a process keeps the encoders of all
its clips to its end, and x264 takes some 80 bytes for a pixel. Two clips there are in any case."""

MAX_GROUP_OUTPUTS = 256
"""Most outputs of all clips of a process: its filters are one argument, of 128 KiB at most."""

WORTH_A_SEEK = 2**24
"""Pixels whose decoding a process of its own must save: to start one, open the source and seek in
it took as long as 15 frames of 1280x720 (45 ms of CPU)."""

WORTH_A_PACKET = 32
"""And so many for each packet of the source, whose container may have an index to read (0.1 s of
CPU for an MP4 file of two hours)."""

AUDIO_PREROLL = Fraction(1, 10)
"""Seconds decoded ahead of clips with audio: lossy audio needs a few packets to come right."""

RETRY_PREROLL = Fraction(10)
"""Seconds decoded ahead of a clip in its second attempt, for sources whose index misleads."""

log = logging.getLogger(__name__)


def encode_plans(
    index: Index,
    plans: Iterable[Plan],
    rendering: Rendering,
    *,
    jobs: int,
    timeout: Callable[[], float],
    progress: Callable[[int], object] | None,
    device: Device = "cpu",
) -> dict[int, Clip | CutFailure]:
    """What comes of ``plans`` by encoding them, ``jobs`` processes at a time.

    Plans that lie near each other share a decode; which do depends on the source and the plans
    alone, never on ``jobs``. ``timeout`` tells how many seconds are left. A clip that does not come
    out whole is tried once more, alone, and at last without sound. ``progress`` is told of frames
    that are done.

    The ``device`` decodes what it can, and the CPU the rest. Second tries are the CPU's, so that no
    trouble of a card's is a clip's.

    Raises :class:`~reelmill.errors.StageError` where the disk is full, and with ``cuda`` as
    :func:`~reelmill.media.gpu.devices.capabilities` does where there is no card.
    """
    if device == "cuda":
        # Imported here: with NVIDIA's packages, and torch.
        from reelmill.media.gpu.devices import capabilities

        capabilities()
    work = _Encode(index, rendering, jobs, timeout, progress, device)
    plans = sorted(plans, key=lambda plan: (plan.first, plan.last))
    made = work.encode(list(work.groups(plans)), Fraction(0))
    again = [[plan] for plan in plans if _is_broken(plan, made[plan.number])]
    on_cpu = replace(work, device="cpu")
    made |= on_cpu.encode(again, RETRY_PREROLL) if again else {}
    # Packets may claim sound that they do not hold, or less of it than an encoder begins with.
    lost = [[plan] for plan in plans if work.is_heard(plan) and _has_failed(made[plan.number])]
    return made | (replace(on_cpu, silent=True).encode(lost, RETRY_PREROLL) if lost else {})


def _is_broken(plan: Plan, made: Clip | CutFailure) -> bool:
    if isinstance(made, CutFailure):
        return made.reason != "timeout"
    return made.start_frame != plan.first


def _has_failed(made: Clip | CutFailure) -> bool:
    return isinstance(made, CutFailure) and made.reason == "encode_failed"


@dataclass(frozen=True)
class _Encode:
    """Encoding of clips out of one source."""

    index: Index
    rendering: Rendering
    jobs: int
    timeout: Callable[[], float]
    progress: Callable[[int], object] | None
    device: Device
    silent: bool = False

    def groups(self, plans: Sequence[Plan]) -> Iterator[list[Plan]]:
        """Plans (ordered by start) that are worth a common decode."""
        most = MAX_GROUP_PIXELS // self.rendering.pixels
        most = min(most, MAX_GROUP_OUTPUTS // len(self.rendering.encoding.outputs))
        most = max(2, min(MAX_GROUP, most))
        begin = 0
        while begin < len(plans):
            stop = self._near(plans, begin, min(begin + most, len(plans)))
            if stop - begin == most and stop < len(plans):
                # Full: the next group should begin where it has the least to decode ahead.
                stop = min(
                    range(stop, begin + most // 2, -1), key=lambda at: self._ahead(plans[at])
                )
            yield list(plans[begin:stop])
            begin = stop

    def _near(self, plans: Sequence[Plan], begin: int, stop: int) -> int:
        """The first plan behind ``begin``, at most ``stop``, that needs a process of its own: to
        save decoding, or to have frames of its own size."""
        end = plans[begin].last
        worth = WORTH_A_SEEK + WORTH_A_PACKET * sum(map(len, self.index.tables))
        for at in range(begin + 1, stop):
            if self.index.part(plans[at]) != self.index.part(plans[begin]):
                return at
            frames = plans[at].first - self._ahead(plans[at]) - end
            if frames * self.index.width * self.index.height > worth:
                return at
            end = max(end, plans[at].last)
        return stop

    def _ahead(self, plan: Plan) -> int:
        """How many frames there are from the keyframe at or before a plan to its first."""
        keyframe = self._keyframe(plan, Fraction(0))
        return plan.first - int(np.searchsorted(self.index.video.shown, keyframe))

    def encode(
        self, groups: Sequence[Sequence[Plan]], preroll: Fraction
    ) -> dict[int, Clip | CutFailure]:
        """Encode each group (ordered by start) in a process of its own, which begins to decode
        ``preroll`` seconds ahead."""
        made: dict[int, Clip | CutFailure] = {}
        with ExitStack() as files:
            commands = (
                self._command(group, preroll, files.enter_context(self.rendering.files(group)))
                for group in groups
            )
            done = run_each(
                commands, timeout_s=self.timeout(), jobs=self.jobs, progress=self.progress
            )
            for place, error in done:
                for plan in groups[place]:
                    if error is None:
                        clip = plan.clip("encoded", check=False)
                        made[plan.number] = self.rendering.whole(plan, clip)
                    else:
                        made[plan.number] = _failure(plan, error)
                if error is not None:
                    log.warning("%s", error)
        return made

    def _command(
        self, plans: Sequence[Plan], preroll: Fraction, texts: Mapping[int, Sequence[Texts]]
    ) -> Any:
        index = self.index
        heard = [plan.number for plan in plans if self.is_heard(plan)]
        ahead = max(preroll, AUDIO_PREROLL if heard else Fraction(0))
        keyframe = self._keyframe(plans[0], ahead)
        is_first = keyframe <= self._keyframes[0]
        seek = None if is_first else keyframe * index.video.time_base
        return compose(
            index.source, index.indices, plans, heard, self.rendering, seek, texts, self.device
        )

    def is_heard(self, plan: Plan) -> bool:
        """Whether a plan has sound, as far as packets tell."""
        audio = self.index.audio
        if audio is None or self.silent:
            return False
        start, end = (edge / audio.time_base for edge in (plan.start, plan.end))
        begins, ends = audio.pts, audio.pts + audio.duration
        return bool(np.any((begins < clamp(ceil(end))) & (ends > clamp(floor(start)))))

    def _keyframe(self, plan: Plan, preroll: Fraction) -> int:
        """The pts of the last keyframe at or before ``plan``, ``preroll`` seconds ahead but behind
        the last change of parameters: ffmpeg gives all frames the size of the first that it
        decodes. That of the first keyframe where there is none before."""
        pts = floor((plan.start - preroll) / self.index.video.time_base)
        if part := self.index.part(plan):
            pts = max(pts, int(self.index.changes[part - 1]))
        place = int(np.searchsorted(self._keyframes, pts, side="right")) - 1
        return int(self._keyframes[max(place, 0)])

    @cached_property
    def _keyframes(self) -> NDArray[np.int64]:
        video = self.index.video
        found = np.sort(video.pts[video.keyframe])
        return found if len(found) else video.shown[:1]


def _failure(plan: Plan, error: FfmpegError) -> CutFailure:
    if error.timed_out:
        return plan.failure(*LATE)
    return plan.failure("encode_failed", "ffmpeg cannot encode the span")
