"""video2dataset's subsamplers, run by its own Python: ``resolution.py VIDEO HEIGHT [FPS]``.

Prints the seconds of CPU (its own and ffmpeg's) and wall that they took, without its start.
"""

import json
import resource
import sys
import time
from pathlib import Path


def main(video: str, height: int, fps: "int | None") -> None:
    from video2dataset.subsamplers import FrameSubsampler, ResolutionSubsampler

    steps = [ResolutionSubsampler(resize_mode=["scale"], height=height)]
    if fps is not None:
        # The order that costs least: fewer frames are scaled.
        steps.insert(0, FrameSubsampler(frame_rate=fps))
    streams = {"video": [Path(video).read_bytes()]}
    cpu, wall = cpu_seconds(), time.perf_counter()
    for step in steps:
        streams, _, error = step(streams, None)
        if error is not None:
            sys.exit(error)
    cost = {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
    print(json.dumps({**cost, "bytes": len(streams["video"][0])}))


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
