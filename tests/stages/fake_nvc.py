"""A stand-in for PyNvVideoCodec 2.2.4 where there is no card: its names, its signatures and its
habits, with libavcodec for an NVDEC. Names and signatures are those of the module's own bindings.

The habits that matter: packets come by address, in Annex B; frames come in presentation order, with
the timestamp of the packet they were in; their buffers are written again by the next call; an empty
packet makes the decoder give all it holds, and after it another stream may follow; a decoder takes
no larger frames than it was made for, and no other codec.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from types import ModuleType
from typing import Any

import av
import numpy as np

ENGINES = 3


class PyNvVCException(Exception):  # noqa: N818 - the name that the bindings give it
    pass


class PyNvVCExceptionUnsupported(Exception):  # noqa: N818 - and it is none of the above
    pass


class cudaVideoCodec(IntEnum):  # noqa: N801
    MPEG1 = 0
    MPEG2 = 1
    MPEG4 = 2
    VC1 = 3
    H264 = 4
    HEVC = 8
    VP8 = 9
    VP9 = 10
    AV1 = 11


cudaVideoChromaFormat = IntEnum(  # noqa: N816
    "cudaVideoChromaFormat", {"Monochrome": 0, "420": 1, "422": 2, "444": 3}
)

_DECODERS = {
    cudaVideoCodec.H264: "h264",
    cudaVideoCodec.HEVC: "hevc",
    cudaVideoCodec.VP9: "vp9",
    cudaVideoCodec.MPEG2: "mpeg2video",
    cudaVideoCodec.AV1: "libdav1d",
}


class PacketData:
    def __init__(self) -> None:
        self.bsl = 0
        self.bsl_data = 0
        self.pts = 0
        self.dts = 0
        self.decode_flag = 0


class DecodedFrame:
    def __init__(self, pts: int, lines: np.ndarray) -> None:
        self._pts = pts
        self._lines = lines

    @property
    def shape(self) -> list[int]:
        return list(self._lines.shape)

    def getPTS(self) -> int:
        return self._pts

    def __dlpack__(self, stream: object = 0) -> object:
        return self._lines.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._lines.__dlpack_device__()


class Decoder:
    def __init__(self, card: Card, codec: cudaVideoCodec, width: int, height: int) -> None:
        self._card = card
        self._most = (width, height)
        self._context: Any = av.CodecContext.create(_DECODERS[codec], "r")
        self._context.thread_count = 1
        self._given: list[np.ndarray] = []
        self.sizes: list[tuple[int, int]] = []

    def Decode(self, packet: PacketData) -> list[DecodedFrame]:
        with self._card.busy():
            for lines in self._given:
                lines[:] = 7
            self._given = []
            self._card.spoil()
            if not packet.bsl:
                frames = self._context.decode(None)
                self._context.flush_buffers()
            else:
                data = av.Packet(ctypes.string_at(packet.bsl_data, packet.bsl))
                data.pts = packet.pts
                frames = self._context.decode(data)
            return [one for frame in frames for one in self._card.change(self._frame(frame))]

    def setReconfigParams(self, width: int = 0, height: int = 0) -> int:
        self.sizes.append((width, height))
        return 1

    def _frame(self, frame: av.VideoFrame) -> DecodedFrame:
        if self._most == (0, 0):
            self._most = (frame.width, frame.height)
        if frame.width > self._most[0] or frame.height > self._most[1]:
            raise PyNvVCException("cuvidReconfigureDecoder : \nError code : 1")
        planes = []
        deep = frame.format.components[0].bits > 8
        for plane, part in zip(frame.planes, (1, 2, 2), strict=True):
            kind = np.dtype("<u2" if deep else "u1")
            rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
            rows = rows[:, : frame.width // part]
            planes.append(rows << 6 if deep else rows)
        y, u, v = planes
        chroma = np.stack([u, v], axis=-1).reshape(u.shape[0], -1)
        lines = np.ascontiguousarray(np.concatenate([y, chroma]))
        self._given.append(lines)
        return DecodedFrame(frame.pts, lines)


class Demuxer:
    """PyNvVideoCodec's own, for a bare loop: packets in Annex B, and an empty one at the end."""

    def __init__(self, filename: str) -> None:
        self._filename = filename

    def GetNvCodecId(self) -> cudaVideoCodec:
        return cudaVideoCodec.H264

    def __iter__(self) -> Iterator[PacketData]:
        with av.open(self._filename) as container:
            stream = container.streams.video[0]
            annex_b = av.BitStreamFilterContext("h264_mp4toannexb", stream)
            for packet in container.demux(stream):
                for one in annex_b.filter(packet) if packet.size else []:
                    data = PacketData()
                    data.bsl, data.bsl_data, data.pts = one.size, one.buffer_ptr, one.pts
                    yield data
        yield PacketData()


class Card:
    """The module's state: what the card decodes, what it was asked, and how it misbehaves."""

    def __init__(self) -> None:
        self.refused: set[tuple[str, int, str]] = {("H264", 10, "420")}
        self.encoders = {"h264"}
        self.decoders: list[Decoder] = []
        self.spoil: Callable[[], None] = lambda: None
        self.change: Callable[[DecodedFrame], list[DecodedFrame]] = lambda frame: [frame]
        self.asked = 0
        self.most_at_once = 0
        self.meeting: threading.Barrier | None = None
        self._at_once = 0
        self._lock = threading.Lock()

    def module(self) -> ModuleType:
        made: Any = ModuleType("PyNvVideoCodec")
        for one in (PyNvVCException, PyNvVCExceptionUnsupported, PacketData, cudaVideoCodec):
            setattr(made, one.__name__, one)
        made.cudaVideoChromaFormat = cudaVideoChromaFormat
        made.GetDecoderCaps = self.get_decoder_caps
        made.GetEncoderCaps = self.get_encoder_caps
        made.CreateDecoder = self.create_decoder
        made.CreateDemuxer = Demuxer
        return made

    def get_decoder_caps(
        self,
        gpuid: int = 0,
        codec: Any = cudaVideoCodec.H264,
        chromaformat: Any = 1,
        bitdepth: int = 8,
    ) -> dict[str, int]:
        self.asked += 1
        kind = (cudaVideoCodec(codec).name, bitdepth, cudaVideoChromaFormat(chromaformat).name)
        return {
            "codec_id": int(codec),
            "chromaformat_id": int(chromaformat),
            "bitdepth": bitdepth,
            "supported": int(kind[2] == "420" and kind not in self.refused),
            "num_decoder_engines": ENGINES,
            "width_min": 48,
            "height_min": 16,
            "width_max": 4096,
            "height_max": 4096,
            "mb_num_max": 65536,
        }

    def get_encoder_caps(self, gpuid: int = 0, codec: str = "h264") -> dict[str, int]:
        if codec not in self.encoders:
            raise PyNvVCExceptionUnsupported("this card has no NVENC")
        return {"num_encoder_engines": 1}

    def create_decoder(
        self,
        gpuid: int = 0,
        codec: Any = cudaVideoCodec.H264,
        cudacontext: int = 0,
        cudastream: int = 0,
        usedevicememory: bool = False,
        maxwidth: int = 0,
        maxheight: int = 0,
    ) -> Decoder:
        assert usedevicememory
        decoder = Decoder(self, codec, maxwidth, maxheight)
        self.decoders.append(decoder)
        return decoder

    def busy(self) -> Any:
        card = self

        class Busy:
            def __enter__(self) -> None:
                with card._lock:
                    card._at_once += 1
                    card.most_at_once = max(card.most_at_once, card._at_once)
                if card.meeting is not None:
                    card.meeting.wait(30)

            def __exit__(self, *_: object) -> None:
                with card._lock:
                    card._at_once -= 1

        return Busy()
