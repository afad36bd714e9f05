"""How large pictures come out: one model of sizes, for clips and for single pictures alike."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

MAX_SIDE = 16384
"""Pixels, of what can be asked for."""

EvenSide = Annotated[PositiveInt, Field(ge=16, le=MAX_SIDE, multiple_of=2)]
"""Pixels of a clip: even, as 4:2:0 needs it, and what every encoder takes."""

PictureSide = Annotated[PositiveInt, Field(le=MAX_SIDE)]
"""Pixels of a picture."""

S = TypeVar("S", bound=int)


@dataclass(frozen=True)
class Fit:
    """How a picture comes to its size: it is scaled, its middle is cut out, and it is padded, each
    to (width, height) in pixels and in this order. Sides and places are multiples of ``grain``."""

    scaled: tuple[int, int]
    cropped: tuple[int, int]
    padded: tuple[int, int]
    grain: int = 1

    @property
    def cropped_at(self) -> tuple[int, int]:
        """(x, y) of what is cut out in the scaled picture."""
        return self._middle(self.scaled)

    @property
    def padded_at(self) -> tuple[int, int]:
        """(x, y) of the picture within its padding."""
        return self._middle(self.padded)

    def _middle(self, around: tuple[int, int]) -> tuple[int, int]:
        (width, height), step = self.cropped, 2 * self.grain
        x, y = (around[0] - width) // step, (around[1] - height) // step
        return x * self.grain, y * self.grain


def own(width: int, height: int, grain: int = 1) -> Fit:
    """A picture at its own size, but for what is no multiple of ``grain``."""
    size = _down(width, grain), _down(height, grain)
    return Fit(size, size, size, grain)


class Sizing(BaseModel, Generic[S]):
    """A size in square pixels: one of the sides, or ``size``, or none to leave pictures as they
    are. Sides that follow from others come out as the nearest multiples of ``grain``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grain: ClassVar[int] = 1

    min_side: S | None = Field(default=None, description="the shorter side")
    max_side: S | None = Field(default=None, description="the longer side")
    width: S | None = Field(default=None, description="the width; the height follows")
    height: S | None = Field(default=None, description="the height; the width follows")
    size: tuple[S, S] | None = Field(default=None, description="width and height")
    mode: Literal["scale", "crop", "pad", "window"] = Field(
        default="scale",
        description="for size; scale: to it, whatever the aspect ratio; crop: scaled to cover it, "
        "the middle stays; pad: scaled to fit in, black around; window: not scaled, the middle "
        "stays or is padded",
    )
    upscale: bool = Field(
        default=False, description="enlarge what is smaller, for sides and mode 'pad'"
    )

    @model_validator(mode="after")
    def _is_one_size(self) -> Self:
        if self._given > 1:
            raise ValueError("give exactly one of min_side, max_side, width, height and size")
        if self.size is None and self.mode != "scale":
            raise ValueError(f"mode {self.mode!r} needs size, a width and a height")
        if self.upscale and not self.is_given:
            raise ValueError("upscale needs a size: min_side, max_side, width, height or size")
        if self.upscale and self.size is not None and self.mode != "pad":
            raise ValueError(f"upscale has no effect on size with mode {self.mode!r}")
        return self

    @property
    def is_given(self) -> bool:
        """Whether pictures do not stay as they are."""
        return bool(self._given)

    @property
    def _given(self) -> int:
        sides = (self.min_side, self.max_side, self.width, self.height, self.size)
        return sum(side is not None for side in sides)

    def fit(self, width: int, height: int) -> Fit:
        """What a picture of ``width`` × ``height`` square pixels becomes."""
        return _fit(self, width, height)

    def _fit(self, width: int, height: int) -> Fit:
        grain = self.grain
        if self.size is None:
            scaled = self._by_side(width, height)
            return Fit(scaled, scaled, scaled, grain)
        size: tuple[int, int] = self.size
        if self.mode == "scale":
            return Fit(size, size, size, grain)
        if self.mode == "window":
            kept = own(width, height, grain).scaled
            cut = min(kept[0], size[0]), min(kept[1], size[1])
            return Fit(kept, cut, size, grain)
        ratios = Fraction(size[0], width), Fraction(size[1], height)
        if self.mode == "crop":
            grown = self._scaled(width, height, max(ratios))
            scaled = max(grown[0], size[0]), max(grown[1], size[1])
            return Fit(scaled, size, size, grain)
        ratio = min(ratios) if self.upscale else min(*ratios, Fraction(1))
        fitted = self._scaled(width, height, ratio)
        scaled = min(fitted[0], size[0]), min(fitted[1], size[1])
        return Fit(scaled, scaled, size, grain)

    def _by_side(self, width: int, height: int) -> tuple[int, int]:
        side = {
            "min_side": min(width, height),
            "max_side": max(width, height),
            "width": width,
            "height": height,
        }
        for name, own_side in side.items():
            if (wished := getattr(self, name)) is not None:
                ratio = Fraction(cast(int, wished), own_side)
                return self._scaled(
                    width, height, ratio if self.upscale else min(ratio, Fraction(1))
                )
        return own(width, height, self.grain).scaled

    def _scaled(self, width: int, height: int, ratio: Fraction) -> tuple[int, int]:
        """Both sides times ``ratio``, as near as may be; not enlarged by rounding alone."""
        if ratio == 1:
            return own(width, height, self.grain).scaled
        return _near(width * ratio, self.grain), _near(height * ratio, self.grain)


@lru_cache(maxsize=256)
def _fit(sizing: Sizing[Any], width: int, height: int) -> Fit:
    # Frame after frame asks the same, and fractions take a twentieth of a frame's time.
    return sizing._fit(width, height)


class Size(Sizing[EvenSide]):
    """The size of a clip: exactly one of the sides, or ``size``; all sides are even."""

    grain = 2

    @model_validator(mode="after")
    def _is_given(self) -> Self:
        if not self.is_given:
            raise ValueError("give exactly one of min_side, max_side, width, height and size")
        return self


def _down(side: int, grain: int) -> int:
    return max(grain, side - side % grain)


def _near(side: Fraction, grain: int) -> int:
    return max(grain, grain * int(side / grain + Fraction(1, 2)))
