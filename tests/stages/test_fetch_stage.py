"""The stage `download` against servers: what its parameters do, and what is no video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reelmill.tasks import get_stage
from reelmill.tasks.download import DownloadParams

from .bad_server import BadServer
from .media_samples import sample
from .test_stages import Bench

PAGES = {
    "html": b"<!DOCTYPE html>\n<html><head><title>Log in</title>",
    "comment": b"<!-- cached --><html><body>Gone</body></html>",
    "fragment": b"\r\n  <p>This video is not available in your country.</p>",
    "utf-16": "<html>Sign in</html>".encode("utf-16"),
    "bom": b"\xef\xbb\xbf<html><body>" + b"x" * 100_000,
    "json": json.dumps({"error": "quota exceeded"}).encode(),
    "list": b'["not", "a", "video"]',
    "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "text": b"404 page not found\n",
    "playlist": b"#EXTM3U\n#EXTINF:4,\nhttp://127.0.0.1/a.ts\n",
    "image": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(500),
}


@pytest.fixture
def server() -> Iterator[BadServer]:
    with BadServer() as running:
        yield running


def download(bench: Bench, urls: list[str], **params: Any) -> dict[str, str]:
    """The reasons of the rejects by the last part of their URL; of a sample it is empty."""
    shard = bench.make("download", bench.rows("\n".join(["url", *urls]) + "\n"), **params)
    rejects = bench.rejects(shard)
    keys = sorted([*rejects, *bench.samples(shard)])
    return {
        url.rpartition("/")[2]: rejects.get(key, "") for url, key in zip(urls, keys, strict=True)
    }


def test_a_page_in_place_of_a_video_is_no_video(server: BadServer, tmp_path: Path) -> None:
    urls = [
        server.on(f"/{name}", body=body, Content_Type="video/mp4") for name, body in PAGES.items()
    ]
    found = download(Bench(tmp_path), urls, allow_private=True)
    assert found == dict.fromkeys(PAGES, "not_video")


def test_what_the_parameters_of_a_download_do(server: BadServer, tmp_path: Path) -> None:
    body = sample("silent.mp4").read_bytes()
    urls = [
        server.on("/good.mp4", body=body, X_Robots_Tag="otherbot: noai"),
        server.on("/tagged.mp4", body=body, X_Robots_Tag="noai"),
        server.on("/disallowed.mp4", body=body),
        server.on("/out/mine.mp4", body=body),
        server.on("/geo.mp4", status=451),
    ]
    server.on("/robots.txt", body=b"User-agent: *\nDisallow: /disallowed\n")
    found = download(
        Bench(tmp_path),
        urls,
        allow_private=True,
        robots=True,
        noai=True,
        opt_out=["*/out/*"],
        per_host=2,
        rate="1000",
        deadline="1m",
        extractors={"*.mp4": "http"},
    )
    assert found == {
        "good.mp4": "",
        "tagged.mp4": "opted_out",
        "disallowed.mp4": "robots",
        "mine.mp4": "opted_out",
        "geo.mp4": "geo",
    }
    assert server.seen("/out/mine.mp4") == server.seen("/disallowed.mp4") == []


def test_a_proxy_for_downloads(server: BadServer, tmp_path: Path) -> None:
    body = sample("silent.mp4").read_bytes()
    url = "http://far.invalid/a.mp4"
    server.on(url, body=body)
    assert download(Bench(tmp_path), [url], proxy=server.url("")) == {"a.mp4": ""}


@pytest.mark.parametrize(
    "params",
    [{"proxy": "ftp://h"}, {"proxy": "h:1"}, {"rate": "0"}, {"per_host": 0}, {"deadline": "0s"}],
)
def test_parameters_that_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DownloadParams.model_validate(params)


def test_failures_that_may_pass_are_those_of_the_table() -> None:
    stage = get_stage("download")
    passing = ("host_down", "deadline", "robots_unreachable", "http_503", "tls", "truncated")
    assert all(map(stage.may_pass, passing))
    assert not any(map(stage.may_pass, ("geo", "login", "robots", "opted_out", "not_video")))
