"""Videos of sites, through the real yt-dlp in its own processes, from a site on loopback."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reelmill.errors import StageError
from reelmill.fetch import sites
from reelmill.fetch.fetcher import Fetched, FetchFailure, FetchPolicy, fetch_iter
from reelmill.fetch.site_options import SiteOptions
from reelmill.fetch.transfer import AttemptError
from reelmill.media.probe import VideoInfo, probe
from reelmill.media.sound import probe_sound
from tests.video_site import VTT, VideoSite

from .bad_server import BadServer, Exchange
from .media_samples import sample
from .test_stages import Bench, fixed

POLICY = FetchPolicy(
    timeout_s=60,
    backoff_s=0.01,
    attempts=1,
    max_bytes=1 << 20,
    allow_private=True,
    rules=(("*", "yt-dlp"),),
)
Outcome = tuple[bytes, dict[str, bytes]] | FetchFailure


def fetched(scratch: Path, policy: FetchPolicy = POLICY, **urls: str) -> dict[str, Any]:
    """The bytes and the further fields of each video, or its failure."""
    outcomes: dict[str, Outcome] = {}
    for key, outcome in fetch_iter(urls.items(), policy, scratch):
        if isinstance(outcome, Fetched):
            with outcome:
                extras = {
                    name: value.read_bytes() if isinstance(value, Path) else value
                    for name, value in outcome.extras.items()
                }
                outcomes[key] = (outcome.read(), extras)
        else:
            outcomes[key] = outcome
    assert list(scratch.iterdir()) == []
    return outcomes


def asking(**options: Any) -> FetchPolicy:
    return replace(POLICY, sites=SiteOptions(processes=1, **options))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VideoSite]:
    with VideoSite(tmp_path_factory.mktemp("site")) as running:
        yield running


TRACK = (
    '<track kind="subtitles" srclang="{}" src="{}"><track kind="subtitles" srclang="fr" src="x">'
)


@pytest.fixture(scope="module")
def seen(site: VideoSite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What becomes of every page of the site, by one process that must survive them all."""
    text = site.file("/text.vtt", VTT, "text/vtt")
    film = site.file("/film.mp4", sample("plain.mp4").read_bytes())
    hls = site.hls()
    return fetched(
        tmp_path_factory.mktemp("scratch"),
        asking(subtitles=("de", "en"), metadata=True),
        html5=site.page(
            "/html5",
            f'<video src="{film}">{TRACK.format("en-GB", text)}</video>',
            title="Ein Übel 🌍",
        ),
        open_graph=site.open_graph(),
        direct=film,
        hls=hls,
        again=hls,
        moved=site.server.on("/moved", status=302, Location=film),
        two=site.page(
            "/two", f'<video src="{film}"></video><video src="{site.watch("/other")}.mp4"></video>'
        ),
        nothing=site.page("/nothing"),
        empty=site.file("/empty", b"", "text/html"),
        endless=site.endless(),
        gone=site.answers("/gone", 404),
        forbidden=site.answers("/forbidden", 403),
        busy=site.answers("/busy", 429),
        broken=site.answers("/broken", 503),
        lost=site.page("/lost", f'<video src="{site.answers("/lost.mp4", 404)}"></video>'),
        hole=_with_a_hole(site),
        cut=site.page("/cut", f'<video src="{_torn(site)}"></video>'),
        files=site.page(
            "/files",
            '<video><source type="application/x-mpegURL" src="'
            + site.playlist("/f.m3u8", "#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
            + '"></video>',
        ),
    )


def _with_a_hole(site: VideoSite) -> str:
    page = site.hls("/hole")
    site.answers("/hole/high/list0.ts", 404)
    return page


def _torn(site: VideoSite) -> str:
    async def tear(exchange: Exchange) -> None:
        await exchange.head(Content_Type="video/mp4", Content_Length=100_000)
        await exchange.send(sample("plain.mp4").read_bytes()[:50_000])

    return site.server.on("/torn.mp4", tear)


# --- What arrives ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["html5", "open_graph", "direct", "moved"])
def test_a_file_behind_a_page_arrives_as_it_is(seen: dict[str, Any], name: str) -> None:
    assert seen[name][0] == sample("plain.mp4").read_bytes()


def test_subtitles_are_fields_by_the_language_that_was_asked_for(seen: dict[str, Any]) -> None:
    assert set(seen["html5"][1]) == {"en.vtt", "info.json"}
    assert seen["html5"][1]["en.vtt"] == VTT


def test_what_a_site_says_is_kept_without_what_changes(seen: dict[str, Any]) -> None:
    about = json.loads(seen["html5"][1]["info.json"])
    assert about["title"].startswith("Ein Übel 🌍")
    assert about["webpage_url"].endswith("/html5")
    assert not {"epoch", "url", "formats", "http_headers", "view_count"} & set(about)
    assert seen["hls"][1]["info.json"] == seen["again"][1]["info.json"]


def test_pieces_of_picture_and_sound_become_one_file_with_the_same_bytes_each_time(
    seen: dict[str, Any],
) -> None:
    info = probe(seen["hls"][0])
    assert (info.container.split(",")[0], info.height, info.has_audio) == ("mov", 192, True)
    assert seen["hls"][0] == seen["again"][0]


@pytest.mark.parametrize(
    ("name", "reason", "transient"),
    [
        ("two", "playlist", False),
        ("nothing", "unsupported_url", False),
        ("endless", "too_large", False),
        ("gone", "http_404", False),
        ("forbidden", "http_403", False),
        ("busy", "http_429", True),
        ("broken", "http_503", True),
        ("lost", "http_404", False),
        ("hole", "http_404", False),
        ("cut", "truncated", True),
    ],
)
def test_what_failed_has_its_reason(
    seen: dict[str, Any], name: str, reason: str, transient: bool
) -> None:
    failure = seen[name]
    assert isinstance(failure, FetchFailure)
    assert (failure.reason, failure.transient) == (reason, transient)
    assert "\n" not in failure.message
    assert "scratch" not in failure.message


def test_odd_pages_fail_and_no_local_file_is_read(seen: dict[str, Any]) -> None:
    assert isinstance(seen["empty"], FetchFailure)
    assert isinstance(seen["files"], FetchFailure)
    assert seen["files"].reason == "site_error"


# --- What is asked for -----------------------------------------------------------------------


def test_the_height_has_a_limit_and_the_sound_can_be_left_out(
    site: VideoSite, scratch: Path
) -> None:
    found = fetched(
        scratch, asking(max_height=100, audio="none"), a=site.hls("/a"), b=site.watch("/b")
    )
    for data, _ in found.values():
        info = probe(data)
        assert (info.height, info.has_audio) == (96, False)


def test_a_video_that_has_no_format_within_the_limits_is_not_taken(
    site: VideoSite, scratch: Path
) -> None:
    found = fetched(scratch, asking(max_height=50), a=site.hls("/tall"))
    assert found["a"].reason == "no_format"


def test_sound_can_be_all_that_is_taken(site: VideoSite, scratch: Path) -> None:
    found = fetched(scratch, asking(audio="only"), a=site.hls("/s"), b=site.watch("/t"))
    for data, _ in found.values():
        info = probe_sound(data)
        assert (info.codec, round(float(info.duration))) == ("aac", 3)


def test_only_the_extractors_that_are_named_are_used(site: VideoSite, scratch: Path) -> None:
    found = fetched(scratch, asking(allowed_extractors=("youtube",)), a=site.watch("/only"))
    assert found["a"].reason == "unsupported_url"


def test_cookies_are_sent_and_their_file_is_never_changed(site: VideoSite, scratch: Path) -> None:
    path = scratch.parent / "cookies.txt"
    path.write_text(
        "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t2147483647\tname\tvalue\n"
    )
    path.chmod(0o400)
    before = path.read_bytes()
    url = site.server.on("/asks", body=b"no", Set_Cookie="other=1", Content_Type="text/html")
    fetched(scratch, asking(cookies=str(path)), a=url)
    assert site.server.seen("/asks")[-1].headers["cookie"].startswith("name=value")
    assert path.read_bytes() == before


def test_cookies_come_from_a_browser(
    site: VideoSite, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = scratch.parent / ".mozilla/firefox/a.default"
    profile.mkdir(parents=True)
    with closing(sqlite3.connect(profile / "cookies.sqlite")) as base, base:
        base.execute(
            "CREATE TABLE moz_cookies (host, name, value, path, expiry, isSecure, originAttributes)"
        )
        row = ("127.0.0.1", "from", "firefox", "/", 2147483647, 0, "")
        base.execute("INSERT INTO moz_cookies VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    monkeypatch.setenv("HOME", str(scratch.parent))
    url = site.server.on("/browser", body=b"no", Content_Type="text/html")
    fetched(scratch, asking(cookies_from_browser="firefox"), a=url)
    assert site.server.seen("/browser")[-1].headers["cookie"] == "from=firefox"


def test_videos_of_an_archive_are_not_taken(site: VideoSite, scratch: Path) -> None:
    path = scratch.parent / "archive.txt"
    path.write_text("generic old\nyoutube dQw4w9WgXcQ\n")
    old, new = site.open_graph("/old"), site.open_graph("/new")
    found = fetched(scratch, asking(archive=str(path)), old=old, new=new)
    assert found["old"].reason == "archived"
    assert not isinstance(found["new"], FetchFailure)
    assert site.server.seen("/old.mp4") == []


def test_an_option_that_names_no_file_stops_the_shard(site: VideoSite, scratch: Path) -> None:
    with pytest.raises(StageError, match="absent"):
        fetched(scratch, asking(archive=str(scratch.parent / "absent")), a=site.watch("/x"))
    assert list(scratch.iterdir()) == []


def test_videos_take_turns_at_the_proxies_and_each_has_its_own(scratch: Path) -> None:
    with BadServer() as first, BadServer() as second:
        for proxy in (first, second):
            proxy.on("http://films.example/a", status=404)
        urls = {f"k{number}": "http://films.example/a" for number in range(6)}
        proxies = (first.url("").rstrip("/"), second.url("").rstrip("/"))
        policy = replace(asking(proxies=proxies), allow_private=False)
        found = fetched(scratch, policy, **urls)
        assert {failure.reason for failure in found.values()} == {"http_404"}
        split = len(first.requests), len(second.requests)
        assert min(split) > 0
        found = fetched(scratch, policy, **urls)
        assert (len(first.requests), len(second.requests)) == (2 * split[0], 2 * split[1])


def test_without_yt_dlp_the_row_says_how_to_get_it(
    site: VideoSite, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "yt_dlp" else real(name)
    )
    found = fetched(scratch, a=site.watch("/w"))
    assert found["a"].reason == "no_driver"
    assert "pip install 'reelmill[sites]'" in found["a"].message


# --- What may not happen ---------------------------------------------------------------------


def test_private_addresses_are_refused_also_by_name(site: VideoSite, scratch: Path) -> None:
    site.watch("/private")
    port = site.server.port
    hosts = ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254")
    urls = {host: f"http://{host}:{port}/private" for host in hosts}
    before = len(site.server.requests)
    found = fetched(scratch, replace(asking(), allow_private=False), **urls)
    assert {failure.reason for failure in found.values()} == {"private_address"}
    assert len(site.server.requests) == before


def test_a_page_is_left_alone_where_the_policy_or_its_site_says_so(
    site: VideoSite, scratch: Path
) -> None:
    site.file("/robots.txt", b"User-agent: *\nDisallow: /barred", "text/plain")
    policy = replace(asking(), robots=True, opt_out=("*/mine*", "s3://mine/*"))
    found = fetched(
        scratch, policy, barred=site.url("/barred"), mine=site.url("/mine"), object="s3://mine/a"
    )
    reasons = {key: outcome.reason for key, outcome in found.items()}
    assert reasons == {"barred": "robots", "mine": "opted_out", "object": "opted_out"}


def test_a_public_page_leads_to_no_private_address(
    site: VideoSite, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one address that may be reached stands for the internet: it is a proxy nobody goes by.
    monkeypatch.setattr(sites, "_proxy", lambda options, key: "")
    with BadServer() as inside:
        secret = inside.on("/secret.mp4", body=sample("plain.mp4").read_bytes())
        playlist = site.playlist("/x.m3u8", f"#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
        kind = "application/x-mpegURL"
        found = fetched(
            scratch,
            replace(asking(proxies=(site.server.url(""),)), allow_private=False),
            fine=site.watch("/fine"),
            redirect=site.server.on("/to", status=302, Location=secret),
            video=site.page("/video", f'<video src="{secret}"></video>'),
            segment=site.page("/seg", f'<video><source type="{kind}" src="{playlist}"></video>'),
        )
        assert not isinstance(found.pop("fine"), FetchFailure)
        assert {failure.reason for failure in found.values()} == {"private_address"}
        assert inside.requests == []


GUARDED = """
import os, pathlib, shutil, socket, sqlite3, subprocess, sys, tempfile
from reelmill.fetch.site_guard import Guard
home, outside = map(pathlib.Path, sys.argv[1:])
(outside / "old").write_text("old")
(home / "out").symlink_to(outside)
true = shutil.which("true")
Guard(home, allowed=[("127.0.0.1", 9)], programs=[true]).install()
def tcp(*address, kind=socket.AF_INET):
    with socket.socket(kind) as s:
        s.settimeout(0.01)
        s.connect(address if len(address) > 1 else address[0])
def udp():
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("127.0.0.1", 53))
refused = {
    "loopback": lambda: tcp("127.0.0.1", 80),
    "name": lambda: tcp("localhost", 80),
    "version 6": lambda: tcp("::1", 80, kind=socket.AF_INET6),
    "mapped": lambda: tcp("::ffff:10.0.0.1", 80, kind=socket.AF_INET6),
    "unix": lambda: tcp("/run/x.sock", kind=socket.AF_UNIX),
    "udp": udp,
    "bind": lambda: socket.socket().bind(("", 0)),
    "system": lambda: os.system("true"),
    "shell": lambda: subprocess.run("true", shell=True),
    "program": lambda: subprocess.run(["/bin/sh", "-c", "true"]),
    "spawn": lambda: os.posix_spawn("/bin/sh", ["sh"], {}),
    "exec": lambda: os.execv("/bin/sh", ["sh"]),
    "fork": os.fork,
    "write": lambda: (outside / "new").write_text("x"),
    "append": lambda: open(outside / "old", "a"),
    "os.open": lambda: os.open(outside / "new", os.O_CREAT | os.O_RDWR),
    "remove": lambda: (outside / "old").unlink(),
    "rename": lambda: (outside / "old").rename(home / "old"),
    "move out": lambda: (home / "own").rename(outside / "own"),
    "link": lambda: os.symlink("/etc", outside / "link"),
    "mkdir": lambda: (outside / "folder").mkdir(),
    "chmod": lambda: (outside / "old").chmod(0o777),
    "truncate": lambda: os.truncate(outside / "old", 0),
    "database": lambda: sqlite3.connect(outside / "base"),
    "database by URI": lambda: sqlite3.connect(f"file:{outside}/base", uri=True),
    "through a link": lambda: (home / "out" / "new").write_text("x"),
}
os.chdir(home)
pathlib.Path("own").write_text("own")
for name, act in refused.items():
    try:
        act()
    except PermissionError:
        continue
    except OSError as error:
        name = f"{name} ({error!r})"
    print(name)
allowed = {
    "read": lambda: (outside / "old").read_text(),
    "inside": lambda: (home / "a").write_text("a"),
    "nowhere": lambda: open(os.devnull, "w").close(),
    "program": lambda: subprocess.run([true], check=True),
    "folder": lambda: tempfile.TemporaryDirectory(dir=home).cleanup(),
}
for name, act in allowed.items():
    act()
try:
    tcp("127.0.0.1", 9)
except PermissionError:
    print("allowed address")
except OSError:
    pass
"""


def test_the_guard_refuses_what_a_page_could_ask_for(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, home, outside], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert [path.name for path in outside.iterdir()] == ["old"]


def test_nothing_of_the_users_own_yt_dlp_is_taken_over(
    site: VideoSite, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = scratch.parent
    plugin = home / "yt_dlp_plugins/extractor/evil.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(f"open({str(home / 'loaded')!r}, 'w')\nraise SystemExit\n")
    (home / "yt-dlp.conf").write_text("--exec 'touch ran'\n")
    (home / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    found = fetched(scratch, asking(), a=site.watch("/plain"))
    assert not isinstance(found["a"], FetchFailure)
    assert not (home / "loaded").exists()


def remuxed(folder: Path, *sources: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    files = []
    for number, source in enumerate(sources):
        name = f"{number}{source.suffix}"
        shutil.copy(source, folder / name)
        files.append({"name": name, "video": number == 0, "audio": True, "pieces": True})
    return sites._remuxed(folder, files, SiteOptions(**options))


@pytest.mark.parametrize(
    ("names", "options", "ending", "codecs"),
    [
        (("silent.mp4", "audio.m4a"), {}, "mp4", ("h264", "aac")),
        (("vp9.webm", "vp8.webm"), {}, "webm", ("vp9", "opus")),
        (("vp9.webm", "audio.m4a"), {}, "mkv", ("vp9", "aac")),
        (("plain.ts",), {}, "mkv", ("h264", "aac")),
        (("silent.mp4",), {}, "mp4", ("h264", None)),
        (("plain.mp4",), {"audio": "none"}, "mp4", ("h264", None)),
    ],
)
def test_equal_pieces_give_equal_bytes_in_a_container_that_takes_them(
    tmp_path: Path,
    names: tuple[str, ...],
    options: dict[str, Any],
    ending: str,
    codecs: tuple[str, str | None],
) -> None:
    sources = [sample(name) for name in names]
    first = remuxed(tmp_path / "1", *sources, **options)
    again = remuxed(tmp_path / "2", *sources, **options)
    assert first.suffix == f".{ending}"
    assert first.read_bytes() == again.read_bytes()
    info = probe(first)
    assert (info.codec, info.audio_codec) == codecs


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
    ],
)
def test_a_video_that_names_another_file_is_none(tmp_path: Path, text: str) -> None:
    secret = tmp_path / "secret.ts"
    shutil.copy(sample("plain.ts"), secret)
    disguised = tmp_path / "film.mp4"
    disguised.write_text(text.format(secret))
    with pytest.raises(AttemptError, match="remux_failed") as caught:
        remuxed(tmp_path / "1", disguised)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("name", ["../secret", "link.mp4", "absent.mp4", "a/b.mp4", "", None, 3])
def test_a_process_hands_over_its_own_files_only(tmp_path: Path, name: object) -> None:
    (tmp_path / "link.mp4").symlink_to("/etc/passwd")
    with pytest.raises(AttemptError, match="crash"):
        sites._own(tmp_path, name)


# --- Processes -------------------------------------------------------------------------------


def processes(scratch: Path) -> list[int]:
    """The processes that work in a scratch folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink().is_relative_to(scratch):
                found.append(int(link.parent.name))
        except OSError:
            continue
    return found


def test_a_video_that_takes_too_long_ends_with_its_process(site: VideoSite, scratch: Path) -> None:
    async def drip(exchange: Exchange) -> None:
        await exchange.head(Content_Type="video/mp4", Content_Length=1 << 20)
        while True:
            await exchange.send(b"\0")
            await asyncio.sleep(0.2)

    video = site.server.on("/drip.mp4", drip)
    slow = site.page("/drip", f'<video src="{video}"></video>')
    found = fetched(scratch, replace(asking(), timeout_s=6), slow=slow, next=site.watch("/next"))
    assert found["slow"].reason == "timeout"
    assert not isinstance(found["next"], FetchFailure)
    assert processes(scratch) == []


def test_a_site_that_falls_silent_is_left(site: VideoSite, scratch: Path) -> None:
    async def silence(exchange: Exchange) -> None:
        await asyncio.sleep(60)

    url = site.server.on("/silent", silence)
    found = fetched(scratch, replace(asking(), idle_timeout_s=0.3), a=url)
    assert (found["a"].reason, found["a"].transient) == ("timeout", True)


def test_a_process_that_dies_is_replaced(site: VideoSite, scratch: Path) -> None:
    async def kill(exchange: Exchange) -> None:
        for process in processes(scratch):
            os.kill(process, signal.SIGKILL)

    url = site.server.on("/killer", kill)
    found = fetched(scratch, asking(), a=url, b=site.watch("/b2"), c=url, d=site.watch("/d"))
    assert [found[key].reason for key in "ac"] == ["crash", "crash"]
    assert all(not isinstance(found[key], FetchFailure) for key in "bd")


def test_one_site_is_asked_for_as_many_videos_at_once_as_it_may_be(scratch: Path) -> None:
    with VideoSite(scratch.parent) as site:
        urls = {f"k{number}": site.watch(f"/{number}") for number in range(3)}
        policy = replace(POLICY, sites=SiteOptions(processes=3, per_site=1))
        found = fetched(scratch, policy, **urls)
        assert not any(isinstance(outcome, FetchFailure) for outcome in found.values())
        assert site.server.max_in_flight == 1


def test_several_videos_are_fetched_at_once(site: VideoSite, scratch: Path) -> None:
    here: list[asyncio.Event] = []

    async def meet(exchange: Exchange) -> None:
        here.append(asyncio.Event())
        if len(here) == 2:
            for event in here:
                event.set()
        await here[exchange.number - 1].wait()
        await exchange.reply(status=404)

    url = site.server.on("/meet", meet)
    policy = replace(POLICY, sites=SiteOptions(processes=2, per_site=2))
    found = fetched(scratch, policy, a=url, b=url)
    assert {failure.reason for failure in found.values()} == {"http_404"}


def test_a_failure_that_passes_is_tried_again(site: VideoSite, scratch: Path) -> None:
    film = site.watch("/later")

    async def later(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.reply(status=503)
        else:
            await exchange.reply(status=302, Location=film)

    found = fetched(scratch, replace(asking(), attempts=2), a=site.server.on("/soon", later))
    assert found["a"][0] == sample("plain.mp4").read_bytes()


def test_whoever_stops_early_leaves_no_process(site: VideoSite, scratch: Path) -> None:
    asked, let_go = threading.Event(), threading.Event()

    async def wait(exchange: Exchange) -> None:
        asked.set()
        await asyncio.get_running_loop().run_in_executor(None, let_go.wait, 60)

    site.server.on("/wait", wait)
    urls = [("a", site.watch("/first")), ("b", site.server.url("/wait"))]
    outcomes = fetch_iter(urls, asking(), scratch)
    next(outcomes)[1].close()  # type: ignore[union-attr]
    assert asked.wait(60)
    assert len(processes(scratch)) == 1
    outcomes.close()
    let_go.set()
    assert processes(scratch) == []
    assert list(scratch.iterdir()) == []


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reelmill.fetch.site_worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


# --- In a download ---------------------------------------------------------------------------


def test_a_download_sends_rows_to_the_extractor_that_the_recipe_names(
    site: VideoSite, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    rows = bench.rows(
        "\n".join(["url", site.watch("/film"), site.url("/film.mp4"), site.answers("/no", 404)])
    )
    recipe = {
        "allow_private": True,
        "attempts": 1,
        "extractors": {"127.0.0.1": "yt-dlp", "http://127.0.0.1:*.mp4": "http"},
        "sites": {"metadata": True, "processes": 1},
    }
    shard = bench.make("download", rows, **recipe)
    page, plain = (sample for _, sample in sorted(bench.samples(shard).items()))
    assert set(page.fields) == {"mp4", "json", "info.json"}
    assert json.loads(page.fields["info.json"])["title"].startswith("A film")
    assert set(plain.fields) == {"mp4", "json"}
    assert plain.fields["mp4"] == page.fields["mp4"]
    assert bench.rejects(shard) == {"000000002": "http_404"}
    assert bench.make("split", shard, **fixed("1s")).samples == 6


def test_a_download_of_sound_alone_is_a_dataset_of_sound(site: VideoSite, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    rows = bench.rows(f"url\n{site.watch('/song')}\n")
    recipe = {"extractor": "yt-dlp", "allow_private": True, "sites": {"audio": "only"}}
    shard = bench.make("download", rows, **recipe)
    (made,) = bench.samples(shard).values()
    assert set(made.fields) == {"m4a", "json"}
    assert json.loads(made.fields["json"])["sound"]["codec"] == "aac"
    assert (made.columns["codec"], made.columns["width"]) == ("aac", None)


# --- The internet ----------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.skipif(os.environ.get("REELMILL_LIVE") != "1", reason="REELMILL_LIVE is not 1")
def test_a_video_of_a_real_site(scratch: Path) -> None:
    policy = FetchPolicy(sites=SiteOptions(max_height=360, subtitles=("en",), metadata=True))
    found = fetched(scratch, policy, a="https://www.youtube.com/watch?v=jNQXAC9IVRw")
    data, extras = found["a"]
    assert isinstance(probe(data), VideoInfo)
    assert json.loads(extras["info.json"])["id"] == "jNQXAC9IVRw"
