"""A small video site on loopback whose pages yt-dlp's generic extractor understands."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reelmill.media.ffmpeg import ffmpeg_exe
from tests.stages.bad_server import BadServer, Exchange
from tests.stages.media_samples import sample

VTT = b"WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nHello\n\n"
_PAGE = (
    "<!DOCTYPE html><html><head><title>{title}</title>{head}</head>"
    "<body><h1>A page</h1>{body}</body></html>"
)


class VideoSite:
    """Serves while its ``with`` block lasts; each method makes a page and returns its URL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = BadServer()

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.server.__exit__(kind, error, traceback)

    def url(self, path: str) -> str:
        return self.server.url(path)

    def page(self, path: str, body: str = "", head: str = "", title: str = "A film") -> str:
        text = _PAGE.format(title=title, head=head, body=body)
        return self.server.on(path, body=text.encode(), Content_Type="text/html; charset=utf-8")

    def file(self, path: str, data: bytes, kind: str = "video/mp4") -> str:
        return self.server.on(path, body=data, Content_Type=kind)

    def watch(self, path: str = "/watch", name: str = "plain.mp4", **page: str) -> str:
        """A page that shows one file, in HTML 5."""
        video = self.file(f"{path}.mp4", sample(name).read_bytes())
        return self.page(path, f'<video src="{video}"></video>', **page)

    def open_graph(self, path: str = "/og") -> str:
        video = self.file(f"{path}.mp4", sample("plain.mp4").read_bytes())
        head = f'<meta property="og:video" content="{video}"><meta property="og:type" content="v">'
        return self.page(path, head=head)

    def hls(self, path: str = "/hls", *, subtitles: bool = True) -> str:
        """A page with a playlist: two heights, sound apart from them, and subtitles."""
        for name, source, streams in (
            ("low", "plain.mp4", ("-map", "0:v", "-c", "copy")),
            ("high", "plain.mp4", ("-map", "0:v", "-vf", "scale=256:192", "-threads", "1")),
            ("sound", "plain.mp4", ("-map", "0:a", "-c", "copy")),
        ):
            self._stream(f"{path}/{name}", sample(source), streams)
        text = self.file(f"{path}/en.vtt", VTT, "text/vtt")
        tail = "#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n"
        self.playlist(f"{path}/en.m3u8", f"{tail}{text}\n#EXT-X-ENDLIST\n")
        group = ',SUBTITLES="s"' if subtitles else ""
        lines = [
            f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="en",LANGUAGE="en",URI="{path}/sound.m3u8"',
            f'#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="s",NAME="en",LANGUAGE="en",URI="{path}/en.m3u8"'
            if subtitles
            else "",
        ]
        for name, size, rate in (("low", "128x96", 100_000), ("high", "256x192", 200_000)):
            codecs = 'CODECS="avc1.42c00b,mp4a.40.2"'
            lines += [
                f'#EXT-X-STREAM-INF:BANDWIDTH={rate},RESOLUTION={size},{codecs},AUDIO="a"{group}',
                f"{path}/{name}.m3u8",
            ]
        master = self.playlist(f"{path}.m3u8", "\n".join(filter(None, lines)) + "\n")
        return self.page(
            path, f'<video><source src="{master}" type="application/x-mpegURL"></video>'
        )

    def playlist(self, path: str, text: str) -> str:
        kind = "application/vnd.apple.mpegurl"
        return self.file(path, f"#EXTM3U\n#EXT-X-VERSION:4\n{text}".encode(), kind)

    def endless(self, path: str = "/endless") -> str:
        """A page whose video never ends."""

        async def pour(exchange: Exchange) -> None:
            await exchange.head(Content_Type="video/mp4")
            head = sample("fast.mp4").read_bytes()
            while True:
                await exchange.send(head)

        video = self.server.on(f"{path}.mp4", pour)
        return self.page(path, f'<video src="{video}"></video>')

    def answers(self, path: str, status: int, **reply: Any) -> str:
        return self.server.on(path, status=status, **reply)

    def _stream(self, path: str, source: Path, streams: tuple[str, ...]) -> None:
        folder = self.folder / path.strip("/")
        folder.mkdir(parents=True)
        command = [ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-i", source, *streams]
        hls = ("-f", "hls", "-hls_time", "1", "-hls_list_size", "0", "-hls_playlist_type", "vod")
        subprocess.run([*command, *hls, folder / "list.m3u8"], check=True)
        for segment in folder.glob("*.ts"):
            self.file(f"{path}/{segment.name}", segment.read_bytes(), "video/mp2t")
        lines = (folder / "list.m3u8").read_text().splitlines()
        text = "\n".join(f"{path}/{line}" if line.endswith(".ts") else line for line in lines)
        self.file(f"{path}.m3u8", text.encode(), "application/vnd.apple.mpegurl")
