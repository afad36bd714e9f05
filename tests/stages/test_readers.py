"""Readers: the same frames whatever decodes, in the order asked, and an honest word where not."""

from __future__ import annotations

import asyncio
import gc
import io
import multiprocessing
import pickle
import sys
import tarfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelmill.errors import MissingDependencyError, NotFoundError, ReelmillError, Rejected
from reelmill.loading import backends, open_video
from reelmill.loading.readers import BACKENDS, UnsupportedError, VideoReader, look, table
from reelmill.loading.readers.decoder import Decoder, Job
from reelmill.loading.readers.look import look_at
from reelmill.loading.readers.reader import Reader
from reelmill.loading.readers.sources import media_of
from reelmill.loading.readers.table import Backend
from reelmill.media import shown as shown_module
from reelmill.media.decode import frames
from reelmill.media.gpu import devices, nvdec
from reelmill.media.probe import examine
from reelmill.media.shown import shown
from tests.stages import fake_nvc, fake_torchvision, fake_vali
from tests.stages.damaged import DAMAGED
from tests.stages.datasets import World
from tests.stages.media_samples import make_video, numbers, real_media, sample, x264
from tests.stages.reader_samples import (
    KINDS,
    REFUSALS,
    UNSUPPORTED,
    burnt,
    compared,
    picks,
    pictures_of,
    reference,
)

torch = pytest.importorskip("torch")

CPU = ("pyav", "torchcodec", "opencv", "torchvision")
NUMBERED = [kind for kind in KINDS if kind != "several videos"]

REAL = {
    "pyav": (0, 0.0),
    "torchcodec": (255, 5.0),
    "opencv": (255, 5.0),
    "torchvision": (255, 5.0),
}
"""By how many levels, at most and on average, a backend's frames of real clips may differ from
PyAV's: quicker conversions take one chroma sample for two or four pixels, which shows at edges."""

REFUSED = {
    "torchcodec": {"box.mp4", "tree.avi", "vtest.avi"},
    "opencv": {"av1_video.mkv", "box.mp4", "nasa_13013.mp4", "tree.avi", "vtest.avi"},
    "torchvision": {"box.mp4"},
}
"""Real clips that a backend refuses, or frames of which it cannot give."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a backend usable, by a stand-in where it is one that is not installed, or skips."""

    def use(name: str) -> str:
        if name == "auto":
            return name
        if name == "torchvision":
            for module, made in fake_torchvision.modules().items():
                monkeypatch.setitem(sys.modules, module, made)
            monkeypatch.setattr(table, "_is_there", lambda module: True)
        try:
            BACKENDS[name].need("cpu")
        except ReelmillError as error:
            pytest.skip(str(error))
        return name

    return use


@pytest.mark.parametrize("kind", NUMBERED)
@pytest.mark.parametrize("backend", CPU)
def test_every_backend_gives_the_frames_that_were_asked_for(
    backend: str, kind: str, usable: Any
) -> None:
    usable(backend)
    path = KINDS[kind]()
    asked, turns = picks(len(reference(path))), look_at(path).turns
    known = numbers(path)
    if kind in UNSUPPORTED.get(backend, ()):
        with pytest.raises(REFUSALS, match="backend='pyav'"), open_video(path, backend) as reader:
            reader.read_frames(asked)
        return
    for mode, form in (("seek", "TCHW"), ("stream", "THWC")):
        with open_video(path, backend, mode=mode, output_format=form) as reader:  # type: ignore[arg-type]
            assert reader.backend == backend
            assert len(reader) == len(known)
            assert burnt(pictures_of(reader, asked), turns) == [known[n] for n in asked]
            found = compared(reader, path, asked)
            # Grey pictures: all there can be is rounding, and one bit of ten.
            assert found.most <= (0 if backend == "pyav" else 6), found


@pytest.mark.parametrize("backend", CPU)
def test_the_best_video_of_several_is_read_or_none(backend: str, usable: Any) -> None:
    usable(backend)
    path = KINDS["several videos"]()
    if backend == "opencv":
        with pytest.raises(UnsupportedError, match="first video"):
            open_video(path, backend)
        return
    with open_video(path, backend) as reader:
        assert compared(reader, path, [0, 50, 89]).mean < 1


@pytest.mark.parametrize("path", real_media(), ids=lambda path: path.name)
@pytest.mark.parametrize("backend", CPU)
def test_real_clips(backend: str, path: Path, usable: Any) -> None:
    usable(backend)
    count = len(reference(path))
    asked = [count // 2, 3, count // 2 + 1, 9, 3]
    if path.name in REFUSED.get(backend, ()):
        with pytest.raises(REFUSALS, match="backend='pyav'"), open_video(path, backend) as reader:
            reader.read_frames(asked)
        return
    with open_video(path, backend) as reader:
        found = compared(reader, path, asked)
    most, mean = REAL[backend]
    assert found.most <= most
    assert found.mean <= mean


def test_a_cut_whose_only_keyframe_is_hidden(tmp_path: Path) -> None:
    path = make_video(tmp_path / "one.mp4", 30, options=x264(keyint=250))
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 16
    # The edit list begins with the third frame.
    data[at : at + 4] = (int.from_bytes(data[at : at + 4]) + 2 * 512).to_bytes(4)
    path.write_bytes(data)
    for backend in ("pyav", "auto"):
        with open_video(path, backend) as reader:  # type: ignore[arg-type]
            assert numbers_in(reader.read_frames([0, -1])) == [2, 29]


@pytest.fixture
def reader() -> Iterator[VideoReader]:
    with open_video(sample("uneven.mkv"), "pyav") as opened:
        yield opened


def numbers_in(frames: Any) -> list[int]:
    return burnt(list(frames.permute(0, 2, 3, 1).numpy()))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ([-1, 3, 3], [89, 3, 3]),
        (slice(80, None, 4), [80, 84, 88]),
        (slice(5, 2, -1), [5, 4, 3]),
        (range(0, 6, 2), [0, 2, 4]),
        (np.array([7, 1]), [7, 1]),
        (torch.tensor([7, 1]), [7, 1]),
        ([], []),
    ],
)
def test_frames_by_number(reader: VideoReader, key: Any, expected: list[int]) -> None:
    read = reader.read_frames(key)
    assert read.shape == (len(expected), 3, 96, 128)
    assert read.dtype == torch.uint8
    assert numbers_in(read) == expected
    assert torch.equal(reader[key], read)
    begin, duration = reader.times(key)
    assert begin.dtype == duration.dtype == torch.float64
    assert reader.indices_at(begin) == expected


@pytest.mark.parametrize("number", [5, -85, np.int32(5), torch.tensor(5)])
def test_one_frame(reader: VideoReader, number: Any) -> None:
    assert reader[number].shape == (3, 96, 128)
    assert torch.equal(reader[number], reader.read_frames([5])[0])


def test_what_is_no_frame(reader: VideoReader) -> None:
    with pytest.raises(IndexError, match="no frame 90: the video has 90"):
        reader.read_frames([0, 90])
    with pytest.raises(IndexError):
        reader[-91]
    for wrong in (1.0, True, "1", [1.5]):
        with pytest.raises(TypeError):
            reader[wrong]  # type: ignore[index]


def test_times(reader: VideoReader) -> None:
    one = reader.metadata
    assert (one.num_frames, one.width, one.height, one.codec) == (90, 128, 96, "h264")
    assert (one.begin_seconds, one.end_seconds) == (0.0, pytest.approx(3.392))
    assert one.average_fps == pytest.approx(90 / 3.392)
    begin, duration = reader.times(slice(None))
    assert begin[:4].tolist() == [0.0, 0.044, 0.088, 0.099]
    assert torch.allclose(begin[1:], begin[:-1] + duration[:-1])
    assert reader.indices_at([0.0, 0.0439, 0.044, 0.05, 3.3919]) == [0, 0, 1, 1, 89]
    assert numbers_in(reader.read_frames_at([0.1, 0.05])) == [3, 1]
    for seconds in (-0.01, 3.392, float("nan"), float("inf")):
        with pytest.raises(IndexError, match="no frame is shown at"):
            reader.read_frames_at([0.0, seconds])


def test_the_clock_is_that_of_the_file() -> None:
    with open_video(sample("late.mp4"), "pyav") as reader:
        assert reader.metadata.begin_seconds == 1.5
        assert reader.indices_at([1.5, 2.5]) == [0, 30]
        with pytest.raises(IndexError, match=r"from 1\.5 s to 3\.5 s"):
            reader.indices_at([1.4])


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "opencv"])
def test_all_frames_are_decoded_once_in_turn(
    backend: str, usable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_video(sample("open.mp4"), usable(backend)) as reader:
        opened: list[Decoder[Any]] = []
        plain = Backend.open

        def spy(self: Backend, job: Job) -> Decoder[Any]:
            made = plain(self, job)
            runs, streamed = 0, made.streamed

            def once(numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
                nonlocal runs
                runs += 1
                assert runs == 1
                return streamed(numbers)

            made.streamed = once  # type: ignore[method-assign]
            opened.append(made)
            return made

        monkeypatch.setattr(Backend, "open", spy)
        found = []
        for frame in reader:
            found += numbers_in(frame[None])
            # What is read meanwhile does no harm.
            if len(found) == 30:
                assert numbers_in(reader[[70, 2]]) == [70, 2]
        assert found == numbers(sample("open.mp4"))
        assert len(opened) == 1


@pytest.mark.parametrize("mode", ["seek", "stream"])
@pytest.mark.parametrize(("step", "at_once"), [(1, 1), (1, 8), (3, 2), (7, 4)])
def test_what_follows_is_decoded_on(
    mode: Any, step: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = sample("open.mp4"), 0
    plain = shown_module._packets_of

    def counted(*args: Any) -> Iterator[Any]:
        nonlocal read
        for one in plain(*args):
            read += 1
            yield one

    monkeypatch.setattr(shown_module, "_packets_of", counted)
    asked = list(range(0, 84, step))
    with open_video(path, "pyav", mode=mode) as reader:
        found = []
        for at in range(0, len(asked), at_once):
            found += numbers_in(reader.read_frames(asked[at : at + at_once]))
        assert found == [numbers(path)[number] for number in asked]
        # All once; those of the first request twice; and a few that the decoder waits for.
        assert read <= len(reader) + step * at_once + 4
        # Anywhere else, and on from there.
        assert numbers_in(reader[[3, 50, 51]]) == [3, 50, 51]
        assert numbers_in(reader[[52, 53]]) == [52, 53]
        assert numbers_in(reader[[20]]) == [20]


class _Picture:
    def __init__(self, number: int) -> None:
        self.number = number


class _Stub(Decoder[_Picture]):
    """Counts what it is asked to do, and sees to it that nobody keeps its frames."""

    def __init__(self, job: Job, give: int = 1 << 30) -> None:
        super().__init__(job, ())
        self.give = give
        self.written: list[int] = []

    def sought(self, numbers: Sequence[int]) -> Iterator[tuple[int, _Picture]]:
        for number in numbers:
            if number < self.give:
                yield number, _Picture(number)

    def streamed(self, numbers: Sequence[int]) -> Iterator[tuple[int, _Picture]]:
        alive: weakref.WeakSet[_Picture] = weakref.WeakSet()
        for number in range(numbers[0], min(numbers[-1] + 1, self.give)):
            picture = _Picture(number)
            alive.add(picture)
            yield number, picture
            # The one that was wanted last, the one before this, and this.
            assert len(alive) <= 3

    def write(self, frame: _Picture, target: Any) -> None:
        self.written.append(frame.number)
        target.fill_(frame.number)


def stubbed(mode: Any, give: int = 1 << 30) -> tuple[Reader, _Stub]:
    media = media_of(sample("silent.mp4"))
    stub = _Stub(Job(media, look_at(media.source()), "cpu", channels_last=False), give)
    return Reader(BACKENDS["pyav"], stub, mode, "TCHW"), stub


def test_a_range_is_streamed_in_bounded_memory() -> None:
    reader, stub = stubbed("stream")
    gc.disable()
    try:
        read = reader.read_frames([60, 5, 60, 20])
    finally:
        gc.enable()
    assert read[:, 0, 0, 0].tolist() == [60, 5, 60, 20]
    assert stub.written == [5, 20, 60]


@pytest.mark.parametrize("mode", ["seek", "stream"])
def test_a_frame_that_does_not_come_is_rejected(mode: str) -> None:
    reader, stub = stubbed(mode, give=50)
    assert reader.read_frames([49])[0, 0, 0, 0] == 49
    with pytest.raises(Rejected, match="undecodable: frame 50 cannot be decoded"):
        reader.read_frames([70, 3, 50])
    assert stub.written == [49, 3]


def test_a_closed_reader_says_so() -> None:
    reader = open_video(sample("silent.mp4"), "pyav")
    with reader:
        reader[0]
    reader.close()
    for use in (lambda: reader[0], lambda: next(iter(reader)), lambda: reader.read_frames_at([0])):
        with pytest.raises(ReelmillError, match=r"the reader of .*silent\.mp4 is closed"):
            use()
    assert len(reader) == 90
    assert reader.indices_at([1.0]) == [30]


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "opencv"])
@pytest.mark.parametrize("form", ["path", "bytes"])
def test_a_reader_is_pickled_without_what_is_open(backend: str, form: str, usable: Any) -> None:
    path = sample("silent.mp4")
    given = path if form == "path" else path.read_bytes()
    with open_video(given, usable(backend), output_format="THWC") as reader:
        copy = pickle.loads(pickle.dumps(reader))
        assert torch.equal(copy[33], reader[33])
        assert (copy.backend, copy.metadata) == (reader.backend, reader.metadata)
        reader.close()
        assert burnt([copy[5].numpy()]) == [5]
        copy.close()


def _read(reader: VideoReader, asked: list[int], answers: Any) -> None:
    try:
        answers.put(numbers_in(reader.read_frames(asked)))
    except ReelmillError as error:
        answers.put(str(error))


def _forked(reader: VideoReader, questions: list[list[int]]) -> list[Any]:
    """What forked processes answer that read at the same time."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_read, args=(reader, one, answers)) for one in questions]
    for worker in workers:
        worker.start()
    told = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return told


def test_forked_workers_read_on_their_own(reader: VideoReader) -> None:
    assert numbers_in(reader[[3]]) == [3]
    questions = [[89, 4, 40], [1, 70, 2], [50, 51, 9]]
    assert sorted(_forked(reader, questions)) == sorted(questions)
    assert numbers_in(reader[[44, 4]]) == [44, 4]


def test_an_open_file_stays_with_its_process() -> None:
    with sample("silent.mp4").open("rb") as file, open_video(file, "pyav") as reader:
        assert numbers_in(reader[[33]]) == [33]
        with pytest.raises(ReelmillError, match="open the video in the worker"):
            pickle.dumps(reader)
        [told] = _forked(reader, [[1]])
        assert "open the video in the worker" in told


def test_reading_in_threads(reader: VideoReader) -> None:
    async def both() -> list[Any]:
        return await asyncio.gather(
            *(reader.read_frames_async([number, 89 - number]) for number in range(0, 40, 8))
        )

    for number, read in zip(range(0, 40, 8), asyncio.run(both()), strict=True):
        assert numbers_in(read) == [number, 89 - number]


def test_closing_waits_for_who_reads() -> None:
    reader, stub = stubbed("seek")
    reading, closed = threading.Event(), threading.Event()
    seen: list[bool] = []

    def write(frame: _Picture, target: Any) -> None:
        reading.set()
        # Long enough for a close that does not wait.
        seen.append(closed.wait(0.2))

    stub.write = write  # type: ignore[method-assign]
    stub.close = closed.set  # type: ignore[method-assign]
    thread = threading.Thread(target=reader.read_frames, args=([1],))
    thread.start()
    assert reading.wait(30)
    reader.close()
    thread.join()
    assert seen == [False]
    assert closed.is_set()


def test_async_reading_lets_the_loop_run() -> None:
    reader, stub = stubbed("seek")
    met = threading.Event()

    def wait(frame: _Picture, target: Any) -> None:
        assert met.wait(30)

    stub.write = wait  # type: ignore[method-assign]

    async def both() -> None:
        reading = asyncio.create_task(reader.read_frames_async([1]))
        await asyncio.sleep(0)
        met.set()
        await reading

    asyncio.run(both())


# Sources


@pytest.mark.parametrize("backend", CPU)
def test_a_video_may_be_a_path_bytes_or_an_open_file(backend: str, usable: Any) -> None:
    usable(backend)
    path = sample("hidden.mp4")
    with path.open("rb") as file, open_video(path, backend) as known:
        expected = known[[40, 2, 70]]
        file.seek(100)
        for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file):
            with open_video(source, backend) as reader:
                assert torch.equal(reader[[40, 2, 70]], expected)
        assert not file.closed


def test_two_readers_of_one_open_file() -> None:
    with sample("silent.mp4").open("rb") as file:
        one, two = open_video(file, "pyav"), open_video(file, "pyav")
        for number in (40, 3, 77):
            assert numbers_in(one[[number]]) == numbers_in(two[[number]]) == [number]
        assert numbers_in(torch.stack(list(one))[::30]) == [0, 30, 60]


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    members = {
        "a/0001.json": b"{}",
        "a/0001.mp4": sample("silent.mp4").read_bytes(),
        "a/0002.left.mp4": sample("late.mp4").read_bytes(),
        "a/0002.right.mkv": sample("uneven.mkv").read_bytes(),
        "a/0003.txt": b"no video",
    }
    with tarfile.open(tmp_path / "some.tar", "w") as made:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return tmp_path / "some.tar"


def test_a_sample_of_anybodys_tar(tar: Path) -> None:
    for name in (tar, str(tar), tar.as_uri()):
        with open_video((name, "a/0001"), "pyav") as reader:
            assert len(reader) == 90
            assert numbers_in(reader[[33]]) == [33]
    with open_video((tar, ("a/0002", "right.mkv")), "pyav") as reader:
        assert reader.metadata.end_seconds == pytest.approx(3.392)
    for source, error, text in (
        ((tar, "a/0002"), ReelmillError, r"several videos \(left.mp4, right.mkv\): name a field"),
        ((tar, "a/0003"), ReelmillError, "no video: name a field of txt"),
        ((tar, "a/0009"), NotFoundError, "has no sample a/0009"),
        ((tar, ("a/0001", "mkv")), NotFoundError, "has no field mkv; it has json, mp4"),
        ((sample("silent.mp4"), "a"), Rejected, "not_a_tar"),
    ):
        with pytest.raises(error, match=text):
            open_video(source, "pyav")
    with pytest.raises(NotFoundError, match="there is no"):
        open_video((tar.with_name("none.tar"), "a"), "pyav")


def test_a_sample_of_a_shard_is_read_by_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reelmill.dataset import Version
    from reelmill.shards.reader import ShardReader

    world = World(tmp_path)
    data = sample("silent.mp4").read_bytes()
    world.grow("clips", {}, {"k1": {"mp4": data, "json": b"{}"}, "k2": {"txt": b"x" * 300_000}})
    manifest = world.given["clips"]
    [shard] = manifest.shards
    version = Version(world.store, "clips", world.store.put_manifest(manifest), ref=None)  # type: ignore[arg-type]
    read: list[int] = []
    plain = type(world.store.backend).read_ranges

    def spy(self: Any, ranges: Any) -> list[bytes]:
        blocks = plain(self, ranges)
        read.append(sum(map(len, blocks)))
        return blocks

    monkeypatch.setattr(type(world.store.backend), "read_ranges", spy)
    for place in (ShardReader(world.store, shard), (version, shard.id)):
        with open_video((place, "k1"), "pyav") as reader:
            assert numbers_in(reader[[33]]) == [33]
    assert read == [len(data), len(data)]
    for source, text in (
        ((ShardReader(world.store, shard), "k3"), "has no sample k3"),
        (((version, "00009"), "k1"), "has no shard 00009"),
        (((version, shard.id), ("k1", "webm")), "has no field webm; it has"),
    ):
        with pytest.raises(NotFoundError, match=text):
            open_video(source, "pyav")


def test_what_is_no_source() -> None:
    with pytest.raises(ReelmillError, match="is an address: read it first"):
        open_video("https://example.com/a.mp4")
    with pytest.raises(ReelmillError, match="tuple is no source of video"):
        open_video(("clips.tar",))
    with pytest.raises(ReelmillError, match="int is no source of video"):
        open_video(5)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        open_video("/nowhere.mp4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_at_the_header_sees_what_probing_does(kind: str) -> None:
    data = KINDS[kind]().read_bytes()
    probed, found = look._by_probing(data), look.look_at(data)
    for name in ("width", "height", "turns", "codec", "formats", "stream", "place", "start"):
        assert getattr(found, name) == getattr(probed, name)
    for name in ("time_base", "end", "shape"):
        assert getattr(found.shown, name) == getattr(probed.shown, name)
    assert np.array_equal(found.shown.pts, probed.shown.pts)
    assert np.array_equal(found.shown.keyframe, probed.shown.keyframe)


def test_headers_are_enough_for_most() -> None:
    for name in ("plain.mp4", "open.mp4", "rotated.mp4", "trimmed.mp4"):
        assert look._by_header(sample(name)) is not None


# Backends


def test_auto_takes_the_first_that_can_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_video(sample("plain.ts")) as reader:
        assert reader.backend == "pyav"

    def broken(self: Backend, device: str) -> None:
        if self.name == "torchcodec":
            raise ReelmillError("its shared libraries are missing")

    monkeypatch.setattr(Backend, "need", broken)
    with open_video(sample("silent.mp4")) as reader:
        assert reader.backend == "pyav"
        assert "pyav reader of" in repr(reader)
    with pytest.raises(ReelmillError, match="shared libraries are missing"):
        open_video(sample("silent.mp4"), "torchcodec")


def test_auto_takes_torchcodec_where_it_is(usable: Any) -> None:
    usable("torchcodec")
    with open_video(sample("silent.mp4")) as reader:
        assert reader.backend == "torchcodec"


def test_a_backend_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_is_there", lambda module: module == "av")
    with pytest.raises(MissingDependencyError, match=r"pip install 'reelmill\[torchcodec\]'"):
        open_video(sample("silent.mp4"), "torchcodec")
    with open_video(sample("silent.mp4")) as reader:
        assert reader.backend == "pyav"
    known = backends()
    assert set(known) == set(BACKENDS)
    assert known["pyav"].devices == ("cpu",)
    assert known["vali"].devices == ()
    assert "pip install 'reelmill[vali]'" in known["vali"].why_not["cuda"]
    assert known["torchcodec"].why_not.keys() == {"cpu", "cuda"}


def test_without_torch_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'reelmill\[torch\]'"):
        open_video(sample("silent.mp4"), "pyav")
    told = [one.why_not for one in backends().values()]
    assert all(reason for why_not in told for reason in why_not.values())
    assert "reelmill[torch]" in backends()["pyav"].why_not["cpu"]


def test_torchcodec_without_ffmpegs_libraries_says_so(
    usable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable("torchcodec")
    from reelmill.loading.readers import torchcodec as ours

    def broken(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec.\nMany lines follow.")

    monkeypatch.setattr(ours, "import_module", broken)
    with pytest.raises(ReelmillError, match=r"Could not load libtorchcodec.*shared libraries"):
        open_video(sample("silent.mp4"), "torchcodec")
    assert "apt-get install ffmpeg" in backends()["torchcodec"].why_not["cpu"]


def test_a_torchvision_that_reads_no_video_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = fake_torchvision.modules()
    del modules["torchvision.io"].VideoReader
    for module, made in modules.items():
        monkeypatch.setitem(sys.modules, module, made)
    monkeypatch.setattr(table, "_is_there", lambda module: True)
    with pytest.raises(ReelmillError, match="reads no video any more"):
        open_video(sample("silent.mp4"), "torchvision")


def test_arguments_that_make_no_sense() -> None:
    path = sample("silent.mp4")
    with pytest.raises(ReelmillError, match="no backend 'decord' to decode video: name one of"):
        open_video(path, "decord")  # type: ignore[arg-type]
    with pytest.raises(ReelmillError, match="backend opencv decodes on cpu, not on cuda"):
        open_video(path, "opencv", device="cuda")
    for more in ({"mode": "seeking"}, {"output_format": "CTHW"}, {"device": "mps"}):
        with pytest.raises(ValueError, match="is none of"):
            open_video(path, **more)  # type: ignore[arg-type]


# Cards


def test_without_a_card_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(table, "_is_there", lambda module: True)
    for backend in ("auto", "pynvvideocodec", "vali"):
        with pytest.raises(ReelmillError, match=r"device cuda:0 needs an NVIDIA GPU.*sees 0"):
            open_video(sample("silent.mp4"), backend, device="cuda")  # type: ignore[arg-type]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> fake_nvc.Card:
    """A card as far as decoders can tell; what they make lies on the CPU."""
    from reelmill.loading.readers import pynvvideocodec

    made = fake_nvc.Card()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", made.module())
    monkeypatch.setitem(sys.modules, "python_vali", fake_vali.module())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kinds = tuple(kind for _, kind in devices._decoders(made.module(), 0))
    known = devices.Capabilities(0, "Stand-in", "1", 1 << 30, fake_nvc.ENGINES, kinds, ())
    decoders = nvdec.Nvdec(known)
    monkeypatch.setattr(pynvvideocodec, "_decoders", lambda ordinal: decoders)
    return made


def on_card(backend: str, path: Path, mode: Any, form: Any) -> Reader:
    media = media_of(path)
    job = Job(media, look_at(media.source()), "cpu", channels_last=form == "THWC")
    one = BACKENDS[backend]
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(Backend, "need", lambda self, device: None)
        return Reader(one, one.open(job), mode, form)


ON_CARD = {
    "pynvvideocodec": {
        "H.264 of 10 bits",
        "odd size, 4:4:4",
        "odd size, 4:2:0",
        "FLV",
        "VP8",
        "AVI, MPEG-4 with B-frames",
        "AVI, H.264",
        "interlaced",
    },
    "vali": {
        "H.264 of 10 bits",
        "HEVC of 10 bits",
        "odd size, 4:4:4",
    },
}
"""What is refused of the kinds."""


@pytest.mark.parametrize("kind", NUMBERED)
@pytest.mark.parametrize("backend", ON_CARD)
def test_cards_give_the_frames_that_were_asked_for(
    backend: str, kind: str, card: fake_nvc.Card
) -> None:
    path = KINDS[kind]()
    known, turns = numbers(path), look_at(path).turns
    asked = picks(len(known))
    if kind in ON_CARD[backend]:
        with pytest.raises(REFUSALS, match="backend='pyav'"):
            on_card(backend, path, "seek", "TCHW").read_frames(asked)
        return
    for mode, form in (("seek", "THWC"), ("stream", "TCHW")):
        reader = on_card(backend, path, mode, form)
        assert burnt(pictures_of(reader, asked), turns) == [known[n] for n in asked]
        assert compared(reader, path, asked).most <= 6


def test_a_cards_decoder_is_kept_and_torch_stays_as_it_is(card: fake_nvc.Card) -> None:
    torch.set_num_threads(2)
    for _ in range(2):
        reader = on_card("pynvvideocodec", sample("silent.mp4"), "seek", "TCHW")
        for number in (70, 5):
            assert numbers_in(reader[[number]]) == [number]
    assert torch.get_num_threads() == 2
    assert len(card.decoders) == 1


# Damage


@pytest.mark.parametrize("backend", ["auto", "pyav", "opencv", "torchvision"])
@pytest.mark.parametrize("mode", ["seek", "stream"])
def test_of_a_torn_file_there_is_what_is_there(backend: Any, mode: Any, usable: Any) -> None:
    data = sample("fast.mp4").read_bytes()
    torn = data[: len(data) * 2 // 3]
    with open_video(torn, usable(backend), mode=mode) as reader:
        assert len(reader) == 90
        assert numbers_in(reader[[20, 3]]) == [20, 3]
        with pytest.raises(Rejected, match="undecodable"):
            reader[[3, 85]]
        assert numbers_in(reader[[4, 20]]) == [4, 20]
        got: list[Any] = []
        with pytest.raises(Rejected, match="undecodable"):
            got.extend(reader)
        assert len(got) > 50
        assert numbers_in(torch.stack(got)) == list(range(len(got)))


def test_torchcodec_refuses_a_torn_file(usable: Any) -> None:
    data = sample("fast.mp4").read_bytes()
    with pytest.raises(UnsupportedError, match=r"finds \d+ frames of 90"):
        open_video(data[: len(data) * 2 // 3], usable("torchcodec"))


def test_auto_reads_on_with_the_next_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    path = sample("silent.mp4")

    class Failing(_Stub):
        def write(self, frame: _Picture, target: Any) -> None:
            if frame.number == 7:
                raise UnsupportedError("it does not give frame 7")
            super().write(frame, target)

    def opened() -> Reader:
        media = media_of(path)
        stub = Failing(Job(media, look_at(media.source()), "cpu", channels_last=False))
        return Reader(BACKENDS["vali"], stub, "seek", "TCHW", [BACKENDS["pyav"]])

    reader = opened()
    assert reader[[5, 8]][:, 0, 0, 0].tolist() == [5, 8]
    assert reader.backend == "vali"
    assert numbers_in(reader[[5, 7]]) == [5, 7]
    assert reader.backend == "pyav"
    reader = opened()
    monkeypatch.setattr(
        Backend,
        "open",
        lambda self, job, plain=Backend.open: (
            Failing(job) if self.name == "vali" else plain(self, job)
        ),
    )
    frames = list(reader)
    assert [int(frame[0, 0, 0]) for frame in frames[:7]] == list(range(7))
    assert numbers_in(torch.stack(frames[7:])) == list(range(7, 90))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>" * 40, "not_video"),
        (b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n" * 20, "not_video"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "pyav", "opencv"])
def test_what_is_no_video_is_rejected_as_elsewhere(
    backend: Any, data: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "video.mp4").write_bytes(data)
    for source in (data, tmp_path / "video.mp4"):
        with pytest.raises(Rejected) as rejected:
            open_video(source, backend)
        assert rejected.value.reason == reason


def test_what_begins_as_a_playlist_is_pyavs_alone(usable: Any) -> None:
    """Its own FFmpeg would take it for a list of further files."""
    data = b"#EXTM3U\nfile:///etc/passwd\n".ljust(188 * 2, b"\n") + sample("plain.ts").read_bytes()
    with open_video(data) as reader:
        assert reader.backend == "pyav"
        assert numbers_in(reader[[33]]) == [33]
    for backend in ("opencv", "torchvision"):
        with pytest.raises(UnsupportedError, match="begins with something else"):
            open_video(data, usable(backend))


def refusal(data: bytes) -> str | None:
    """The reason for which a file is rejected whose frames are decoded in order."""
    try:
        examine(data, check=False)
        with closing(frames(data)) as some:
            next(some)
    except Rejected as rejected:
        return rejected.reason
    return None


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_read_or_rejected_as_elsewhere(name: str) -> None:
    data = DAMAGED[name].make()
    reason = "drm" if name == "encrypted.mp4" else refusal(data)
    if reason is not None:
        with pytest.raises(Rejected) as rejected:
            open_video(data)
        assert rejected.value.reason == reason
        return
    with open_video(data) as reader:
        assert len(reader) == len(shown(data))
        one = reader.metadata
        for number in (0, len(reader) // 2, -1):
            with suppress(Rejected):
                assert reader[number].shape == (3, one.height, one.width)
