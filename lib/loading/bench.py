"""What reading frames costs: frames a second and CPU, by what decodes and by what is asked for.

Beside it, in the same run, what ffmpeg takes to decode the same frames and throw them away: the
limit of whatever decodes on the CPU.
"""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from reelmill.errors import MissingDependencyError, ReelmillError, Rejected, told
from reelmill.loading.readers import VideoMetadata
from reelmill.loading.readers.base import Mode
from reelmill.media.ffmpeg import FfmpegError, ffmpeg_exe
from reelmill.media.probe import FORMATS, MAX_PIXELS

Pattern: TypeAlias = Literal["sequential", "every_nth", "random", "clips"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

REQUEST = 32
"""Frames that are asked for at once where many follow each other: what fits into memory at any
size."""

_TIMEOUT_S: Final = 600.0
_TICK_S: Final = 0.001
"""What ffmpeg rounds its clocks to."""

_CLOCKS: Final = re.compile(rb"bench: utime=([0-9.]+)s stime=([0-9.]+)s rtime=([0-9.]+)s")


@dataclass(frozen=True)
class Access:
    """What is asked of each file.

    Attributes:
        frames: so many at most, from its beginning, one after the other: all of them
            (``sequential``), or every ``every``-th (``every_nth``).
        singles: single frames anywhere in it, asked for at once (``random``).
        clips: clips anywhere in it, of ``clip_frames`` frames each, asked for at once (``clips``).
        seed: what decides on those that are anywhere; they are the same for all that decode.
    """

    frames: int = 300
    every: int = 10
    singles: int = 16
    clips: int = 2
    clip_frames: int = 16
    seed: int = 0

    def requests(self, pattern: Pattern, video: VideoMetadata) -> list[list[int]]:
        """The frame numbers that are asked for, a list for each time."""
        if pattern in ("sequential", "every_nth"):
            step = self.every if pattern == "every_nth" else 1
            wanted = range(0, min(self.frames, video.num_frames), step)
            return [list(wanted[at : at + REQUEST]) for at in range(0, len(wanted), REQUEST)]
        from reelmill.loading.samplers.plan import random_indices
        from reelmill.loading.samplers.sampling import generator_of

        clips, length = (self.singles, 1) if pattern == "random" else (self.clips, self.clip_frames)
        found = random_indices(
            video,
            num_clips=clips,
            num_frames_per_clip=min(length, video.num_frames),
            generator=generator_of(self.seed, None),
        )
        return [[number for clip in found for number in clip]]


@dataclass(frozen=True)
class Subject:
    """What decodes: a backend on a device in a mode; or ffmpeg, which has no mode."""

    backend: str
    device: str = "cpu"
    mode: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.backend, self.mode, self.device) if part)


LIMIT = Subject("ffmpeg")


@dataclass(frozen=True)
class Cost:
    """What some frames of a file took: medians over the rounds, in seconds. ``why_not`` says why
    there are none."""

    frames: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    why_not: str = ""


@dataclass(frozen=True)
class Row:
    """What one subject takes for one pattern, over all the files that it reads.

    ``speed_by_ffmpeg`` and ``cpu_by_ffmpeg`` are its frames a second and its CPU-seconds a frame
    divided by those of ffmpeg for the same files, read from their beginning; None where ffmpeg
    cannot decode one of them.
    """

    pattern: Pattern
    subject: Subject
    files: int
    frames_per_second: float
    cpu_seconds_per_frame: float
    speed_by_ffmpeg: float | None
    cpu_by_ffmpeg: float | None


@dataclass(frozen=True)
class Report:
    """All that was measured.

    Attributes:
        costs: of each subject, pattern and file.
        missing: backends that cannot be used here on a device, and what to do about it.
    """

    files: Sequence[str]
    access: Access
    rounds: int
    costs: Mapping[tuple[Subject, Pattern, str], Cost]
    missing: Mapping[str, str]

    @property
    def failed(self) -> dict[tuple[Subject, str], str]:
        """Why a subject cannot read a file."""
        return {
            (subject, file): cost.why_not
            for (subject, _, file), cost in self.costs.items()
            if cost.why_not
        }

    @property
    def rows(self) -> list[Row]:
        """By pattern in their order, in each the limit first, then subjects, the fastest first."""
        asked = dict.fromkeys((pattern, subject) for subject, pattern, _ in self.costs)
        rows = [row for one in asked if (row := self._row(*one)) is not None]
        return sorted(
            rows,
            key=lambda row: (
                PATTERNS.index(row.pattern),
                row.subject != LIMIT,
                -row.frames_per_second,
            ),
        )

    def _row(self, pattern: Pattern, subject: Subject) -> Row | None:
        mine = {
            file: cost
            for file in self.files
            if (cost := self.costs.get((subject, pattern, file))) and not cost.why_not
        }
        if not mine:
            return None
        rate, cpu = _rates(list(mine.values()))
        limits = [self.costs[LIMIT, PATTERNS[0], file] for file in mine]
        if any(cost.why_not for cost in limits):
            return Row(pattern, subject, len(mine), rate, cpu, None, None)
        fastest, least = _rates(limits)
        return Row(pattern, subject, len(mine), rate, cpu, rate / fastest, cpu / least)

    def as_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {
            "files": list(self.files),
            "access": asdict(self.access),
            "rounds": self.rounds,
            "rows": [
                {"pattern": row.pattern, **asdict(row.subject)}
                | {name: value for name, value in asdict(row).items() if name != "subject"}
                for row in self.rows
            ],
            "by_file": [
                {"pattern": pattern, **asdict(subject), "file": file, **asdict(cost)}
                for (subject, pattern, file), cost in self.costs.items()
            ],
            "missing": dict(self.missing),
        }


def measure(
    files: Sequence[Path],
    access: Access,
    *,
    backends: Sequence[str] = (),
    rounds: int = 3,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Read ``files`` in every way, ``rounds`` times, and say what that took.

    Each measurement opens the file, reads what is asked for, and closes it, as training does. All
    that is compared takes turns in every round, so that what else the machine does falls on all
    alike. Torch has one thread meanwhile, as in the workers of its DataLoader; so has ffmpeg, whose
    start and look into the file are not counted.

    Args:
        backends: those to measure; all that are here, if none is named.
        progress: told how many measurements are done, of how many.

    Raises:
        ReelmillError: a file cannot be read, or there is no such backend.
        MissingDependencyError: there is no torch, or none of those named.
    """
    subjects, missing = _subjects(backends)
    tasks = [
        task
        for file in dict.fromkeys(str(file.absolute()) for file in files)
        for task in _tasks(file, access, subjects)
    ]
    taken: dict[_Task, list[Cost]] = {task: [] for task in tasks}
    failed: dict[tuple[Subject, str], Cost] = {}
    with _one_thread():
        # The first use of a library, and of a file, costs more.
        for task in tasks:
            _measured(task.first, failed)
        for number in range(rounds * len(tasks)):
            task = tasks[number % len(tasks)]
            if cost := _measured(task, failed):
                taken[task].append(cost)
            if progress is not None:
                progress(number + 1, rounds * len(tasks))
    costs = {
        (task.subject, task.pattern, task.file): failed.get((task.subject, task.file))
        or _median(taken[task])
        for task in tasks
    }
    return Report(list(dict.fromkeys(task.file for task in tasks)), access, rounds, costs, missing)


@dataclass(frozen=True)
class _Task:
    """One measurement: who is asked for which frames of a file, all those of a list at once."""

    subject: Subject
    pattern: Pattern
    file: str
    requests: tuple[tuple[int, ...], ...]

    @property
    def frames(self) -> int:
        return sum(map(len, self.requests))

    @property
    def first(self) -> _Task:
        """The same for the first frame only."""
        return replace(self, requests=((0,),))


def _subjects(names: Sequence[str]) -> tuple[list[Subject], dict[str, str]]:
    """What can decode here, and why the rest cannot."""
    from reelmill.loading.readers import backends

    there = backends()
    if unknown := [name for name in names if name not in there]:
        raise ReelmillError(f"no backend {', '.join(unknown)}: there are {', '.join(there)}")
    subjects: list[Subject] = []
    missing = {}
    for name in names or there:
        for device, reason in there[name].why_not.items():
            if reason:
                missing[f"{name} on {device}"] = reason
            else:
                subjects += [Subject(name, device, mode) for mode in get_args(Mode)]
    if missing and not subjects:
        raise MissingDependencyError("; ".join(missing.values()))
    return subjects, missing


def _tasks(file: str, access: Access, subjects: Sequence[Subject]) -> Iterator[_Task]:
    """All that is measured of a file."""
    from reelmill.loading.readers import open_video

    try:
        with open_video(file, backend="pyav") as reader:
            video = reader.metadata
    except OSError as error:
        raise ReelmillError(f"cannot read {file}: {error.strerror}") from None
    except Rejected as rejected:
        raise ReelmillError(f"{file}: {rejected}") from None
    for pattern in PATTERNS:
        requests = tuple(map(tuple, access.requests(pattern, video)))
        if pattern == PATTERNS[0]:
            yield _Task(LIMIT, pattern, file, requests)
        for subject in subjects:
            yield _Task(subject, pattern, file, requests)


def _measured(task: _Task, failed: dict[tuple[Subject, str], Cost]) -> Cost | None:
    """What a task takes; None where its subject has failed to read its file, now or before."""
    if (task.subject, task.file) in failed:
        return None
    try:
        return _decoded(task) if task.subject == LIMIT else _read(task)
    except Exception as error:  # whatever a library raises, the others are still to be measured
        failed[task.subject, task.file] = Cost(why_not=told(error))
        return None


def _read(task: _Task) -> Cost:
    from reelmill.loading.readers import open_video

    one = task.subject
    how: dict[str, Any] = {"backend": one.backend, "device": one.device, "mode": one.mode}
    cpu, wall = _cpu_seconds(), time.perf_counter()
    with open_video(task.file, **how) as reader:
        for numbers in task.requests:
            reader.read_frames(numbers)
        if one.device != "cpu":
            import torch

            torch.cuda.synchronize()
    return Cost(task.frames, time.perf_counter() - wall, _cpu_seconds() - cpu)


def _decoded(task: _Task) -> Cost:
    """As many frames by ffmpeg, thrown away as they are decoded: what its own clocks say."""
    command = [ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats", "-benchmark"]
    command += ["-threads", "1", "-noautorotate", "-max_pixels", str(MAX_PIXELS)]
    command += ["-format_whitelist", FORMATS, "-protocol_whitelist", "file"]
    # No stream is named: of several, ffmpeg too takes the best one.
    command += ["-i", f"file:{task.file}", "-an", "-sn", "-dn", "-fps_mode", "passthrough"]
    command += ["-frames:v", str(task.frames), "-f", "null", "-"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S
    )
    clocks = _CLOCKS.search(done.stderr)
    if done.returncode or clocks is None:
        raise FfmpegError(f"ffmpeg cannot decode it (status {done.returncode})")
    user, system, wall = (max(float(clock), _TICK_S) for clock in clocks.groups())
    return Cost(task.frames, wall, user + system)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_seconds() -> float:
    """CPU-seconds so far of this process and its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _median(costs: Sequence[Cost]) -> Cost:
    wall = statistics.median(cost.wall for cost in costs)
    return Cost(costs[0].frames, wall, statistics.median(cost.cpu for cost in costs))


def _rates(costs: Sequence[Cost]) -> tuple[float, float]:
    """Frames a second, and CPU-seconds a frame, of all together."""
    frames = sum(cost.frames for cost in costs)
    wall, cpu = sum(cost.wall for cost in costs), sum(cost.cpu for cost in costs)
    return frames / wall, cpu / frames
