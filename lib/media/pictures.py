"""From a decoded frame to the bytes of a picture: its size, its colours and its format."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reelmill.errors import Rejected
from reelmill.media.cut.picture import Picture, is_hdr
from reelmill.media.cut.tone import toned
from reelmill.media.decode import to_bgr, to_bgr16, to_jpeg_planes, upright_size
from reelmill.media.images import (
    MAX_PIXELS,
    boxed,
    encode_bgr_png,
    encode_jpeg,
    encode_jpeg_planes,
    encode_webp,
)
from reelmill.media.size import Fit, Sizing

if TYPE_CHECKING:
    from av import VideoFrame


class PictureFormat(BaseModel):
    """What pictures are stored as. A setting of another format is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["jpg", "png", "webp"] = Field(
        "jpg",
        description="jpg is small and fast, png is lossless, webp is smaller and slower than both",
    )
    quality: Annotated[int, Field(ge=1, le=100)] = Field(
        95, description="of jpg, and of lossy webp"
    )
    subsampling: Literal["420", "422", "444"] = Field(
        "420", description="of jpg: how much of the colour stays; 444 is all"
    )
    lossless: bool = Field(False, description="webp without loss")
    bits: Literal[8, 16] = Field(8, description="of png; 16 keeps what video of 10 bits has")
    hdr: Literal["auto", "keep", "sdr"] = Field(
        "auto", description="sdr: HDR is tone mapped to BT.709; auto: where pictures have 8 bits"
    )

    @model_validator(mode="after")
    def _are_of_the_format(self) -> Self:
        for name, format in (("subsampling", "jpg"), ("lossless", "webp"), ("bits", "png")):
            default = type(self).model_fields[name].default
            if getattr(self, name) != default and self.format != format:
                raise ValueError(f"{name} is for format {format!r}, not {self.format!r}")
        return self

    @model_validator(mode="after")
    def _hdr_has_room(self) -> Self:
        if self.hdr == "sdr" and self.bits == 16:
            raise ValueError("hdr 'sdr' makes pictures of 8 bits, not 16")
        return self

    def effective(self) -> dict[str, Any]:
        """As of :class:`~reelmill.tasks.contract.Params`."""
        lossy = self.format == "jpg" or (self.format == "webp" and not self.lossless)
        return {"hdr": "sdr" if self.to_sdr else "keep"} | ({} if lossy else {"quality": None})

    @property
    def to_sdr(self) -> bool:
        """Whether HDR is tone mapped."""
        return self.hdr == "sdr" or (self.hdr == "auto" and self.bits == 8)

    @property
    def encoder(self) -> str:
        """The package that encodes it."""
        return "simplejpeg" if self.format == "jpg" else "opencv-python-headless"


def fit_of(frame: VideoFrame, shape: Fraction, sizing: Sizing[Any]) -> Fit:
    """How a frame comes to a size of square pixels; if none is given, it stays as it is. ``shape``
    is that of its pixels, as they are stored."""
    is_square = shape == 1 or not sizing.is_given
    return sizing.fit(*(upright_size(frame) if is_square else Picture.of(frame, shape).square))


def encode(frame: VideoFrame, fit: Fit, how: PictureFormat) -> bytes:
    """The picture of a frame, upright, in full range, and in the format that is asked for.

    Equal frames give equal pixels on every CPU of one architecture, and equal bytes where the
    encoders' kernels agree, as those of libjpeg-turbo and zlib do. A JPEG holds YUV of BT.601 in
    full range: video of that matrix is scaled to that at once; other matrices go by way of RGB. PNG
    and WebP hold RGB. HDR becomes SDR by the formulas of :mod:`~reelmill.media.cut.tone`, or keeps
    its signal as it is.

    Raises: Rejected ``too_large`` beyond what a format, or memory, holds; ``undecodable`` for a
    pixel format or colour matrix that cannot be converted.
    """
    refuse_large(fit)
    if how.to_sdr and is_hdr(frame.color_trc):
        bgr = to_bgr16(frame, fit.scaled, untagged=Colorspace.BT2020)
        return encode_bgr(boxed(toned(bgr, Picture.of(frame)), fit), how)
    if how.bits == 16:
        return encode_bgr_png(boxed(to_bgr16(frame, fit.scaled), fit))
    if how.format == "jpg" and fit.scaled == fit.cropped == fit.padded:
        planes = to_jpeg_planes(frame, fit.scaled, how.subsampling)
        if planes is not None:
            return encode_jpeg_planes(planes, how.quality)
    return encode_bgr(boxed(to_bgr(frame, fit.scaled), fit), how)


def refuse_large(fit: Fit) -> None:
    """Raise ``Rejected`` (``too_large``) for pictures beyond MAX_PIXELS."""
    for width, height in (fit.scaled, fit.padded):
        if width * height > MAX_PIXELS:
            raise Rejected("too_large", f"{width}x{height} pixels are more than {MAX_PIXELS}")


def encode_bgr(bgr: NDArray[np.uint8], how: PictureFormat) -> bytes:
    """Pixels of 8 bits in OpenCV's order (H, W, 3), in the format that is asked for."""
    if how.format == "jpg":
        return encode_jpeg(bgr, how.quality, how.subsampling, "BGR")
    if how.format == "webp":
        return encode_webp(bgr, None if how.lossless else how.quality)
    return encode_bgr_png(bgr)
