"""video2dataset's clipping, run by its own Python: ``cut.py VIDEO PRECISION CLIPS FOLDER``.

``CLIPS`` is JSON: pairs of seconds, and the seconds of the video's keyframes, which it is given for
nothing. Prints what the call alone cost, without the start of Python: seconds of CPU, and wall.
"""

import json
import resource
import sys
import time
from pathlib import Path


def main(video: str, precision: str, clips: str, folder: str) -> None:
    from video2dataset.subsamplers.clipping_subsampler import ClippingSubsampler

    spans, keyframes = json.loads(clips)
    subsampler = ClippingSubsampler(3, {"video": "mp4"}, precision=precision)
    streams = {"video": [Path(video).read_bytes()]}
    metadata = {"key": "0", "clips": spans, "video_metadata": {"keyframe_timestamps": keyframes}}
    cpu, wall = _cpu_seconds(), time.perf_counter()
    made, _, error = subsampler(streams, metadata)
    cost = {"cpu": _cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
    assert error is None, error
    for number, data in enumerate(made["video"]):
        (Path(folder) / f"{number}.mp4").write_bytes(data)
    print(json.dumps(cost))


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    main(*sys.argv[1:])
