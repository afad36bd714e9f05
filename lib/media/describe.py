"""All that can be known of a file without decoding it: what ffprobe tells, and more."""

from __future__ import annotations

from dataclasses import dataclass

from reelmill.media.probe import Source, StreamInfo, VideoInfo, examine, probe
from reelmill.media.timing import Timing, timing_of


@dataclass(frozen=True, eq=False)
class MediaInfo:
    """What is in a file. ``video`` is what its header and its first frame tell of the best video
    stream, ``timing`` what all packets of that one do: by the header's index where that is exact
    (``timing_source`` is then ``index``, else ``packets``)."""

    video: VideoInfo
    streams: tuple[StreamInfo, ...]
    timing: Timing
    timing_source: str

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "video": self.video.as_json(),
            "streams": [stream.as_json() for stream in self.streams],
            "timing": {"source": self.timing_source, **self.timing.as_json()},
        }


def describe(source: Source) -> MediaInfo:
    """Say all that is in ``source``; one pass, which decodes the first frame only.

    Raises :class:`~reelmill.errors.Rejected` as ``probe`` does, and with the reason ``timestamps``;
    ``OSError`` where a path cannot be read.
    """
    found = examine(source, packets=True)
    assert found.table is not None
    timing = timing_of(found.table)
    return MediaInfo(found.info, found.streams, timing, "index" if found.by_index else "packets")


def look(source: Source, *, packets: bool) -> tuple[VideoInfo, Timing | None]:
    """What :func:`describe` says of the video, or without ``packets`` only what ``probe`` does."""
    if not packets:
        return probe(source), None
    found = describe(source)
    return found.video, found.timing
