"""Which source an address goes to."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from reelmill.fetch.patterns import matcher
from reelmill.fetch.rules import HOSTS, SITES, Rules, rules_of
from reelmill.fetch.sources import Sources
from reelmill.fetch.transfer import FetchPolicy
from reelmill.fetch.urls import normalise


def source_of(url: str, rules: Rules) -> str:
    return Sources(FetchPolicy(rules=rules), AsyncExitStack()).name(normalise(url))


@pytest.mark.parametrize("host", HOSTS)
def test_video_sites_go_to_yt_dlp_by_themselves(host: str) -> None:
    assert source_of(f"https://{host}/watch?v=1", SITES) == "yt-dlp"
    assert source_of(f"https://www.{host}/", SITES) == "yt-dlp"
    assert source_of(f"https://{host}.example.org/", SITES) == "http"
    assert source_of(f"https://not{host}/", SITES) == "http"
    assert source_of(f"https://example.org/{host}/?u={host}", SITES) == "http"


@pytest.mark.parametrize("url", ["s3://youtube.com/a/b", "file:///youtube.com/a"])
def test_rules_are_for_web_addresses(url: str) -> None:
    assert source_of(url, rules_of("yt-dlp", {"*": "yt-dlp"})) == url.partition(":")[0]


def test_one_extractor_can_be_forced_for_all_and_others_for_some() -> None:
    rules = rules_of("http", {"example.org": "yt-dlp"})
    assert source_of("https://youtu.be/x", rules) == "http"
    assert source_of("https://films.example.org:8443/x", rules) == "yt-dlp"
    assert source_of("https://a.example/x", rules_of("yt-dlp", {})) == "yt-dlp"


def test_the_longest_pattern_counts_whatever_their_order() -> None:
    rules = {
        "example.org": "yt-dlp",
        "https://example.org/raw/*": "http",
        "https://example.org/raw/pages/*": "yt-dlp",
    }
    for order in (rules, dict(reversed(rules.items()))):
        found = rules_of("auto", order)
        assert source_of("https://example.org/a", found) == "yt-dlp"
        assert source_of("https://example.org/raw/a.mp4", found) == "http"
        assert source_of("https://example.org/raw/pages/a", found) == "yt-dlp"
        assert source_of("https://youtu.be/a", found) == "yt-dlp"


@pytest.mark.parametrize(
    ("pattern", "url", "does"),
    [
        ("example.org", "https://example.org", True),
        ("Example.ORG", "http://a.b.example.org:81?q", True),
        ("example.org", "https://example.org./", True),
        ("example.org", "https://exampleXorg/", False),
        ("example.org", "https://a.example/?https://example.org/", False),
        ("10.0.0.1", "http://10.0.0.1:8000/x", True),
        ("*.mp4", "https://a.example/b/c.mp4", True),
        ("*.mp4", "https://a.example/b/c.mp4?x", False),
        ("https://*.example.org/v/*", "https://a.example.org/v/1/2", True),
        ("https://*.example.org/v/*", "http://a.example.org/v/1/2", False),
    ],
)
def test_patterns(pattern: str, url: str, does: bool) -> None:
    assert matcher([pattern])(normalise(url)) is does
