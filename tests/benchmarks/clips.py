"""Videos to measure on, and ffmpeg's own command line."""

from __future__ import annotations

import subprocess
from pathlib import Path

from reelmill.flows.demo_media import make_demo_media
from reelmill.media.ffmpeg import ffmpeg_exe

REAL_MEDIA = Path(__file__).parents[2].parent / "shared" / "media"
SECONDS = 4


def ffmpeg(*arguments: str | Path) -> None:
    """Run ffmpeg, quietly."""
    command = [ffmpeg_exe(), "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def make_video(path: Path) -> Path:
    """A generated video of 1280×720 with noise, motion, sound and a keyframe every second."""
    picture = f"testsrc2=size=1280x720:rate=30:duration={SECONDS},noise=alls=8:allf=t"
    sound = f"sine=frequency=330:duration={SECONDS}"
    ffmpeg(
        *("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, "-pix_fmt", "yuv420p"),
        *("-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-g", "30", "-bf", "2"),
        *("-flags", "+cgop", "-c:a", "aac", path),
    )
    return path


def videos(folder: Path) -> dict[str, Path]:
    """The generated video, one of the demonstration, and real ones if they are at hand."""
    demo = folder / "demo"
    make_demo_media(demo)
    largest = max(demo.glob("*.mp4"), key=lambda path: path.stat().st_size)
    found = {
        "generated 720p": make_video(folder / "generated.mp4"),
        f"demo {largest.name}": largest,
    }
    for name in ("bigbuckbunny.mp4", "bikes.mp4"):
        if (REAL_MEDIA / name).is_file():
            found[name] = REAL_MEDIA / name
    return found
