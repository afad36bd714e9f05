"""Frames by VALI, on a card."""

from __future__ import annotations

import importlib
from typing import Any

from reelmill.errors import StageError
from reelmill.loading.readers.walking import WalkingDecoder
from reelmill.loading.tensors import need_card, torch_module
from reelmill.media.gpu.modules import first_lines


class ValiDecoder(WalkingDecoder):
    """VALI's decoder and its conversion to RGB, of 8 bits in 4:2:0.

    It does not turn frames; that is done here.
    """

    library = "VALI"
    _decoder: Any = None

    def begin(self, video: Any) -> None:
        vali, look = importlib.import_module("python_vali"), self.job.look
        card = int(self.job.device.partition(":")[2] or 0)
        try:
            self._decoder = vali.PyDecoder(video, {}, gpu_id=card)
        except (RuntimeError, ValueError) as error:
            raise self.unsupported(f"cannot open it ({first_lines(error)})") from error
        if self._decoder.StreamIndex != look.stream:
            raise self.unsupported("takes another video of the file")
        if self._decoder.Format != vali.PixelFormat.NV12:
            raise self.unsupported("does not convert its pixels to RGB")
        if (self._decoder.Height, self._decoder.Width) != (look.height, look.width):
            raise self.unsupported("finds frames of another size")
        self._stored, self._rgb = (
            vali.Surface.Make(form, look.width, look.height, card)
            for form in (vali.PixelFormat.NV12, vali.PixelFormat.RGB)
        )
        self._converter = vali.PySurfaceConverter(gpu_id=card)
        self._colours = _colours(vali, self._decoder)
        self._packet = vali.PacketData()
        self._jump: Any = None

    def step(self) -> int | None:
        jump, self._jump = self._jump, None
        is_there, _ = self._decoder.DecodeSingleSurface(self._stored, self._packet, jump)
        return int(self._packet.pts) if is_there else None

    def jump(self, seconds: float) -> None:
        seek = importlib.import_module("python_vali").SeekContext
        self._jump = seek(seek_ts=seconds)

    def write(self, frame: None, target: Any) -> None:
        is_done, info = self._converter.Run(self._stored, self._rgb, self._colours)
        if not is_done:
            raise self.unsupported(f"does not convert its pixels to RGB ({info})")
        look = self.job.look
        picture = torch_module().from_dlpack(self._rgb)
        turned = picture.reshape(look.height, look.width, 3).rot90(look.turns, dims=(0, 1))
        # A copy: the next frame is written where this one lies.
        target.copy_(turned if self.job.channels_last else turned.permute(2, 0, 1))

    def close(self) -> None:
        self._decoder = self._stored = self._rgb = None
        super().close()


def _colours(vali: Any, decoder: Any) -> Any:
    """The conversion of what the stream says; of nothing, BT.601 in limited range."""
    space, full = decoder.ColorSpace, decoder.ColorRange
    return vali.ColorspaceConversionContext(
        vali.ColorSpace.BT_601 if space == vali.ColorSpace.UNSPEC else space,
        vali.ColorRange.MPEG if full == vali.ColorRange.UDEF else full,
    )


def check(device: str) -> None:
    """Raise StageError where there is no card, or VALI finds no driver."""
    need_card(device)
    try:
        importlib.import_module("python_vali")
    except (ImportError, RuntimeError, OSError) as error:
        raise StageError(
            f"VALI cannot be loaded ({first_lines(error)}); it needs an NVIDIA driver"
        ) from error
