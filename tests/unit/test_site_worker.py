"""What the process of yt-dlp chooses, without a site: formats, subtitles, and what is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from yt_dlp import YoutubeDL

from reelmill.fetch import site_worker
from reelmill.fetch.site_options import SiteOptions
from reelmill.fetch.sites import _config, _proxy
from reelmill.fetch.transfer import FetchPolicy

CODECS = {"h264": "avc1.640028", "vp9": "vp09.00.40.08", "av1": "av01.0.08M.08"}


def config(folder: Path, **options: Any) -> dict[str, Any]:
    return _config(FetchPolicy(sites=SiteOptions(**options)), folder)


def params(folder: Path, **options: Any) -> dict[str, Any]:
    request = {"url": "https://a.example/", "folder": str(folder), "proxy": ""}
    return site_worker._params(config(folder, **options), request)


_GREEDY = """
from reelmill.fetch.site_worker import _limit

_limit({"max_bytes": 1, "programs": ["deno"]})
try:
    bytearray(2 << 30)
except MemoryError:
    print("refused")
"""


def test_no_page_fills_the_memory_whatever_programs_may_run() -> None:
    done = subprocess.run([sys.executable, "-c", _GREEDY], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr


def formats(ydl: YoutubeDL, kinds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is chosen of a video's formats."""
    for number, kind in enumerate(kinds):
        kind |= {"format_id": str(number), "url": f"https://a.example/{number}", "tbr": 100}
    info = {"id": "x", "title": "t", "extractor": "a", "webpage_url": "https://a.example/"}
    found = ydl.process_ie_result({**info, "formats": kinds}, download=False)
    return site_worker._chosen(found)


def ladder() -> list[dict[str, Any]]:
    """Each codec at three heights without sound, sound alone, and one small file with both."""
    silent = [
        {"ext": "webm", "vcodec": codec, "acodec": "none", "height": height, "width": height}
        for codec in CODECS.values()
        for height in (360, 720, 1080)
    ]
    sound = {"ext": "m4a", "vcodec": "none", "acodec": "mp4a.40.2"}
    both = {"ext": "mp4", "vcodec": "avc1", "acodec": "mp4a.40.2", "height": 240, "width": 320}
    return [*silent, sound, both]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("height", [720, 1080])
def test_the_tallest_within_the_limit_has_the_preferred_codec(
    tmp_path: Path, codec: str, height: int
) -> None:
    with YoutubeDL(params(tmp_path, codec=codec, max_height=height)) as ydl:
        video, sound = formats(ydl, ladder())
    assert (video["vcodec"], video["height"]) == (CODECS[codec], height)
    assert sound["vcodec"] == "none"


def test_sound_is_left_out_or_all_there_is(tmp_path: Path) -> None:
    with YoutubeDL(params(tmp_path, audio="none")) as ydl:
        (video,) = formats(ydl, ladder())
    assert (video["acodec"], video["height"]) == ("none", 1080)
    with YoutubeDL(params(tmp_path, audio="only")) as ydl:
        (sound,) = formats(ydl, ladder())
    assert sound["vcodec"] == "none"


def test_a_format_of_unknown_height_is_taken(tmp_path: Path) -> None:
    with YoutubeDL(params(tmp_path, max_height=100)) as ydl:
        (chosen,) = formats(ydl, [{"ext": "mp4"}])
    assert chosen["format_id"] == "0"


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (None, "unsupported_url"),
        ({"_type": "playlist", "entries": []}, "playlist"),
        ({"_type": "multi_video"}, "playlist"),
        ({"is_live": True}, "live"),
        ({"live_status": "is_upcoming"}, "live"),
        ({"has_drm": True}, "drm"),
        ({"requested_formats": [{}, {"has_drm": True}]}, "drm"),
    ],
)
def test_what_is_no_single_finished_video_is_refused(
    info: dict[str, Any] | None, reason: str
) -> None:
    with pytest.raises(site_worker._TroubleError) as caught:
        site_worker._chosen(info)
    assert caught.value.trouble.reason == reason


def test_a_site_is_asked_no_faster_than_it_should_be(tmp_path: Path) -> None:
    told = params(tmp_path, rate_limit=1000, sleep_s=2.5)
    assert told["ratelimit"] == 1000
    assert told["sleep_interval"] == told["sleep_interval_requests"] == 2.5
    assert not params(tmp_path)["sleep_interval"]


def test_the_proxy_of_a_key_is_always_the_same() -> None:
    options = SiteOptions(proxies=("http://a.example:1", "http://b.example:1"))
    chosen = [_proxy(options, f"{key:09d}") for key in range(100)]
    assert chosen == [_proxy(options, f"{key:09d}") for key in range(100)]
    assert 30 < chosen.count(options.proxies[0]) < 70
    assert _proxy(SiteOptions(), "000000000") == ""


def texts(folder: Path, info: dict[str, Any], **options: Any) -> dict[str, bytes]:
    found = site_worker._texts(None, folder, config(folder, **options), {"id": "x", **info})
    return {field: (folder / name).read_bytes() for field, name in found}


def track(text: str, ext: str = "vtt") -> list[dict[str, str]]:
    return [{"ext": "json3", "data": "{}"}, {"ext": ext, "data": text}]


def test_written_subtitles_come_before_recognised_speech(tmp_path: Path) -> None:
    info = {
        "subtitles": {"en": track("written"), "de-AT": track("b"), "de-CH": track("c")},
        "automatic_captions": {"en": track("heard"), "fr": track("gehört")},
    }
    asked = {"subtitles": ("en", "de", "fr", "it")}
    assert texts(tmp_path, info, **asked) == {"en.vtt": b"written", "de.vtt": b"b"}
    assert texts(tmp_path, info, **asked, automatic_captions=True) == {
        "en.vtt": b"written",
        "de.vtt": b"b",
        "fr.auto.vtt": "gehört".encode(),
    }


def test_subrip_becomes_webvtt(tmp_path: Path) -> None:
    text = "\ufeff1\n00:00:01,500 --> 00:00:02,000\nOne, two\n"
    found = texts(tmp_path, {"subtitles": {"en": track(text, "srt")}}, subtitles=("en",))
    assert found["en.vtt"] == b"WEBVTT\n\n1\n00:00:01.500 --> 00:00:02.000\nOne, two\n"


def test_what_is_told_of_a_video_is_what_stays_true() -> None:
    info = {
        "id": "x",
        "title": "\ud800",
        "view_count": 7,
        "epoch": 1,
        "url": "https://a.example/?token=1",
        "duration": float("nan"),
        "width": 10**20,
        "height": 720,
        "tags": ["a", None, {"b": 1}],
        "description": "",
        "chapters": [{"start_time": 0, "end_time": 2.5, "title": "One", "thumbnail": "u"}],
    }
    assert site_worker._about(info) == {
        "id": "x",
        "title": "\\ud800",
        "height": 720,
        "tags": ["a"],
        "chapters": [{"start_time": 0, "end_time": 2.5, "title": "One"}],
    }
