"""Every line of the table in docs/fetching.md, as it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from reelmill.fetch import http
from reelmill.fetch.fetcher import Fetched, FetchFailure, FetchPolicy, fetch_iter
from reelmill.fetch.transfer import REASONS, may_pass

from . import fetch_table
from .certificates import Authority
from .fetch_table import BODY, CASES, FILE, Arena, Case

POLICY = FetchPolicy(
    timeout_s=20,
    connect_timeout_s=2,
    idle_timeout_s=10,
    backoff_s=0.01,
    attempts=2,
    max_bytes=3_000_000,
    allow_private=True,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def arena(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with ExitStack() as stack:
        yield Arena(authority, stack)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.does)
def test_what_becomes_of_it(
    case: Case, arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(POLICY, **case.policy, allow_private=case.public is None)
    if case.public is not None:
        monkeypatch.setattr(http, "is_public", case.public.__eq__)
    ((_, outcome),) = fetch_iter([("key", case.serve(arena))], policy, tmp_path)
    if case.becomes == FILE:
        assert isinstance(outcome, Fetched)
        with outcome:
            assert outcome.read() in (BODY, b"<html>Log in</html>")
        assert outcome.provenance.status in (200, 206)
        assert outcome.provenance.address == "127.0.0.1"
    else:
        assert isinstance(outcome, FetchFailure)
        assert outcome.reason == case.becomes
        assert "secret" not in outcome.message
        assert outcome.reason in REASONS or outcome.reason.startswith("http_")
        assert not outcome.transient or may_pass(outcome.reason)
    assert outcome.provenance.attempts == case.attempts
    assert outcome.provenance.extractor == "http"
    assert list(tmp_path.iterdir()) == []


def test_the_document_holds_the_tables() -> None:
    text = fetch_table.DOCUMENT.read_text(encoding="utf-8")
    assert fetch_table.updated(text) == text, "run python -m tests.stages.fetch_table"


@pytest.mark.parametrize(
    ("reason", "passes"),
    [
        ("http_404", False),
        ("http_403", False),
        ("http_408", True),
        ("http_429", True),
        ("http_503", True),
        ("http_5031", False),
        ("host_down", True),
        ("deadline", True),
        ("tls", True),
        ("removed", False),
        ("not_video", False),
        ("anything", False),
    ],
)
def test_reasons_that_may_pass(reason: str, passes: bool) -> None:
    assert may_pass(reason) is passes
