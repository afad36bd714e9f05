"""What a card can do: asked once in a process, told in one line, and checked for each video."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from reelmill.errors import StageError, one_line, told
from reelmill.media.gpu.modules import first_lines, nvc_module, nvml_module, torch_module
from reelmill.units import format_bytes

CODECS = {
    "h264": "H264",
    "hevc": "HEVC",
    "av1": "AV1",
    "vp9": "VP9",
    "vp8": "VP8",
    "mpeg2video": "MPEG2",
}
"""Codecs that are given to NVDEC, by FFmpeg's names, with PyNvVideoCodec's. Others are old or rare,
or keep what a decoder must know in the container alone."""

DEPTHS = (8, 10)
CHROMAS = ("420", "422", "444")
ENCODERS = ("h264", "hevc", "av1")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stream:
    """What of a video stream decides who can decode it: the codec by FFmpeg's name, bits of a
    sample, chroma subsampling as ``420``, and the size in pixels."""

    codec: str
    bits: int
    chroma: str
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.codec} of {self.bits} bits, 4:{self.chroma[1]}:{self.chroma[2]}"


@dataclass(frozen=True)
class Decodes:
    """A kind of stream that NVDEC decodes, and the sizes it may have; macroblocks are of 16x16."""

    codec: str
    bits: int
    chroma: str
    min_width: int
    min_height: int
    max_width: int
    max_height: int
    max_macroblocks: int


@dataclass(frozen=True)
class Capabilities:
    """A card, by its ordinal among those that ``CUDA_VISIBLE_DEVICES`` lets be seen.

    ``engines`` is how many NVDEC engines it has, ``memory`` is in bytes; ``encodes`` names the
    codecs that its NVENC writes, which A100, H100 and H200 do not have at all.
    """

    ordinal: int
    name: str
    driver: str
    memory: int
    engines: int
    decodes: tuple[Decodes, ...]
    encodes: tuple[str, ...]

    def refusal(self, stream: Stream) -> str | None:
        """Why NVDEC cannot decode ``stream``; None where it can."""
        kind = next((one for one in self.decodes if _same_kind(one, stream)), None)
        if kind is None:
            return f"NVDEC of {self.name} does not decode {stream}"
        blocks = -(-stream.width // 16) * -(-stream.height // 16)
        if (
            not kind.min_width <= stream.width <= kind.max_width
            or not kind.min_height <= stream.height <= kind.max_height
            or blocks > kind.max_macroblocks
        ):
            return (
                f"NVDEC of {self.name} decodes {stream} from {kind.min_width}x{kind.min_height} "
                f"to {kind.max_width}x{kind.max_height} only"
            )
        return None

    def __str__(self) -> str:
        decodes = ", ".join(
            f"{one.codec} {one.bits} bit 4:{one.chroma[1]}:{one.chroma[2]}" for one in self.decodes
        )
        return (
            f"GPU {self.ordinal} is {self.name}, {format_bytes(self.memory)}, driver "
            f"{self.driver}; {self.engines} NVDEC engines: {decodes or 'nothing'}; "
            f"NVENC: {', '.join(self.encodes) or 'none'}"
        )


def _same_kind(one: Decodes, stream: Stream) -> bool:
    return (one.codec, one.bits, one.chroma) == (stream.codec, stream.bits, stream.chroma)


def capabilities(ordinal: int = 0) -> Capabilities:
    """What the card of this ordinal can do; the driver is asked once in a process.

    Raises :class:`~reelmill.errors.MissingDependencyError` where a package is missing, and
    :class:`~reelmill.errors.StageError` where there is no such card, or no usable driver.
    """
    return _probed(ordinal)


@cache
def _probed(ordinal: int) -> Capabilities:
    torch = torch_module()
    if not torch.cuda.is_available() or ordinal >= torch.cuda.device_count():
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise StageError(
            f"device cuda needs an NVIDIA GPU, and torch {torch.__version__} sees {seen} on this "
            "host; check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch is not a build for CPUs, "
            "or say device: cpu"
        )
    nvc = nvc_module()
    about = torch.cuda.get_device_properties(ordinal)
    kinds = list(_decoders(nvc, ordinal))
    return Capabilities(
        ordinal=ordinal,
        name=one_line(about.name),
        driver=_driver(),
        memory=int(about.total_memory),
        engines=max((engines for engines, _ in kinds), default=0),
        decodes=tuple(kind for _, kind in kinds),
        encodes=tuple(codec for codec in ENCODERS if _encodes(nvc, ordinal, codec)),
    )


def _decoders(nvc: Any, ordinal: int) -> Iterator[tuple[int, Decodes]]:
    """The kinds of streams that are decoded, each with the number of engines that do."""
    chromas = nvc.cudaVideoChromaFormat.__members__
    # It is a RuntimeError where the driver's library for decoding is missing.
    errors = (nvc.PyNvVCException, nvc.PyNvVCExceptionUnsupported, RuntimeError)
    for codec, name in CODECS.items():
        for bits in DEPTHS:
            for chroma in CHROMAS:
                try:
                    caps = nvc.GetDecoderCaps(
                        gpuid=ordinal,
                        codec=getattr(nvc.cudaVideoCodec, name),
                        chromaformat=chromas[chroma],
                        bitdepth=bits,
                    )
                except errors as error:
                    raise StageError(
                        f"GPU {ordinal} does not say what it decodes ({first_lines(error, 3)}); is "
                        "its driver let in with NVIDIA_DRIVER_CAPABILITIES=compute,video,utility?"
                    ) from error
                if caps["supported"]:
                    yield (
                        caps["num_decoder_engines"],
                        Decodes(
                            codec=codec,
                            bits=bits,
                            chroma=chroma,
                            min_width=caps["width_min"],
                            min_height=caps["height_min"],
                            max_width=caps["width_max"],
                            max_height=caps["height_max"],
                            max_macroblocks=caps["mb_num_max"],
                        ),
                    )


def _encodes(nvc: Any, ordinal: int, codec: str) -> bool:
    # Cards without NVENC have no capabilities to tell of: the question fails.
    try:
        return bool(nvc.GetEncoderCaps(gpuid=ordinal, codec=codec))
    except Exception as error:
        log.debug("GPU %d has no NVENC for %s: %s", ordinal, codec, told(error))
        return False


def _driver() -> str:
    nvml = nvml_module()
    nvml.nvmlInit()
    try:
        return one_line(str(nvml.nvmlSystemGetDriverVersion()))
    finally:
        nvml.nvmlShutdown()


def tell() -> str:
    """One line on the first card of this process, or on why there is none."""
    try:
        return str(capabilities())
    except Exception as error:
        return told(error)
