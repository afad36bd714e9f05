"""Subtitles: read out of a video or from WebVTT, cut by time, written as WebVTT."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any

import av

from reelmill.media.probe import Source, demux, open_media

MAX_CUES = 100_000
"""Cues beyond that many of one track are left out: a file of strangers may claim any number."""

MAX_TEXT = 10_000
"""Characters of a cue beyond which its text is cut off."""

MAX_TEXTS = 2**24
"""Characters of all cues of a video's tracks, or bytes of a file of them; the rest is left out."""

MAX_TRACKS = 64
"""Tracks of a video beyond which the others are left out: each is a file, to an encoder."""

_TEXT_CODECS = frozenset({"subrip", "srt", "webvtt", "mov_text", "ass", "ssa", "text"})
_TIME = re.compile(r"(?:(\d{1,4}):)?(\d\d):(\d\d)[.,](\d{3})", re.ASCII)
_ARROW = re.compile(r"\s*(\S+)\s+-->\s+(\S+)")
_ASS_STYLE = re.compile(r"\{[^}]*\}")


@dataclass(frozen=True)
class Cue:
    """A text from ``start`` to ``end`` (seconds), marked up as WebVTT: ``&`` is ``&amp;``."""

    start: Fraction
    end: Fraction
    text: str


@dataclass(frozen=True)
class Track:
    """The cues of one stream, and its language (as the container writes it) if that is known."""

    language: str | None
    cues: Sequence[Cue]

    @cached_property
    def script(self) -> Script:
        """The same, to cut."""
        return Script(self.cues)


def tracks_of(source: Source) -> list[Track]:
    """The text subtitles of a video, stream by stream, on its own clock; pictures are left out.

    Cues that cannot be read are left out. Raises as :func:`~reelmill.media.probe.open_media` does.
    """
    with open_media(source) as container:
        streams = [s for s in container.streams.subtitles if s.name in _TEXT_CODECS][:MAX_TRACKS]
        if not streams:
            return []
        cues: dict[int, list[Cue]] = {stream.index: [] for stream in streams}
        left = MAX_TEXTS
        for packet in demux(container, streams):
            own = cues[packet.stream.index]
            if packet.size and packet.pts is not None and len(own) < MAX_CUES and left > 0:
                found = list(_cues_in(packet))
                own += found
                left -= sum(len(cue.text) for cue in found)
        return [Track(_language(stream), _sorted(cues[stream.index])) for stream in streams]


def parse_webvtt(data: bytes) -> list[Cue]:
    """The cues of a WebVTT (or SubRip) file, by start; blocks that are none are left out."""
    text = _with_newlines(data[:MAX_TEXTS].decode("utf-8-sig", errors="replace"))
    cues: list[Cue] = []
    for block in re.split(r"\n{2,}", text):
        lines = block.strip("\n").split("\n")
        at = next((i for i, line in enumerate(lines[:2]) if "-->" in line), None)
        times = _ARROW.match(lines[at]) if at is not None else None
        edges = [_seconds(edge) for edge in times.groups()] if times else []
        if at is None or None in edges or not edges:
            continue
        if len(cues) == MAX_CUES:
            break
        start, end = (Fraction(edge or 0) for edge in edges)
        body = "\n".join(lines[at + 1 :]).strip()
        if body and start < end:
            cues.append(Cue(start, end, body[:MAX_TEXT]))
    return _sorted(cues)


class Script:
    """Cues in any order, of which many clips ask what is theirs: each without a look at all."""

    def __init__(self, cues: Iterable[Cue]) -> None:
        self._cues = sorted(enumerate(cues), key=lambda place_cue: place_cue[1].start)
        self._starts = [cue.start for _, cue in self._cues]
        self._ends = list(accumulate((cue.end for _, cue in self._cues), max))

    def cut(self, start: Fraction, end: Fraction) -> list[Cue]:
        """What is shown between ``start`` and ``end``, on a clock that is 0 at ``start``; in the
        order in which the cues were given."""
        begin, stop = bisect_right(self._ends, start), bisect_left(self._starts, end)
        found = [
            (place, Cue(max(cue.start, start) - start, min(cue.end, end) - start, cue.text))
            for place, cue in self._cues[begin:stop]
            if max(cue.start, start) < min(cue.end, end)
        ]
        return [cue for _, cue in sorted(found, key=lambda place_cue: place_cue[0])]


def webvtt(cues: Iterable[Cue]) -> bytes:
    """A WebVTT file; times are rounded to milliseconds."""
    lines = ["WEBVTT", ""]
    for cue in cues:
        # A blank line would end the cue, an arrow would begin another.
        text = "\n".join(row for row in _with_newlines(cue.text).split("\n") if row.strip())
        text = text.replace("-->", "--&gt;").strip()
        lines += [f"{_clock(cue.start)} --> {_clock(cue.end)}", text, ""]
    return "\n".join(lines).encode()


def _with_newlines(text: str) -> str:
    """``text`` with one kind of line ends: WebVTT has three."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def _cues_in(packet: Any) -> Iterator[Cue]:
    base = Fraction(packet.time_base)
    start = packet.pts * base
    end = start + (packet.duration or 0) * base
    with suppress(av.FFmpegError, UnicodeDecodeError):
        for one in packet.decode():
            text = _plain(getattr(one, "ass", b""))
            if text and start < end:
                yield Cue(start, end, text[:MAX_TEXT])


def _plain(event: bytes | str) -> str:
    """The text of an ASS event (``order,layer,style,…,text``) without styles, as WebVTT's."""
    text = event.decode(errors="replace") if isinstance(event, bytes) else event
    text = text.split(",", 8)[-1]
    text = _ASS_STYLE.sub("", text).replace(r"\N", "\n").replace(r"\n", "\n").replace(r"\h", " ")
    return text.replace("&", "&amp;").replace("<", "&lt;").strip()


def _language(stream: Any) -> str | None:
    language = stream.metadata.get("language", "")
    return language if re.fullmatch(r"[A-Za-z]{2,3}", language) and language != "und" else None


def _sorted(cues: list[Cue]) -> list[Cue]:
    return sorted(cues, key=lambda cue: (cue.start, cue.end))


def _seconds(text: str) -> Fraction | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    hours, minutes, seconds, thousandths = (int(part or 0) for part in found.groups())
    return Fraction(((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths, 1000)


def _clock(seconds: Fraction) -> str:
    minutes, rest = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
