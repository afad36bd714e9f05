"""A stand-in for the ``torchvision.io`` of releases that read video, with the habits of its
PyAV backend: seeks go to keyframes, times are floats, frames are not turned."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import av


class VideoReader:
    def __init__(self, src: str | bytes, stream: str = "video", num_threads: int = 0) -> None:
        if not isinstance(src, str | bytes):
            raise ValueError(f"src must be either string, Tensor or bytes object. Got {type(src)}")
        kind, _, number = stream.partition(":")
        self._stream = {kind: int(number or 0)}
        self._container: Any = av.open(io.BytesIO(src) if isinstance(src, bytes) else src)
        self._frames = self._container.decode(**self._stream)

    def __iter__(self) -> VideoReader:
        return self

    def __next__(self) -> dict[str, Any]:
        import torch

        frame = next(self._frames)
        data = torch.as_tensor(frame.to_rgb().to_ndarray()).permute(2, 0, 1)
        return {"data": data, "pts": float(frame.pts * frame.time_base)}

    def seek(self, time_s: float, keyframes_only: bool = False) -> VideoReader:
        stream = self._container.streams.get(**self._stream)[0]
        offset = round(max(time_s, 0) / stream.time_base)
        self._container.seek(offset, backward=True, any_frame=False, stream=stream)
        self._frames = self._container.decode(**self._stream)
        return self


def modules() -> dict[str, ModuleType]:
    """What ``sys.modules`` is to hold."""
    package, inside = ModuleType("torchvision"), ModuleType("torchvision.io")
    package.io = inside  # type: ignore[attr-defined]
    package.__path__ = []
    inside.VideoReader = VideoReader  # type: ignore[attr-defined]
    return {"torchvision": package, "torchvision.io": inside}
