"""Cutting, frames and flow, against ffmpeg's command line and bare loops of the same calls.

All codecs run on one thread on both sides, as the media stages do for equal bytes; figures are per
second of video. The clips follow each other, end to end.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import simplejpeg
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from reelmill.media import decode
from reelmill.media.cut import CutFailure, copy_spans, encode_spans
from reelmill.media.flow import encode_kitti
from reelmill.media.images import decode_gray
from reelmill.media.probe import probe
from reelmill.media.spans import Span
from reelmill.shards.reader import Sample as InputSample
from reelmill.tasks.contract import Job, Params, Sample
from reelmill.tasks.flow import Flow, FlowParams
from reelmill.tasks.frames import Frames, FramesParams
from reelmill.tasks.media_fields import pictures_of
from tests.benchmarks.clips import SECONDS, even_spans, ffmpeg, videos
from tests.benchmarks.harness import compare, show_costs

ROUNDS = 3
PICTURES = FramesParams(count=3, stride=1, max_side=320, max_samples=60)
ENCODER = ("-c:v", "libx264", "-crf", "18", "-preset", "veryfast", "-pix_fmt", "yuv420p")
MUXER = ("-c:a", "aac", "-threads", "1", "-fps_mode", "passthrough", "-movflags", "+faststart")
GRAPH_THREADS = ("-filter_complex_threads", "1")

Subjects = Mapping[str, Callable[[Path], object]]


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as folder:
        for name, path in videos(Path(folder)).items():
            info = probe(path, check=False)
            seconds = min(float(info.duration), SECONDS)
            spans = even_spans(seconds)
            length = float(sum(end - start for start, end in spans))
            sample = InputSample("000000000_000", {"mp4": path.read_bytes()}, {})
            pictures = _pictures(sample)
            _compare("exact cuts", name, _exact(path, spans, info.has_audio), length)
            _compare("copied cuts", name, _copied(path, spans), length)
            made = sum(len(pictures_of(one.fields)) for one in pictures)
            _compare("frames", name, _frames(sample, made), made / float(info.fps))
            _compare("flow", name, _flow(pictures), made / float(info.fps))


def _compare(what: str, name: str, subjects: Subjects, seconds: float) -> None:
    costs = compare(subjects, rounds=ROUNDS, warm=False)
    title = f"{what.capitalize()}, {name} ({seconds:.1f} s)"
    show_costs(title, costs, "s of video", seconds, next(iter(subjects)))


def _exact(path: Path, spans: list[Span], audio: bool) -> Subjects:
    def ours(folder: Path) -> None:
        made = encode_spans(path, spans, folder, timeout_s=600)
        assert not any(isinstance(clip, CutFailure) for clip in made)

    def by_hand(folder: Path) -> None:
        """One process, one decode, all clips."""
        count = len(spans)
        graph = [f"[0:v]split={count}" + "".join(f"[s{i}]" for i in range(count))]
        if audio:
            graph.append(f"[0:a]asplit={count}" + "".join(f"[t{i}]" for i in range(count)))
        outputs: list[str | Path] = []
        for i, (start, end) in enumerate(spans):
            span = f"start={float(start)}:end={float(end)}"
            graph.append(f"[s{i}]trim={span},setpts=PTS-STARTPTS[v{i}]")
            outputs += ["-map", f"[v{i}]"]
            if audio:
                graph.append(f"[t{i}]atrim={span},asetpts=PTS-STARTPTS[a{i}]")
                outputs += ["-map", f"[a{i}]"]
            outputs += [*ENCODER, *MUXER, folder / f"{i}.mp4"]
        complete = ("-filter_complex", ";".join(graph))
        ffmpeg(*GRAPH_THREADS, "-threads", "1", "-i", path, *complete, *outputs)

    def one_by_one(folder: Path) -> None:
        """A process for each clip, as most scripts do."""
        for i, (start, end) in enumerate(spans):
            window = ("-ss", str(float(start)), "-t", str(float(end - start)))
            ffmpeg(*window, "-threads", "1", "-i", path, *ENCODER, *MUXER, folder / f"{i}.mp4")

    return {
        "ours, encode_spans": ours,
        "one ffmpeg command": by_hand,
        "an ffmpeg command per clip": one_by_one,
    }


def _copied(path: Path, spans: list[Span]) -> Subjects:
    def one_by_one(folder: Path) -> None:
        for i, (start, end) in enumerate(spans):
            window = ("-ss", str(float(start)), "-t", str(float(end - start)))
            ffmpeg(
                *window, "-i", path, "-c", "copy", "-movflags", "+faststart", folder / f"{i}.mp4"
            )

    def segments(folder: Path) -> None:
        length = str(float(spans[0][1] - spans[0][0]))
        last = str(float(spans[-1][1]))
        options = ("-f", "segment", "-segment_time", length, "-reset_timestamps", "1")
        options += ("-segment_format_options", "movflags=+faststart")
        ffmpeg("-t", last, "-i", path, "-c", "copy", *options, folder / "%d.mp4")

    return {
        "ours, copy_spans": lambda folder: copy_spans(path, spans, folder),
        "one ffmpeg -c copy -f segment": segments,
        "an ffmpeg -c copy per clip": one_by_one,
    }


def _frames(sample: InputSample, count: int) -> Subjects:
    def bare(_: Path) -> None:
        scaler = VideoReformatter()
        for number, frame in enumerate(_decoded(sample.fields["mp4"])):
            if number == count:
                break
            width, height = decode.resized(frame.width, frame.height, PICTURES.resize)
            rgb = scaler.reformat(
                frame, width, height, "rgb24", interpolation=decode._INTERPOLATION, threads=1
            ).to_ndarray()
            simplejpeg.encode_jpeg(
                rgb, PICTURES.quality, "RGB", colorsubsampling="420", fastdct=False
            )

    return {
        "ours, stage frames": lambda _: _pictures(sample),
        "bare loop of the same calls": bare,
        "decoding alone": lambda _: _first(_decoded(sample.fields["mp4"]), count),
    }


def _flow(samples: list[InputSample]) -> Subjects:
    grays = [
        [decode_gray(one.fields[field]) for _, field in pictures_of(one.fields)] for one in samples
    ]

    def dis(_: Path) -> list[NDArray[np.float32]]:
        return [_dis(first, second) for group in grays for first, second in pairwise(group)]

    def shipped(folder: Path) -> None:
        """With OpenCV's kernels for this CPU, which the stage does without for equal bits."""
        cv2.setUseOptimized(True)
        dis(folder)
        cv2.setUseOptimized(False)

    def same_calls(_: Path) -> None:
        for one in samples:
            group = [decode_gray(one.fields[field]) for _, field in pictures_of(one.fields)]
            for first, second in pairwise(group):
                encode_kitti(_dis(first, second))

    return {
        "ours, stage flow": lambda _: _made(Flow(), FlowParams(), samples),
        "bare loop: JPEG, DIS, KITTI PNG": same_calls,
        "bare loop: DIS alone": dis,
        "DIS alone, OpenCV as shipped, 1 thread": shipped,
    }


def _dis(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return cast(NDArray[np.float32], engine.calc(first, second, None))


def _pictures(sample: InputSample) -> list[InputSample]:
    made = _made(Frames(), PICTURES, [sample])
    return [InputSample(one.key, cast(dict[str, bytes], one.fields), {}) for one in made]


def _made(stage: Frames | Flow, params: Params, samples: list[InputSample]) -> list[Sample]:
    job: Any = Job(cast(Any, None), cast(Any, None), params, {}, Path())
    return [one for sample in samples for one in stage.each(job, sample) if isinstance(one, Sample)]


def _decoded(data: bytes) -> Iterator[av.VideoFrame]:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        yield from container.decode(stream)


def _first(frames: Iterator[av.VideoFrame], count: int) -> None:
    for number, _ in enumerate(frames):
        if number == count:
            break
