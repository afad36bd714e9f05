"""Cut to the frame, by encoding anew: which clips share a process, and what came of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reelmill.media.cut.graph import compose
from reelmill.media.cut.output import Encoding
from reelmill.media.cut.plan import Clip, CutFailure, Plan, clamp, plans_of, streams_of
from reelmill.media.cut.rendering import Rendering, Texts
from reelmill.media.ffmpeg import FfmpegError, run
from reelmill.media.probe import PacketTable, open_media, read_packets
from reelmill.media.spans import Span

MAX_GROUP = 8
"""Most encoders of one ffmpeg process, which encodes several clips from one decode: each takes
memory. The variants of a clip are always made together."""

WORTH_A_SEEK = Fraction(2)
"""Seconds of decoding that a process of its own, with its own seek, must save."""

AUDIO_PREROLL = Fraction(1, 10)
"""Seconds decoded ahead of clips with audio: lossy audio needs a few packets to come right."""

RETRY_PREROLL = Fraction(10)
"""Seconds decoded ahead of a clip in its second attempt, for sources whose index misleads."""

log = logging.getLogger(__name__)


def encode_spans(
    source: Path,
    spans: Iterable[Span],
    out_dir: Path,
    *,
    encoding: Encoding = Encoding(),  # noqa: B008
    audio: bool = True,
    timeout_s: float,
    device: Literal["cpu", "cuda"] = "cpu",
) -> list[Clip | CutFailure]:
    """Cut ``spans`` (seconds on the source's clock) to the frame: all with ``start <= pts < end``.

    Frames are encoded anew as ``encoding`` says: by default with their own timing (variable rates
    stay variable) and 8-bit 4:2:0 for every decoder's sake; always upright (rotation is applied),
    an odd last row or column is cropped.
    Audio is cut by the same times; a stream without a decoder is left out.
    Neighbouring spans share one decode. All codecs run on one thread and bit-exact, so that the
    bytes depend on source, spans and ffmpeg build alone. ``timeout_s`` bounds each process.

    One outcome per span, in order; clip ``i`` is ``out_dir/{i:06d}`` with the ending of its
    container, and its variants and extracted sound have the same name with theirs. A clip that does
    not come out whole is tried once more alone. Of a damaged source, a clip has the frames that
    could be decoded, and says how many.

    With the device ``cuda`` a card decodes what its NVDEC can, and the CPU the rest; ``encoding``
    says who encodes. Second tries are the CPU's, so that no trouble of a card's is a clip's.

    Raises :class:`~reelmill.errors.Rejected` where the source itself cannot be used;
    :class:`~reelmill.errors.StageError` where the disk is full, and with ``cuda`` as
    :func:`~reelmill.media.gpu.devices.capabilities` does where there is no card.
    """
    if device == "cuda":
        # Imported here: with NVIDIA's packages, and torch.
        from reelmill.media.gpu.devices import capabilities

        capabilities()
    with open_media(source) as container:
        streams = streams_of(container, audio and encoding.is_heard)
        tables = read_packets(container, streams)
        indices = [stream.index for stream in streams]
    job = _Encode(
        source,
        indices,
        tables[0],
        tables[1] if len(tables) > 1 else None,
        Rendering.of(source, encoding),
        timeout_s,
        device,
    )
    again = replace(job, device="cpu")
    outcomes: dict[int, Clip | CutFailure] = {}
    plans: list[Plan] = []
    for plan in plans_of(job.video, spans, out_dir, encoding.video.ending):
        if plan.first == plan.last:
            outcomes[plan.number] = plan.failure("no_frames", "the span holds no frame")
        else:
            plans.append(plan)
    for group in job.groups(plans):
        made = job.encode(group)
        for plan in group:
            outcome = made[plan.number]
            if isinstance(outcome, CutFailure) or outcome.start_frame != plan.first:
                outcome = again.encode([plan], RETRY_PREROLL)[plan.number]
            outcomes[plan.number] = outcome
    return [outcomes[number] for number in sorted(outcomes)]


@dataclass(frozen=True)
class _Encode:
    """Encoding of clips out of one source, whose streams have the container's ``indices``."""

    source: Path
    indices: list[int]
    video: PacketTable
    audio: PacketTable | None
    rendering: Rendering
    timeout_s: float
    device: Literal["cpu", "cuda"]

    def groups(self, plans: Iterable[Plan]) -> Iterator[list[Plan]]:
        """Plans that are worth a common decode, by start."""
        most = max(1, MAX_GROUP // len(self.rendering.encoding.outputs))
        group: list[Plan] = []
        end = Fraction(0)
        for plan in sorted(plans, key=lambda plan: (plan.first, plan.last)):
            seek = self._seek_point(plan, Fraction(0))
            far = seek is not None and seek - end > WORTH_A_SEEK
            if group and (far or len(group) == most):
                yield group
                group = []
            end = max(end, plan.end) if group else plan.end
            group.append(plan)
        if group:
            yield group

    def encode(
        self, plans: Sequence[Plan], preroll: Fraction = Fraction(0)
    ) -> dict[int, Clip | CutFailure]:
        """Encode ``plans`` (ordered by start) in one process, which begins to decode ``preroll``
        seconds ahead."""
        try:
            with self.rendering.files(plans) as texts:
                run(self._command(plans, preroll, texts), timeout_s=self.timeout_s)
        except FfmpegError as error:
            log.warning("%s", error)
            if error.timed_out:
                why = "timeout", f"encoding took more than {self.timeout_s:g} seconds"
            else:
                why = "encode_failed", "ffmpeg cannot encode the span"
            return {plan.number: plan.failure(*why) for plan in plans}
        return {plan.number: self.rendering.whole(plan, plan.clip(check=False)) for plan in plans}

    def _command(
        self, plans: Sequence[Plan], preroll: Fraction, texts: Mapping[int, Sequence[Texts]]
    ) -> Any:
        heard = [plan.number for plan in plans if self._is_heard(plan)]
        seek = self._seek_point(plans[0], max(preroll, AUDIO_PREROLL if heard else Fraction(0)))
        return compose(
            self.source, self.indices, plans, heard, self.rendering, seek, texts, self.device
        )

    def _is_heard(self, plan: Plan) -> bool:
        if self.audio is None:
            return False
        start, end = (edge / self.audio.time_base for edge in (plan.start, plan.end))
        begins, ends = self.audio.pts, self.audio.pts + self.audio.duration
        return bool(np.any((begins < clamp(ceil(end))) & (ends > clamp(floor(start)))))

    def _seek_point(self, plan: Plan, preroll: Fraction) -> Fraction | None:
        """Seconds of the last keyframe at or before ``plan``, ``preroll`` seconds ahead; None
        where that is the first."""
        keyframes = np.sort(self.video.pts[self.video.keyframe])
        pts = floor((plan.start - preroll) / self.video.time_base)
        place = int(np.searchsorted(keyframes, pts, side="right")) - 1
        return int(keyframes[place]) * self.video.time_base if place > 0 else None
