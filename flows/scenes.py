"""The scenes of one file, for people: a table of them, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from reelmill.errors import ReelmillError, Rejected
from reelmill.media.decode import Device
from reelmill.media.scenes import (
    KINDS,
    Detector,
    Scores,
    TransNetV2Detector,
    find,
    score,
    spans,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

PICTURE_HEIGHT = 216


def chosen_detectors(
    kinds: Sequence[str], threshold: str | None, min_scene: str, weights: Path | None = None
) -> list[Detector]:
    """The detectors that a command line asks for; ``weights`` are TransNetV2's. Raises
    ReelmillError where it makes no sense."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ReelmillError(f"no detector {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if threshold is not None and len(kinds) > 1:
        raise ReelmillError("--threshold is for one detector; each of several takes its own")
    if "transnetv2" in kinds and weights is None:
        raise ReelmillError(
            "detector transnetv2 needs --weights: the file of the network's weights"
        )
    if weights is not None and "transnetv2" not in kinds:
        raise ReelmillError("--weights is for detector transnetv2: give -d transnetv2, too")
    settings = {"min_scene": min_scene} | ({} if threshold is None else {"threshold": threshold})
    try:
        asked = [KINDS[kind].model_validate(settings) for kind in dict.fromkeys(kinds)]
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        wrong = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            wrong = f"{wrong.replace('Input should', 'it must')}, not {first['input']}"
        raise ReelmillError(f"{option}: {wrong}") from None
    path = str(weights)
    return [one.bound(path) if isinstance(one, TransNetV2Detector) else one for one in asked]


def look(
    path: Path,
    detectors: Sequence[Detector],
    *,
    jobs: int,
    exact: bool,
    device: Device = "cpu",
) -> tuple[Scores, list[dict[str, Any]]]:
    """The scores of a file, and its scenes: ``start`` and ``end`` in seconds, and ``frames``, which
    is None where not all were looked at.

    Raises ReelmillError where the file cannot be read, or not in this way.
    """
    if device == "cuda" and not exact:
        raise ReelmillError("--fast looks at few frames, --cuda at all of them: leave one out")
    try:
        scores = score(path, detectors, jobs=jobs, exact=exact, device=device)
    except OSError as error:
        raise ReelmillError(f"cannot read {path}: {error.strerror}") from None
    except Rejected as rejected:
        raise ReelmillError(f"{path}: {rejected}") from None
    except ValueError as error:
        raise ReelmillError(f"{path} was not skimmed: {error}; leave out --fast") from None
    cuts = find(scores, detectors)
    edges = [int(scores.pts.min()), *cuts, scores.end]
    scenes = []
    for number, (start, end) in enumerate(spans(scores, cuts)):
        inside = (scores.pts >= edges[number]) & (scores.pts < edges[number + 1])
        scenes.append(
            {
                "start": round(float(start), 6),
                "end": round(float(end), 6),
                "frames": int(inside.sum()) if exact else None,
            }
        )
    return scores, scenes


def draw(
    path: Path,
    scores: Scores,
    scenes: Sequence[dict[str, Any]],
    detectors: Sequence[Detector],
    width: int,
) -> bytes:
    """The scenes as a PNG: what each detector saw, its threshold, the cuts, and pictures."""
    from reelmill.report.timeline import Curve, Scene, shown, timeline

    tick = scores.clock.time_base
    times = scores.pts.astype(np.float64) * float(tick)
    curves = []
    for detector in detectors:
        values, threshold = detector.curve(scores)
        curves.append(Curve(detector.kind, times, values, threshold))
    pictured = shown(len(scenes))
    pictures = _first_frames(path, [scenes[i]["start"] for i in sorted(pictured)])
    drawn = []
    for number, scene in enumerate(scenes):
        start, end = scene["start"], scene["end"]
        caption = f"{start:.2f} s, {end - start:.2f} s long"
        picture = next(pictures) if number in pictured else None
        drawn.append(Scene(start, end, caption, picture))
    length = scenes[-1]["end"] - scenes[0]["start"]
    subtitle = f"1 scene of {length:.2f} s"
    if len(scenes) > 1:
        average = length / len(scenes)
        subtitle = f"{len(scenes)} scenes in {length:.2f} s, {average:.2f} s on average"
    return timeline(curves, drawn, title=path.name, subtitle=subtitle, width=width)


def _first_frames(path: Path, starts: Sequence[float]) -> Any:
    """The frames shown at these seconds, ascending, small: RGB."""
    from reelmill.media.decode import frames, to_rgb, upright_size

    waiting = list(starts)
    small: NDArray[np.uint8] | None = None
    for frame in frames(path):
        if not waiting:
            return
        assert frame.pts is not None
        if float(frame.pts * frame.time_base) >= waiting[0] - 1e-6:
            width, height = upright_size(frame)
            share = min(1.0, PICTURE_HEIGHT / height)
            small = to_rgb(frame, (max(2, round(width * share)), max(2, round(height * share))))
            yield small
            waiting.pop(0)
    # A clock that was set back, or a damaged end: the last picture stands for those behind it.
    yield from (small for _ in waiting)
