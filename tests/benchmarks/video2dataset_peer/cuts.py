"""Cuts by video2dataset: ``cuts.py VIDEO ROUNDS`` prints CPU-seconds, wall and scenes of each."""

import sys
import time
from pathlib import Path

from video2dataset.subsamplers.cut_detection_subsampler import CutDetectionSubsampler


def main(video: str, rounds: str) -> None:
    data = Path(video).read_bytes()
    subsampler = CutDetectionSubsampler(cut_detection_mode="all")
    for _ in range(int(rounds)):
        cpu, wall = time.process_time(), time.perf_counter()
        _, cuts, error = subsampler({"video": [data]})
        if error:
            sys.exit(error)
        print(time.process_time() - cpu, time.perf_counter() - wall, len(cuts["cuts_original_fps"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
