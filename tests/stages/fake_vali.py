"""A stand-in for VALI 4.8 where there is no card: its names and signatures, with libavcodec for an
NVDEC. Names, signatures and what a seek does are those of the package, tried on the CPU.

The habits that matter: the best video is taken; a frame comes with the pts of its packet; a seek by
time gives the first frame at or behind it; a surface is written again by the next call; frames are
not turned; NV12 alone becomes RGB.
"""

from __future__ import annotations

from enum import IntEnum
from types import ModuleType
from typing import Any

import av
import numpy as np

PixelFormat = IntEnum("PixelFormat", "UNDEFINED NV12 P10 YUV444 RGB")
ColorSpace = IntEnum("ColorSpace", "BT_601 BT_709 UNSPEC")
ColorRange = IntEnum("ColorRange", "MPEG JPEG UDEF")
TaskExecInfo = IntEnum("TaskExecInfo", "SUCCESS FAIL END_OF_STREAM")

_FORMATS = {"yuv420p": PixelFormat.NV12, "yuv420p10le": PixelFormat.P10}
_MATRICES = {1: ColorSpace.BT_709, 5: ColorSpace.BT_601, 6: ColorSpace.BT_601}
_RANGES = {1: ColorRange.MPEG, 2: ColorRange.JPEG}


class SeekContext:
    def __init__(self, seek_ts: float) -> None:
        self.seek_tssec = seek_ts


class PacketData:
    def __init__(self) -> None:
        self.pts = 0


class ColorspaceConversionContext:
    def __init__(self, color_space: ColorSpace, color_range: ColorRange) -> None:
        self.color_space, self.color_range = color_space, color_range


class Surface:
    def __init__(self, form: PixelFormat, width: int, height: int) -> None:
        self.Format, self.Width, self.Height = form, width, height
        self.frame: Any = None
        self.lines = np.zeros((height, width * 3), np.uint8)

    @staticmethod
    def Make(format: PixelFormat, width: int, height: int, gpu_id: int) -> Surface:
        return Surface(format, width, height)

    def __dlpack__(self, **more: object) -> object:
        return self.lines.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.lines.__dlpack_device__()


class PyDecoder:
    def __init__(self, input: str, opts: dict[str, str], gpu_id: int = 0) -> None:
        self._container: Any = av.open(input)
        self._stream = self._container.streams.best("video")
        context = self._stream.codec_context
        self.StreamIndex = self._stream.index
        self.Width, self.Height = context.width, context.height
        self.Format = _FORMATS.get(context.pix_fmt, PixelFormat.UNDEFINED)
        self.ColorSpace = _MATRICES.get(context.colorspace, ColorSpace.UNSPEC)
        self.ColorRange = _RANGES.get(context.color_range, ColorRange.UDEF)
        self._frames = self._container.decode(self._stream)

    def DecodeSingleSurface(
        self, surf: Surface, pkt_data: PacketData, seek_ctx: SeekContext | None = None
    ) -> tuple[bool, TaskExecInfo]:
        least = None
        if seek_ctx is not None:
            least = round(seek_ctx.seek_tssec / self._stream.time_base)
            self._container.seek(least, stream=self._stream)
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            if least is None or frame.pts >= least:
                surf.frame, pkt_data.pts = frame, frame.pts
                return True, TaskExecInfo.SUCCESS
        return False, TaskExecInfo.END_OF_STREAM


class PySurfaceConverter:
    def __init__(self, gpu_id: int) -> None:
        pass

    def Run(
        self, src: Surface, dst: Surface, cc_ctx: ColorspaceConversionContext
    ) -> tuple[bool, TaskExecInfo]:
        if src.frame is None or cc_ctx.color_space == ColorSpace.UNSPEC:
            return False, TaskExecInfo.FAIL
        dst.lines[:] = src.frame.to_ndarray(format="rgb24").reshape(dst.lines.shape)
        return True, TaskExecInfo.SUCCESS


def module() -> ModuleType:
    """What ``sys.modules["python_vali"]`` is to be."""
    made: Any = ModuleType("python_vali")
    for one in (
        PixelFormat,
        ColorSpace,
        ColorRange,
        TaskExecInfo,
        SeekContext,
        PacketData,
        ColorspaceConversionContext,
        Surface,
        PyDecoder,
        PySurfaceConverter,
    ):
        setattr(made, one.__name__, one)
    return made
