"""Decoding with NVDEC: PyAV takes the file apart, PyNvVideoCodec decodes, torch holds the frames.

The packets are those that the CPU's decoder gets, out of the same demuxer and under the same rules
for untrusted files; PyNvVideoCodec's own opens what a file names, and takes 10 bits for 8. Each
packet goes to the card with its number for a timestamp, so that a frame that comes back tells which
packet it was: its time is that packet's, in presentation order, and not what the card made of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias

import av
import numpy as np
from numpy.typing import NDArray

from reelmill.errors import ReelmillError
from reelmill.media.gpu.colour import MATRICES, Planes
from reelmill.media.gpu.devices import CODECS, Capabilities, Stream, capabilities
from reelmill.media.gpu.modules import first_lines, nvc_module, torch_module
from reelmill.media.probe import Source, demux, open_media, video_stream

BATCH = 32
"""Frames that are handed on together."""

_ANNEX_B = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
"""Bitstream filters: NVDEC takes start codes, MP4 and Matroska hold lengths."""

_CHROMAS = {(1, 1): "420", (1, 2): "422", (2, 2): "444"}
"""Of a picture of 2x2 pixels, the size of a chroma plane."""

_SIDE = 1920
"""A decoder is set up for frames of this width and height at least, so that it can be kept for
most videos that follow: a larger one needs a decoder of its own."""

_LEFT_CHROMA = frozenset({"h264", "hevc", "mpeg2video"})
"""Codecs whose chroma lies on the left one of two pixels where the stream does not say otherwise;
of the others swscale takes it to lie between them. PyAV does not tell what a stream says."""

Take: TypeAlias = Callable[[Any, Any], Iterator[Iterator[Any]]]
"""Picks packets of an open container's video stream, in runs that each begin with a keyframe."""

_PROGRESSIVE = (0, 1)  # AV_FIELD_UNKNOWN, as codecs have it that know no fields, and …_PROGRESSIVE
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG


class RefusedError(ReelmillError):
    """A video that NVDEC cannot decode, or did not decode whole: the CPU's decoder is to have it.

    Videos refused for the same reason have the same text.
    """


@dataclass(frozen=True)
class Header:
    """What a container says of its best video stream: ``matrix`` is an AVColorSpace, ``full`` the
    range, ``start`` the stream's own, and ``rate`` its nominal frames a second."""

    stream: Stream
    time_base: Fraction
    start: int
    rate: Fraction
    matrix: int
    full: bool


@dataclass(frozen=True, eq=False)
class Decoded:
    """Frames in presentation order, as stored (not turned): int64 ``pts`` in units of
    ``time_base``, strictly increasing, their planes on the card, and the ``end`` of the last."""

    pts: NDArray[np.int64]
    time_base: Fraction
    end: int
    planes: Planes


@dataclass(frozen=True)
class _Sent:
    """A packet that a decoder was given; a hidden one is decoded for others' sake alone."""

    pts: int
    end: int
    keyframe: bool
    hidden: bool


@dataclass(frozen=True, eq=False)
class _Frame:
    packet: _Sent
    tensor: Any


class Nvdec:
    """The decoders of one card, kept from video to video: for each NVDEC engine one of a kind.

    Any number of threads may decode at once; one that finds all engines busy waits its turn. The
    driver spreads decoders that work at the same time over the engines.

    Attributes:
        capabilities: of the card.
        engines: how many videos are decoded at once.
        created: decoders that were set up so far; fewer than videos where they were used again.
    """

    def __init__(self, card: Capabilities | None = None) -> None:
        self.capabilities = card or capabilities()
        self.engines = max(1, self.capabilities.engines)
        self.created = 0
        self._idle = [_Engine(self) for _ in range(self.engines)]
        self._changed = threading.Condition()

    def decode(
        self, source: Source, batch: int = BATCH, take: Take | None = None
    ) -> Generator[Decoded, None, None]:
        """Batches of at most ``batch`` frames, with the times of their packets, which are those of
        :func:`~reelmill.media.decode.frames`: all frames, or those of the packets that ``take``
        picks.

        Raises :class:`RefusedError` where the CPU's decoder is to be used: before the first batch
        for a kind of stream that the card lacks, or behind any batch for what went wrong with this
        one, so that what was made of its batches must be thrown away. And as
        :func:`~reelmill.media.probe.open_media` does where the file itself cannot be used.
        """
        with open_media(source) as container:
            stream = video_stream(container)
            header = self._accepted(stream)
            with self._engine() as engine:
                frames = engine.frames(header, _packets(container, stream, take or _all))
                with closing(frames):
                    held: list[_Frame] = []
                    for frame in frames:
                        held.append(frame)
                        if len(held) == batch:
                            yield engine.batch(header, held)
                            held = []
                    if held:
                        yield engine.batch(header, held)

    def count_created(self) -> None:
        """One more decoder has been set up."""
        with self._changed:
            self.created += 1

    def header(self, source: Source) -> Header:
        """What ``source`` says of its best video stream; raises as :meth:`decode` does before its
        first batch."""
        with open_media(source) as container:
            return self._accepted(video_stream(container))

    def _accepted(self, stream: Any) -> Header:
        header = _header(stream)
        what = header.stream
        if what.codec not in CODECS:
            raise RefusedError(f"{what.codec} is decoded on the CPU")
        if (refusal := self.capabilities.refusal(what)) is not None:
            raise RefusedError(refusal)
        if what.chroma != "420" or header.matrix not in MATRICES:
            raise RefusedError(f"{what} with colour matrix {header.matrix} is decoded on the CPU")
        if what.width % 2 or what.height % 2:
            raise RefusedError("frames of an odd width or height are decoded on the CPU")
        return header

    @contextmanager
    def _engine(self) -> Iterator[_Engine]:
        with self._changed:
            self._changed.wait_for(lambda: self._idle)
            engine = self._idle.pop()
        try:
            yield engine
        except BaseException:
            # A decoder that failed, or was left in the middle of a video, is of no more use.
            engine.clear()
            raise
        finally:
            with self._changed:
                self._idle.append(engine)
                self._changed.notify()


class _Engine:
    """The decoders of one thread at a time: one for each codec and depth."""

    def __init__(self, owner: Nvdec) -> None:
        self._owner = owner
        self._nvc = nvc_module()
        self._torch = torch_module()
        self._ordinal = owner.capabilities.ordinal
        self._stream = (
            self._torch.cuda.Stream(self._ordinal) if self._torch.cuda.is_available() else None
        )
        self._decoders: dict[tuple[str, int], _Kept] = {}

    def clear(self) -> None:
        """Let go of all decoders, and of the memory that they hold on the card."""
        self._decoders.clear()

    def frames(self, header: Header, packets: Iterator[Any]) -> Generator[_Frame, None, None]:
        """The shown frames of ``packets``, run by run, in the order that the card shows them."""
        last: int | None = None
        sent: list[_Sent] = []
        got: set[int] = set()
        try:
            decoder = self._decoder(header.stream)
            for packet in packets:
                if packet is not None:
                    sent.append(_noted(packet))
                    if not sent[0].keyframe or sent[-1].pts < sent[0].pts:
                        # Decoders differ in which of the first frames they can do nothing with.
                        raise RefusedError("video that does not begin anew is decoded on the CPU")
                for frame in decoder.Decode(self._packet(packet, len(sent) - 1)):
                    number = frame.getPTS()
                    if number in got or not 0 <= number < len(sent):
                        raise RefusedError("NVDEC gave frames that cannot be told apart")
                    got.add(number)
                    one = sent[number]
                    if one.hidden:
                        continue
                    if last is not None and one.pts <= last:
                        raise RefusedError("video with times out of order is decoded on the CPU")
                    last = one.pts
                    yield _Frame(one, self._copied(header.stream, frame))
                if packet is None:
                    # The next run may begin with what was the end of this one.
                    last = None
        except (self._nvc.PyNvVCException, self._nvc.PyNvVCExceptionUnsupported) as error:
            raise RefusedError(f"NVDEC failed: {first_lines(error, 3)}") from error
        except av.FFmpegError as error:
            raise RefusedError("packets that cannot be read are left to the CPU") from error
        shown = {number for number, one in enumerate(sent) if not one.hidden}
        if not shown or not shown <= got:
            raise RefusedError("NVDEC left frames out, as it does of damaged video")

    def batch(self, header: Header, frames: list[_Frame]) -> Decoded:
        """The frames as one batch, which any stream of CUDA may read."""
        height, width = header.stream.height, header.stream.width
        with self._at_work():
            whole = self._torch.stack([frame.tensor for frame in frames])
            chroma = whole[:, height:].reshape(len(frames), height // 2, width // 2, 2)
            y, u, v = whole[:, :height], chroma[..., 0], chroma[..., 1]
        if self._stream is not None:
            self._stream.synchronize()
        pts = np.array([frame.packet.pts for frame in frames], dtype=np.int64)
        what = header.stream
        left = what.codec in _LEFT_CHROMA
        planes = Planes(y, u, v, header.matrix, header.full, what.bits, left)
        return Decoded(pts, header.time_base, frames[-1].packet.end, planes)

    def _decoder(self, stream: Stream) -> Any:
        """A decoder for ``stream``: the one of its kind, unless that was made for smaller ones."""
        kept = self._decoders.get((stream.codec, stream.bits))
        size = stream.width, stream.height
        if kept is None or size[0] > kept.most[0] or size[1] > kept.most[1]:
            most = max(size[0], _SIDE), max(size[1], _SIDE)
            # The old one's memory is given back before the new one asks for some.
            self._decoders.pop((stream.codec, stream.bits), None)
            decoder = self._nvc.CreateDecoder(
                gpuid=self._ordinal,
                codec=getattr(self._nvc.cudaVideoCodec, CODECS[stream.codec]),
                cudastream=self._stream.cuda_stream if self._stream is not None else 0,
                usedevicememory=True,
                maxwidth=most[0],
                maxheight=most[1],
            )
            kept = _Kept(decoder, most, size)
            self._decoders[stream.codec, stream.bits] = kept
            self._owner.count_created()
        elif kept.size != size:
            kept.decoder.setReconfigParams(*size)
            kept.size = size
        return kept.decoder

    def _packet(self, packet: Any | None, number: int) -> Any:
        """``packet`` for the decoder, or the end of the stream, which makes it give all it holds.

        It holds an address: the packet must live until it is decoded.
        """
        data = self._nvc.PacketData()
        data.bsl, data.bsl_data = (packet.size, packet.buffer_ptr) if packet is not None else (0, 0)
        data.pts = number
        return data

    def _copied(self, stream: Stream, frame: Any) -> Any:
        """A frame's lines, of luma and then of chroma, in memory of its own: the decoder's buffer
        is written again by one of its next calls."""
        with self._at_work():
            tensor = self._torch.from_dlpack(frame)
            lines = stream.height * 3 // 2
            expected = self._torch.uint8 if stream.bits == 8 else self._torch.uint16
            if tensor.dtype != expected or tensor.numel() != lines * stream.width:
                raise RefusedError("video whose frames change is decoded on the CPU")
            return tensor.reshape(lines, stream.width).clone()

    def _at_work(self) -> Any:
        """Copies go to the stream that the decoder writes to, and so wait for one another."""
        return nullcontext() if self._stream is None else self._torch.cuda.stream(self._stream)


@dataclass
class _Kept:
    """A decoder, the largest size that it was made for, and the size of its last video."""

    decoder: Any
    most: tuple[int, int]
    size: tuple[int, int]


@cache
def nvdec() -> Nvdec:
    """The decoders of this process, on the first card that it sees; raises as
    :func:`~reelmill.media.gpu.devices.capabilities` does."""
    return Nvdec()


def _noted(packet: Any) -> _Sent:
    if packet.pts is None or not packet.duration:
        raise RefusedError("video without timestamps or durations is decoded on the CPU")
    if packet.is_corrupt:
        raise RefusedError("video with packets that are known to be damaged is decoded on the CPU")
    end = packet.pts + packet.duration
    return _Sent(packet.pts, end, packet.is_keyframe, packet.is_discard)


def _all(container: Any, stream: Any) -> Iterator[Iterator[Any]]:
    yield demux(container, [stream])


def _packets(container: Any, stream: Any, take: Take) -> Iterator[Any]:
    """The packets of ``stream`` as NVDEC takes them, and ``None`` behind the last one of a run."""
    name = _ANNEX_B.get(stream.codec_context.codec.canonical_name)
    filtered = av.BitStreamFilterContext(name, stream) if name else None
    for run in take(container, stream):
        for packet in run:
            if packet.size:
                yield from filtered.filter(packet) if filtered else (packet,)
        yield None


def _header(stream: Any) -> Header:
    context = stream.codec_context
    form = context.format
    if context.field_order not in _PROGRESSIVE:
        # PyNvVideoCodec has the card deinterlace it, which libavcodec leaves to a filter.
        raise RefusedError("interlaced video is decoded on the CPU")
    planar = form is not None and not form.is_rgb and len(form.components) >= 3
    if not planar:
        raise RefusedError(f"{context.pix_fmt} is decoded on the CPU")
    return Header(
        stream=Stream(
            codec=context.codec.canonical_name,
            bits=form.components[0].bits,
            chroma=_CHROMAS.get((form.chroma_width(2), form.chroma_height(2)), "other"),
            width=context.width,
            height=context.height,
        ),
        time_base=Fraction(stream.time_base),
        start=stream.start_time or 0,
        rate=Fraction(stream.guessed_rate or stream.average_rate or 25),
        matrix=int(context.colorspace),
        full=context.color_range == _FULL_RANGE or form.name.startswith("yuvj"),
    )
