"""What is in a file of sound alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction

import av

from reelmill.errors import Rejected
from reelmill.media.probe import Source, first_frame, open_media


@dataclass(frozen=True)
class SoundInfo:
    """The best audio stream. ``duration`` is in seconds, ``sample_rate`` in hertz."""

    container: str
    codec: str
    duration: Fraction
    sample_rate: int
    channels: int
    channel_layout: str

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self) | {"duration": round(float(self.duration), 6)}


def probe_sound(source: Source) -> SoundInfo:
    """Say what is in ``source``, and that its sound begins to decode.

    Raises :class:`~reelmill.errors.Rejected` as ``probe`` does, and ``no_audio_stream``.
    """
    with open_media(source) as container:
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            raise Rejected("no_audio_stream", "the file holds no sound that can be decoded")
        stream.codec_context.thread_count = 1
        if first_frame(container, stream) is None:
            raise Rejected("undecodable", "the sound does not decode")
        base = Fraction(stream.time_base)
        duration = (stream.duration or 0) * base or Fraction(container.duration or 0, av.time_base)
        return SoundInfo(
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            duration=duration,
            sample_rate=stream.codec_context.sample_rate,
            channels=stream.codec_context.channels,
            channel_layout=stream.codec_context.layout.name,
        )
