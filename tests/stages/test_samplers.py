"""Clips of real frames: by every way to place them, from everything that they may come from."""

from __future__ import annotations

import io
import pickle
import tarfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest

torch = pytest.importorskip("torch")

from reelmill.errors import ReelmillError, Rejected  # noqa: E402
from reelmill.loading import (  # noqa: E402
    FrameBatch,
    VideoMetadata,
    VideoReader,
    backends,
    clips_at_random_indices,
    clips_at_random_timestamps,
    clips_at_regular_indices,
    clips_at_regular_timestamps,
    collate,
    load,
    open_video,
    sample_clips,
)
from reelmill.loading.readers import UnsupportedError  # noqa: E402
from reelmill.loading.samplers.pipeline import clip_seed  # noqa: E402
from reelmill.shards.reader import Sample  # noqa: E402
from tests.stages.media_samples import number_of, sample  # noqa: E402

torch.set_num_threads(1)


class Decoded(VideoReader):
    """A reader that holds all frames of a short video, and notes which are asked for."""

    backend, device, mode = "pyav", "cpu", "stream"

    def __init__(self, source: Path | bytes, output_format: Any = "TCHW") -> None:
        self.output_format = output_format
        self.asked: list[int] = []
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            stream = container.streams.best("video")
            frames = list(container.decode(stream))
        self.begins = [float(frame.pts * frame.time_base) for frame in frames]
        self.end = float((frames[-1].pts + frames[-1].duration) * frames[-1].time_base)
        rgb = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in frames])
        self.frames = rgb.permute(0, 3, 1, 2) if output_format == "TCHW" else rgb
        length = self.end - self.begins[0]
        height, width = rgb.shape[1:3]
        rate = len(frames) / length
        codec = stream.codec_context.name
        self.metadata = VideoMetadata(
            len(frames), width, height, self.begins[0], self.end, rate, codec
        )

    def read_frames(self, indices: Sequence[int] | slice) -> Any:
        assert not isinstance(indices, slice)
        self.asked += sorted(set(indices))
        return self.frames[list(indices)]

    def read_frames_at(self, seconds: Sequence[float]) -> Any:
        return self.read_frames(self.indices_at(seconds))

    def times(self, indices: Sequence[int] | slice) -> tuple[Any, Any]:
        begins = torch.tensor(self.begins, dtype=torch.float64)
        ends = torch.tensor([*self.begins[1:], self.end], dtype=torch.float64)
        return begins[indices], (ends - begins)[indices]

    def indices_at(self, seconds: Sequence[float]) -> list[int]:
        assert all(self.begins[0] <= at < self.end for at in seconds)
        return [sum(begin <= at for begin in self.begins) - 1 for at in seconds]

    def close(self) -> None:
        self.frames = self.frames[:0]


@pytest.fixture
def plain() -> Decoded:
    """90 frames of 128×96 at 30 a second, each with its number in it."""
    return Decoded(sample("silent.mp4"))


def numbers(clips: FrameBatch) -> list[list[int]]:
    """The number in every frame of a batch of clips."""
    return [[number_of(frame[0].numpy()) for frame in clip] for clip in clips.data]


def test_clips_hold_the_frames_that_were_asked_for(plain: Decoded) -> None:
    clips = clips_at_regular_indices(
        plain, num_clips=3, num_frames_per_clip=4, num_indices_between_frames=5
    )
    assert isinstance(clips, FrameBatch)
    assert clips.data.shape == (3, 4, 3, 96, 128)
    assert clips.data.dtype == torch.uint8
    assert clips.pts_seconds.shape == clips.duration_seconds.shape == (3, 4)
    wanted = [[0, 5, 10, 15], [37, 42, 47, 52], [74, 79, 84, 89]]
    assert numbers(clips) == wanted
    torch.testing.assert_close(clips.pts_seconds, torch.tensor(wanted) / 30, check_dtype=False)
    assert numbers(clips[clips.pts_seconds[:, 0] > 1]) == wanted[1:]


def test_clips_by_time_hold_the_frames_shown_then(plain: Decoded) -> None:
    clips = clips_at_regular_timestamps(
        plain, seconds_between_clip_starts=1, num_frames_per_clip=2, seconds_between_frames=0.51
    )
    assert numbers(clips) == [[0, 15], [30, 45], [60, 75]]
    uneven = Decoded(sample("uneven.mkv"))
    (clip,) = clips_at_random_timestamps(
        uneven,
        num_frames_per_clip=9,
        sampling_range_start=1.0,
        sampling_range_end=1.0001,
        seconds_between_frames=0.05,
    )
    shown = uneven.indices_at([1.0 + 0.05 * number for number in range(9)])
    assert numbers(clip[None])[0] == shown
    assert len(set(shown)) < len(shown)  # a pause shows one frame for longer


@pytest.mark.parametrize(("policy", "wanted"), [("repeat_last", 89), ("wrap", 88)])
def test_clips_that_reach_beyond_the_end_are_filled_up(
    plain: Decoded, policy: Any, wanted: int
) -> None:
    clips = clips_at_random_indices(
        plain,
        num_clips=6,
        num_frames_per_clip=3,
        sampling_range_start=88,
        sampling_range_end=89,
        policy=policy,
    )
    assert numbers(clips) == [[88, 89, wanted]] * 6
    assert plain.asked == [88, 89]  # at once, so that a reader decodes each once


def test_a_reader_that_gives_channels_last_gives_clips_so() -> None:
    reader = Decoded(sample("silent.mp4"), "THWC")
    clips = clips_at_random_indices(reader, num_clips=2, num_frames_per_clip=3, seed=1)
    assert clips.data.shape == (2, 3, 96, 128, 3)
    assert clips.pts_seconds.shape == (2, 3)


def test_a_seed_gives_the_same_clips_again_and_leaves_torch_alone(plain: Decoded) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        clips_at_random_indices(plain, num_clips=5, seed=seed) for seed in (3, 3, 4)
    )
    generator = torch.Generator().manual_seed(3)
    drawn = clips_at_random_indices(plain, num_clips=5, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert numbers(first) == numbers(again) == numbers(drawn) != numbers(other)
    assert numbers(clips_at_random_indices(plain, num_clips=5, generator=generator)) != numbers(
        drawn
    )
    with pytest.raises(ValueError, match="give one of them"):
        clips_at_random_indices(plain, seed=3, generator=generator)


@pytest.mark.parametrize("name", ["silent.mp4", "open.mp4", "uneven.mkv", "late.mp4", "vp9.webm"])
@pytest.mark.parametrize("by", ["indices", "timestamps"])
def test_a_decoder_of_torchcodec_gives_the_same_clips(name: str, by: str) -> None:
    decoders = pytest.importorskip("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(sample(name)))
    reader = Decoded(sample(name))
    sampler = {"indices": clips_at_random_indices, "timestamps": clips_at_random_timestamps}[by]
    state = torch.get_rng_state()
    asked: dict[str, Any] = {"num_clips": 4, "num_frames_per_clip": 3}
    theirs, ours = (sampler(source, **asked, seed=5) for source in (decoder, reader))
    assert isinstance(theirs, FrameBatch)
    assert numbers(theirs) == numbers(ours)
    assert torch.equal(theirs.pts_seconds, ours.pts_seconds)
    # One generator, for one after the other.
    found = []
    for sources in ((decoder, reader), (reader, decoder)):
        generator = torch.Generator().manual_seed(5)
        found.append([numbers(sampler(one, **asked, generator=generator)) for one in sources])
    assert found[0] == found[1]
    assert found[0][0] == numbers(theirs) != found[0][1]
    assert torch.equal(torch.get_rng_state(), state)
    # And torch's own state, which is left behind alike.
    states = []
    over_it = Decoded(sample(name))
    over_it.backend = "torchcodec"
    for source in (decoder, reader, over_it):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            assert numbers(sampler(source, **asked)) == numbers(theirs)
            states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)
    assert not torch.equal(states[0], torch.Generator().manual_seed(5).get_state())


@pytest.mark.parametrize(
    ("by", "params"),
    [
        ("indices", {"sampling_range_start": -91}),
        ("timestamps", {"seconds_between_frames": float("nan")}),
    ],
)
def test_what_torchcodec_lets_pass_is_refused_for_its_decoders_too(
    by: str, params: dict[str, Any]
) -> None:
    decoders = pytest.importorskip("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(sample("silent.mp4")))
    sampler = {"indices": clips_at_random_indices, "timestamps": clips_at_random_timestamps}[by]
    for source in (decoder, Decoded(sample("silent.mp4"))):
        with pytest.raises(ValueError, match="must be"):
            sampler(source, **params)


def test_the_sampler_of_torchcodec_is_what_its_decoders_go_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samplers = pytest.importorskip("torchcodec.samplers")
    from torchcodec.decoders import VideoDecoder

    called = []
    real = samplers.clips_at_regular_indices
    monkeypatch.setattr(
        samplers, "clips_at_regular_indices", lambda *a, **k: called.append(k) or real(*a, **k)
    )
    decoder = VideoDecoder(str(sample("silent.mp4")), dimension_order="NHWC")
    clips = clips_at_regular_indices(decoder, num_clips=2)
    assert clips.data.shape == (2, 1, 96, 128, 3)
    reader = Decoded(sample("silent.mp4"))
    clips_at_regular_indices(reader, num_clips=3)
    assert [keywords["num_clips"] for keywords in called] == [2]
    reader.backend = "torchcodec"
    assert numbers(clips_at_regular_indices(reader, num_clips=4)) == [[0], [29], [59], [89]]
    assert [keywords["num_clips"] for keywords in called] == [2, 4]


def test_a_sample_of_a_shard_is_what_its_one_video_is(plain: Decoded) -> None:
    fields = {"mp4": plain, "json": b"{}", "txt": b"a cat"}
    for source in (
        {"__key__": "000010005", "__url__": "clips.mp4", **fields},
        Sample("000010005", fields, {}),  # type: ignore[arg-type]
        {"__key__": "000010005", "front.MOV": plain},
    ):
        assert numbers(clips_at_regular_indices(source, num_clips=2)) == [[0], [89]]
    with pytest.raises(Rejected, match="none of the fields of sample k is a video: json, txt"):
        clips_at_random_indices({"__key__": "k", "json": b"", "txt": b"", "__url__": "a.mp4"})
    with pytest.raises(ReelmillError, match=r"sample k has several videos, a\.mp4, mp4"):
        clips_at_random_indices({"__key__": "k", "a.mp4": b"", "mp4": b""})
    with pytest.raises(ReelmillError, match="field mp4 of sample k holds a Tensor, not a video's"):
        clips_at_random_indices({"__key__": "k", "mp4": torch.zeros(1)})


SAMPLERS: dict[str, Any] = {
    "random_indices": partial(clips_at_random_indices, num_clips=4, seed=5),
    "regular_indices": partial(clips_at_regular_indices, num_clips=4),
    "random_timestamps": partial(clips_at_random_timestamps, num_clips=4, seed=5),
    "regular_timestamps": partial(clips_at_regular_timestamps, seconds_between_clip_starts=0.7),
}


@pytest.mark.parametrize("name", ["open.mp4", "uneven.mkv", "trimmed.mp4"])
def test_all_backends_give_the_same_clips_for_the_same_seed(name: str) -> None:
    here = [one for one, found in backends().items() if "cpu" in found.devices]
    assert "pyav" in here
    for sampler in SAMPLERS.values():
        with open_video(sample(name), backend="pyav") as reader:
            wanted = sampler(reader, num_frames_per_clip=3)
        assert len(wanted) >= 3
        for backend in here:
            try:
                found = sampler(str(sample(name)), num_frames_per_clip=3, backend=backend)
            except UnsupportedError:
                continue
            assert numbers(found) == numbers(wanted), backend
            torch.testing.assert_close(found.pts_seconds, wanted.pts_seconds)
            torch.testing.assert_close(found.duration_seconds, wanted.duration_seconds)


def test_what_a_reader_can_be_opened_of_is_opened_and_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sample("silent.mp4")
    tar = tmp_path / "00000.tar"
    with tarfile.open(tar, "w") as out:
        out.add(path, "000010005.mp4")
    closed = []
    real = VideoReader.__exit__
    monkeypatch.setattr(
        VideoReader, "__exit__", lambda self, *raised: closed.append(1) or real(self, *raised)
    )
    data = path.read_bytes()
    sources: list[Any] = [path, str(path), data, io.BytesIO(data), (tar, "000010005")]
    sources += [{"__key__": "000010005", "mp4": data}, Sample("000010005", {"mp4": data}, {})]
    for source in sources:
        clips = clips_at_regular_indices(source, num_clips=2, mode="stream", output_format="THWC")
        assert clips.data.shape == (2, 1, 96, 128, 3)
        assert [number_of(frame[0, ..., 0].numpy()) for frame in clips.data] == [0, 89]
    assert len(closed) == len(sources)
    with open_video(path) as reader:
        clips_at_random_indices(reader)
        assert len(closed) == len(sources)


@pytest.mark.parametrize("mode", ["seek", "stream"])
def test_a_frame_that_several_clips_hold_is_decoded_once(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reelmill.loading.readers.pyav import PyavDecoder

    written = []
    real = PyavDecoder.write
    monkeypatch.setattr(
        PyavDecoder, "write", lambda self, *given: written.append(1) or real(self, *given)
    )
    clips = clips_at_random_indices(
        sample("silent.mp4"),
        num_clips=6,
        num_frames_per_clip=3,
        sampling_range_start=87,
        sampling_range_end=88,
        backend="pyav",
        mode=mode,
    )
    assert numbers(clips) == [[87, 88, 89]] * 6
    assert len(written) == 3


def test_clips_are_the_same_whichever_worker_they_are_made_by() -> None:
    data = sample("silent.mp4").read_bytes()
    samples = [{"__key__": f"{number:09d}", "mp4": data} for number in range(5)]
    now = torch.zeros((), dtype=torch.int64).share_memory_()
    clips_of = sample_clips(
        "random_indices",
        num_clips=2,
        num_frames_per_clip=2,
        seed=0,
        epoch=now.item,
        opening={"backend": "pyav"},
    )
    runs = []
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            _Mapped(samples, clips_of),
            batch_size=None,
            num_workers=workers,
            shuffle=workers > 0,
            persistent_workers=workers > 0,
        )
        for epoch in range(2):
            now.fill_(epoch)
            runs.append({one["__key__"]: one["clips"].pts_seconds.tolist() for one in loader})
    first, second = runs[:2]
    assert runs[2:] == [first, second]
    assert len({str(starts) for run in (first, second) for starts in run.values()}) == 10


def test_each_epoch_of_a_dataset_has_clips_of_its_own_whoever_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("torchdata")
    tar = tmp_path / "00000.tar"
    with tarfile.open(tar, "w") as out:
        for number in range(4):
            out.add(sample("silent.mp4"), f"{number:09d}.mp4")
    clips_of = sample_clips(
        "random_indices", num_clips=3, num_frames_per_clip=2, seed=0, opening={"backend": "pyav"}
    )
    runs = []
    for workers in (0, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than shards, and of torchdata's own
            loader = load(str(tar)).map(clips_of).loader(2, num_workers=workers)
            for _ in range(2):
                starts: dict[str, Any] = {}
                for batch in loader:
                    assert batch["clips"].data.shape == (2, 3, 2, 3, 96, 128)
                    found = batch["clips"].pts_seconds.tolist()
                    starts |= dict(zip(batch["__key__"], found, strict=True))
                runs.append(starts)
    first, second = runs[:2]
    assert runs[2:] == [first, second]
    assert len(first) == 4
    assert all(first[key] != second[key] for key in first)


class _Mapped(torch.utils.data.Dataset):  # type: ignore[misc]
    def __init__(self, samples: list[dict[str, Any]], function: Any) -> None:
        self.samples, self.function = samples, function

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, at: int) -> Any:
        return self.function(self.samples[at])


def test_how_to_open_a_file_is_not_said_of_what_is_open(plain: Decoded) -> None:
    with pytest.raises(ValueError, match="backend, mode say how to open a file"):
        clips_at_random_indices(plain, backend="pyav", mode="seek")


def test_a_map_function_puts_clips_where_the_video_was(plain: Decoded) -> None:
    clips_of = sample_clips("random_indices", num_clips=2, num_frames_per_clip=3, seed=0)
    sent = pickle.loads(pickle.dumps(clips_of))
    found = sent({"__key__": "a", "mp4": plain, "cls": 4})
    assert found.keys() == {"__key__", "cls", "clips"}
    wanted = clips_at_random_indices(
        plain, num_clips=2, num_frames_per_clip=3, seed=clip_seed(0, 0, "a")
    )
    assert torch.equal(found["clips"].data, wanted.data)
    assert torch.equal(found["clips"].pts_seconds, wanted.pts_seconds)
    batch = collate([found, sent({"__key__": "b", "mp4": plain, "cls": 7})])
    assert batch["clips"].data.shape == (2, 2, 3, 3, 96, 128)
    assert batch["clips"].duration_seconds.shape == (2, 2, 3)
    assert batch["cls"].tolist() == [4, 7]


def test_clips_of_a_sample_depend_on_seed_epoch_and_key_alone(plain: Decoded) -> None:
    def starts(key: str, seed: int = 0, **more: Any) -> list[float]:
        extra = more.pop("fields", {})
        mapped = sample_clips("random_timestamps", num_clips=6, seed=seed, into="v", **more)
        clips = mapped({"__key__": key, "mp4": plain, **extra})["v"]
        found: list[float] = clips.pts_seconds[:, 0].tolist()
        return found

    state = torch.get_rng_state()
    assert starts("a") == starts("a", epoch=lambda: 0)
    assert len({tuple(one) for one in (starts("a"), starts("b"), starts("a", 1))}) == 3
    second = starts("a", epoch=1)
    assert second != starts("a")
    assert second == starts("a", epoch=lambda: 1) == starts("a", fields={"__epoch__": 1})
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        drawn = sample_clips("random_indices", num_clips=6)
        torch.manual_seed(0)
        first, second = (drawn({"__key__": "a", "mp4": plain})["clips"].data for _ in range(2))
        assert not torch.equal(first, second)


def test_the_seed_of_a_sample_is_the_same_on_every_machine() -> None:
    assert clip_seed(0, 0, "000010005") == 5364996713987363184
    found = {clip_seed(seed, epoch, "k") for seed in range(20) for epoch in range(20)}
    assert len(found) == 400
    assert max(found) < 2**63


def test_a_map_function_refuses_what_its_sampler_does_not_take() -> None:
    with pytest.raises(ValueError, match="no way to sample 'random': there are random_indices,"):
        sample_clips("random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes no num_clip: there are num_clips, num_frames"):
        sample_clips("random_indices", num_clip=3)
    with pytest.raises(ValueError, match="clips_at_regular_timestamps needs seconds_between_clip"):
        sample_clips("regular_timestamps")
    with pytest.raises(ValueError, match="a sample is a mapping of fields, not a tuple"):
        sample_clips("random_indices")(("a", b""))
    regular = sample_clips("regular_timestamps", seconds_between_clip_starts=1, seed=3)
    reader = Decoded(sample("silent.mp4"))
    assert regular({"__key__": "a", "mp4": reader})["clips"].data.shape[:2] == (3, 1)
