"""Damaged files: one function for each kind of damage, and what a probe must say of it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import av

from reelmill.media.ffmpeg import ffmpeg_exe

from .media_samples import make_video, sample, x264

_MADE = TemporaryDirectory(prefix="reelmill-damaged-")

HTML = b"\xef\xbb\xbf \n<!DOCTYPE html>\n<html><head><title>404</title></head></html>" * 40

USABLE = None
"""In place of a reason: pictures with times can be had of it, so it must come through."""


class Damage(NamedTuple):
    """A file, and the reason for which a look at its packets must reject it (or ``USABLE``)."""

    make: Callable[[], bytes]
    reason: str | None


def _data(name: str) -> bytes:
    return sample(name).read_bytes()


def _half(name: str) -> Callable[[], bytes]:
    return lambda: _data(name)[: len(_data(name)) // 2]


def _made(name: str, **options: object) -> bytes:
    """A silent video of 90 frames, with options of :func:`make_video`."""
    path = Path(_MADE.name) / name
    return make_video(path, 90, **{"options": x264(), **options}).read_bytes()  # type: ignore[arg-type]


def _remuxed(*args: str | Path) -> bytes:
    path = Path(_MADE.name) / "remuxed.mp4"
    command = [ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *map(str, args), str(path)]
    subprocess.run(command, check=True)
    return path.read_bytes()


# MP4


def _box(data: bytes, kind: bytes) -> tuple[int, int]:
    """Where the contents of the first box of a kind begin and end."""
    at = data.index(kind)
    return at + 4, at - 4 + int.from_bytes(data[at - 4 : at])


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _filled(name: str, kind: bytes, start: float, end: float, value: int = 0) -> bytes:
    """A sample of whose first box of a kind the part from ``start`` to ``end`` (0 to 1) is one
    value."""
    data = _data(name)
    first, last = _box(data, kind)
    a, b = (first + int((last - first) * share) for share in (start, end))
    return _patched(data, a, bytes([value]) * (b - a))


def _without_index() -> bytes:
    data = _data("plain.mp4")
    return data[: data.index(b"moov") - 4]


def _renamed(old: bytes, new: bytes) -> Callable[[], bytes]:
    return lambda: _data("silent.mp4").replace(old, new)


def _flipped() -> bytes:
    """Bits of one byte in 200 are turned over, behind the first GOP."""
    data = bytearray(_data("silent.mp4"))
    first, last = _box(bytes(data), b"mdat")
    places = random.Random(1)
    for _ in range((last - first) // 200):
        at = places.randrange(first + (last - first) // 3, last)
        data[at] ^= places.randrange(1, 256)
    return bytes(data)


def _runs(data: bytes, runs: list[tuple[int, int]]) -> bytes:
    """Other times between frames; a table that grows takes its room from the edit list's box."""
    first, last = _box(data, b"stts")
    body = b"".join(count.to_bytes(4) + delta.to_bytes(4) for count, delta in runs)
    table = data[first : first + 4] + len(runs).to_bytes(4) + body
    grown = len(table) - (last - first)
    out = data[:first] + table + data[last:]
    at = data.index(b"stts")
    for kind in (b"stts", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        at = out.rindex(kind, 0, at + 4)
        length = int.from_bytes(out[at - 4 : at]) + grown
        out = _patched(out, at - 4, length.to_bytes(4))
    return out


def _timed(*runs: tuple[int, int], ticks: int = 30) -> Callable[[], bytes]:
    """90 frames, so many of them so many ticks before the next, of which a second has ``ticks``."""

    def made() -> bytes:
        options = {"video_track_timescale": str(ticks), "use_editlist": "0"}
        return _runs(
            _made("ticks.mp4", options=x264(bframes=0), container_options=options), list(runs)
        )

    return made


def _zeroed(name: str, start: float, end: float) -> Callable[[], bytes]:
    """A sample of which the part from ``start`` to ``end`` (0 to 1) is zero."""

    def made() -> bytes:
        data = _data(name)
        a, b = int(len(data) * start), int(len(data) * end)
        return _patched(data, a, bytes(b - a))

    return made


def _table(kind: bytes, change: Callable[[int, int], int], head: int) -> Callable[[], bytes]:
    """The silent sample with changed 32-bit entries (index, value) of a table."""

    def made() -> bytes:
        data = bytearray(_data("silent.mp4"))
        first, last = _box(bytes(data), kind)
        for index, at in enumerate(range(first + head, last, 4)):
            value = change(index, int.from_bytes(data[at : at + 4]))
            data[at : at + 4] = value.to_bytes(4)
        return bytes(data)

    return made


def _hides_all() -> bytes:
    data = _data("silent.mp4")
    return _patched(data, _box(data, b"elst")[0] + 12, (2**30).to_bytes(4))


def _torn_setup() -> bytes:
    """The decoder's setup (avcC) says that there are no parameter sets, and ends."""
    data = _data("silent.mp4")
    first, last = _box(data, b"avcC")
    return _patched(data, first + 5, bytes(last - first - 5))


def _encrypted() -> bytes:
    key = "76a6c65c5ea762046bd749a2e632ccbb"
    scheme = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", key)
    return _remuxed("-i", sample("silent.mp4"), "-c", "copy", *scheme, "-encryption_kid", key)


def _headless(name: str) -> bytes:
    """One long GOP without its keyframe."""
    path, out = Path(_MADE.name) / f"whole-{name}", Path(_MADE.name) / name
    make_video(path, 90, options=x264(bframes=0, keyint=250))
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size and not packet.is_keyframe:
                packet.stream = stream
                target.mux(packet)
    return out.read_bytes()


# AVI


def _raw_avi(width: int, height: int) -> Callable[[], bytes]:
    """Raw pictures, of which the header states another size."""

    def made() -> bytes:
        data = _made("raw.avi", codec="rawvideo", options={})
        at = data.index(b"strf") + 8 + 4
        return _patched(data, at, width.to_bytes(4, "little") + height.to_bytes(4, "little"))

    return made


def _without_rate() -> bytes:
    """The rate of the frames is 0/0, and no packet has a time of its own."""
    data = _data("plain.avi")
    at = data.index(b"strh") + 8 + 20
    return _patched(data, at, bytes(8))


# Matroska


def _elements(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The elements of one level: ID, where the contents begin and end."""
    while at < end:
        width = 9 - data[at].bit_length()
        name, at = data[at : at + width], at + width
        width = 9 - data[at].bit_length()
        length = int.from_bytes(data[at : at + width]) & ((1 << 7 * width) - 1)
        at += width
        yield name, at, at + length
        at += length


def _blocks(data: bytes) -> list[int]:
    """Where the 16-bit times of the blocks are."""
    found = []
    for name, start, end in _elements(data, 0, len(data)):
        if name != b"\x18\x53\x80\x67":
            continue
        for cluster, first, last in _elements(data, start, end):
            if cluster != b"\x1f\x43\xb6\x75":
                continue
            for kind, a, b in _elements(data, first, last):
                if kind == b"\xa3":
                    found.append(a + 1)
                elif kind == b"\xa0":
                    found += [c + 1 for block, c, _ in _elements(data, a, b) if block == b"\xa1"]
    return found


def _retimed(change: Callable[[int], int]) -> Callable[[], bytes]:
    """90 even frames in Matroska, without B-frames, with other times: of frame ``number``, ms."""

    def made() -> bytes:
        data = _made("even.mkv", options=x264(bframes=0))
        for number, at in enumerate(_blocks(data)):
            data = _patched(data, at, change(number).to_bytes(2, signed=True))
        return data

    return made


# MPEG-TS


def _stamps(data: bytes) -> Iterator[int]:
    """Where the headers of the video's PES packets begin."""
    for packet in range(0, len(data) - 187, 188):
        begins, fields = data[packet + 1] & 0x40, data[packet + 3] >> 4 & 3
        at = packet + 4 + (data[packet + 4] + 1 if fields & 2 else 0)
        if begins and data[at : at + 4] == b"\0\0\1\xe0":
            yield at


def _unstamped() -> bytes:
    """No PES packet has a time."""
    data = bytearray(_data("plain.ts"))
    for at in _stamps(bytes(data)):
        data[at + 7] &= 0x3F
        length = data[at + 8]
        data[at + 9 : at + 9 + length] = b"\xff" * length
    return bytes(data)


def _leaping() -> bytes:
    """A stream whose clock jumps ahead by ten hours."""
    data = bytearray(_made("leap.ts", options=x264(bframes=0)))
    for number, at in enumerate(_stamps(bytes(data))):
        if number >= 45:
            old = data[at + 9 : at + 14]
            ticks = (old[0] >> 1 & 7) << 30 | old[1] << 22 | (old[2] >> 1) << 15
            ticks |= old[3] << 7 | old[4] >> 1
            ticks += 36_000 * 90_000
            data[at + 9] = old[0] & 0xF1 | (ticks >> 30 & 7) << 1
            data[at + 10] = ticks >> 22 & 0xFF
            data[at + 11] = (ticks >> 15 & 0x7F) << 1 | 1
            data[at + 12] = ticks >> 7 & 0xFF
            data[at + 13] = (ticks & 0x7F) << 1 | 1
    return bytes(data)


YEAR = 365 * 24 * 3600 * 30
"""In ticks of 1/30 s."""

DAMAGED: dict[str, Damage] = {
    "empty.mp4": Damage(lambda: b"", "empty"),
    "page.mp4": Damage(lambda: HTML, "not_video"),
    "zeroed_header.mp4": Damage(lambda: _patched(_data("fast.mp4"), 0, bytes(4096)), "not_video"),
    "zeros.mkv": Damage(lambda: bytes(5000), "not_video"),
    "no_index.mp4": Damage(_without_index, "truncated"),
    "half.mp4": Damage(_half("fast.mp4"), "truncated"),
    "half.mkv": Damage(_half("plain.mkv"), "truncated"),
    "half.avi": Damage(_half("plain.avi"), "truncated"),
    "half.flv": Damage(_half("plain.flv"), "truncated"),
    "half.webm": Damage(_half("vp9.webm"), "truncated"),
    "half_fragmented.mp4": Damage(_half("fragmented.mp4"), "truncated"),
    "half.ts": Damage(_half("plain.ts"), USABLE),
    "half_live.mkv": Damage(_half("live.mkv"), USABLE),
    "beyond_end.mp4": Damage(_table(b"stco", lambda _, v: v + 2**24, 8), "truncated"),
    "audio.m4a": Damage(lambda: _data("audio.m4a"), "no_video_stream"),
    "cover.m4a": Damage(lambda: _data("cover.m4a"), "no_video_stream"),
    "garbled_index.mp4": Damage(lambda: _filled("fast.mp4", b"moov", 0, 1, 0xFF), "undecodable"),
    "garbled_media.mp4": Damage(lambda: _filled("silent.mp4", b"mdat", 0, 1, 0xFF), "undecodable"),
    "zeroed_middle.mp4": Damage(lambda: _filled("silent.mp4", b"mdat", 0.4, 0.6), USABLE),
    "zeroed_middle.mkv": Damage(_zeroed("live.mkv", 0.4, 0.6), USABLE),
    "zeroed_middle.ts": Damage(_zeroed("plain.ts", 0.4, 0.6), USABLE),
    "zeroed_middle.avi": Damage(_zeroed("plain.avi", 0.4, 0.6), USABLE),
    "zeroed_middle.flv": Damage(_zeroed("plain.flv", 0.4, 0.6), USABLE),
    "zeroed_tracks.mkv": Damage(_zeroed("plain.mkv", 0.001, 0.02), "undecodable"),
    "flipped.mp4": Damage(_flipped, USABLE),
    "headless.mp4": Damage(lambda: _headless("headless.mp4"), "undecodable"),
    "headless.mkv": Damage(lambda: _headless("headless.mkv"), "undecodable"),
    "wrong_codec.mp4": Damage(_renamed(b"avc1", b"hvc1"), "undecodable"),
    "unknown_codec.mp4": Damage(_renamed(b"avc1", b"zzzz"), "undecodable"),
    "torn_setup.mp4": Damage(_torn_setup, "undecodable"),
    "encrypted.mp4": Damage(_encrypted, "drm"),
    "no_size.avi": Damage(_raw_avi(0, 0), "undecodable"),
    "giant.avi": Damage(_raw_avi(60_000, 60_000), "undecodable"),
    "small_samples.mp4": Damage(_table(b"stsz", lambda i, v: v if i < 2 else 3, 4), "undecodable"),
    "large_samples.mp4": Damage(
        _table(b"stsz", lambda i, v: v if i < 2 else 2**20, 4), "truncated"
    ),
    "hides_all.mp4": Damage(_hides_all, "undecodable"),
    "all_at_once.mp4": Damage(_timed((90, 0)), "timestamps"),
    "a_year_ahead.mp4": Damage(_timed((44, 1), (1, YEAR), (45, 1)), "timestamps"),
    "negative_steps.mp4": Damage(_timed((90, 2**32 - 1), ticks=90_000), "timestamps"),
    "one_negative_step.mp4": Damage(_timed((44, 1), (1, 2**32 - 1), (45, 1)), USABLE),
    "all_at_once.mkv": Damage(_retimed(lambda _: 0), "timestamps"),
    "shuffled.mkv": Damage(
        _retimed(lambda number: random.Random(number).randrange(3000)), "timestamps"
    ),
    "set_back.mkv": Damage(_retimed(lambda number: number % 45 * 33), USABLE),
    "coding_order.mkv": Damage(_retimed(lambda number: (number ^ 1) * 33), USABLE),
    "unstamped.ts": Damage(_unstamped, "timestamps"),
    "ten_hours_ahead.ts": Damage(_leaping, "timestamps"),
    "no_rate.avi": Damage(_without_rate, USABLE),
    "grown.ts": Damage(lambda: _data("grown.ts"), USABLE),
}


@cache
def damaged(name: str) -> Path:
    """A damaged file by name, made once in a run of the tests."""
    path = Path(_MADE.name) / f"made-{name}"
    path.write_bytes(DAMAGED[name].make())
    return path
