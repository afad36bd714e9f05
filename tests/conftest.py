"""Fixtures for tests that need a store: in a folder, or on a real S3 server over HTTP; and what all
processes that run tests make once."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs
from hypothesis import settings
from rich.console import Console

from tests.s3_server import Faults, S3Server
from tests.torch_vision import allow_any_build

# No test fails of the time that it takes, on whatever machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

allow_any_build()

Shared = Callable[[str, Callable[[Path], object]], Path]

_buckets = itertools.count()
_instances: dict[str, dict[str, object]] = {}


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes that run tests have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextlib.contextmanager
def in_turn(common: Path, name: str) -> Iterator[None]:
    """Let one process at a time do what ``name`` says."""
    with (common / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def shared(common: Path) -> Shared:
    """Has a folder filled once, for all processes that run tests."""

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder = common / name
        with in_turn(common, name):
            if not folder.exists():
                half = common / f"{name}.half"
                half.mkdir()
                fill(half)
                half.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def demo_media(shared: Shared) -> Path:
    """The demonstration's videos, which nobody may change."""
    from reelmill.flows.demo import ensure_media

    return shared("media", lambda folder: ensure_media(folder, Console(quiet=True)))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The S3 server of this test session, behind its faulty proxy."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An address below an empty bucket; this process, and those it starts, can reach it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{next(_buckets)}"
    s3_server.make_bucket(bucket)
    s3_server.faults.clear()
    _share_client("patient", bucket)
    yield f"s3://{bucket}/data/store"
    s3_server.faults.clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def impatient_s3_url(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Like ``s3_url``, but drivers try once only and wait for an answer for half a second."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.5)
    _share_client("impatient", s3_url.split("/")[2])
    return s3_url


def _share_client(kind: str, bucket: str) -> None:
    # s3fs keeps an instance for the same arguments, and with it a client with the settings of
    # its first use. A client costs 0.4 s, so tests with the same settings share theirs.
    s3fs.S3FileSystem.clear_instance_cache()
    if kind not in _instances:
        fsspec.filesystem("s3", use_listings_cache=False).exists(bucket)
        _instances[kind] = dict(s3fs.S3FileSystem._cache)
    s3fs.S3FileSystem._cache.update(_instances[kind])


@pytest.fixture
def new_s3_client(s3_url: str) -> Callable[[], None]:
    """Call it after a change of the environment: clients from before do not see the change."""
    return s3fs.S3FileSystem.clear_instance_cache


@pytest.fixture
def s3_faults(s3_server: S3Server, s3_url: str) -> Faults:
    """What goes wrong on the way to ``s3_url``: nothing, until the test says so."""
    return s3_server.faults


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store that does not exist yet: a folder, then one on S3."""
    if request.param == "local":
        return str(tmp_path / "store")
    url: str = request.getfixturevalue("s3_url")
    return url
