"""A video's scenes as one PNG: the scores along time, the cuts, and a picture of each scene."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from reelmill.report.sheet import (
    _ACCENT,
    _BRIGHT,
    _CARD,
    _EDGE,
    _MUTED,
    _PAGE,
    _PLAIN,
    RGB,
    _fitted,
    _font,
    _rounded,
)

_CURVE = (88, 166, 255)
_SHADE = (56, 120, 200, 60)
_LIMIT = (248, 81, 73)
_BAND = (33, 40, 50)

MAX_PICTURES = 96
"""Scenes that are shown with a picture; of more, so many evenly spread ones."""


@dataclass(frozen=True)
class Curve:
    """One detector's scores: its name, seconds and values of the same length, and its threshold."""

    name: str
    times: NDArray[np.float64]
    values: NDArray[np.float64]
    threshold: float


@dataclass(frozen=True)
class Scene:
    """From ``start`` to ``end`` in seconds, with a line about it and its first frame: uint8 RGB of
    shape (H, W, 3), or None for a scene that gets no picture."""

    start: float
    end: float
    caption: str
    picture: RGB | None


def shown(count: int) -> set[int]:
    """Which of so many scenes get a picture."""
    return {int(at) for at in np.linspace(0, count - 1, min(count, MAX_PICTURES)).round()}


def timeline(
    curves: Sequence[Curve],
    scenes: Sequence[Scene],
    *,
    title: str,
    subtitle: str = "",
    width: int = 1600,
) -> bytes:
    """PNG, ``width`` pixels wide: a heading, a chart for each curve with its threshold and the
    cuts, and a card for each scene that has a picture. The same input gives the same bytes."""
    page = _Page(width, curves, scenes)
    image = page.draw(title, subtitle)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class _Page:
    """The measures of one page, and what is drawn with them."""

    def __init__(self, width: int, curves: Sequence[Curve], scenes: Sequence[Scene]) -> None:
        self.width, self.curves, self.scenes = width, curves, scenes
        self.unit = width / 1600
        self.margin, self.padding, self.gutter = self.px(44), self.px(22), self.px(18)
        self.heading, self.chart, self.axis = self.px(132), self.px(230), self.px(40)
        self.text = self.px(34)
        self.left = self.margin + self.px(72)
        self.right = width - self.margin - self.padding
        self.start, self.end = scenes[0].start, scenes[-1].end
        self.cards = [(i, one) for i, one in enumerate(scenes) if one.picture is not None]
        self.columns = max(1, min(8, len(self.cards)))
        if len(self.cards) > 8:
            self.columns = 6 if len(self.cards) <= 36 else 8
        free = width - 2 * self.margin - (self.columns - 1) * self.gutter
        self.card = free // self.columns

    def px(self, measure: float) -> int:
        return max(1, round(measure * self.unit))

    def draw(self, title: str, subtitle: str) -> Image.Image:
        panel = self.padding + self.px(30) + self.chart + self.axis
        charts = len(self.curves) * (panel + self.gutter)
        rows = -(-len(self.cards) // self.columns)
        tall = max((self._tall(one) for _, one in self.cards), default=0)
        height = self.heading + charts + rows * (tall + self.text + self.gutter) + self.margin
        image = Image.new("RGB", (self.width, height), _PAGE)
        pen = ImageDraw.Draw(image)
        room = self.width - 2 * self.margin
        title_font, subtitle_font = _font(self.px(42)), _font(self.px(23))
        pen.text(
            (self.margin, self.px(68)), _fitted(title, title_font, room), _BRIGHT, title_font, "ls"
        )
        pen.text(
            (self.margin, self.px(105)),
            _fitted(subtitle, subtitle_font, room),
            _MUTED,
            subtitle_font,
            "ls",
        )
        top = self.heading
        for curve in self.curves:
            self._panel(image, top, panel, curve)
            top += panel + self.gutter
        for place, (number, scene) in enumerate(self.cards):
            row, column = divmod(place, self.columns)
            left = self.margin + column * (self.card + self.gutter)
            self._scene(image, left, top + row * (tall + self.text + self.gutter), number, scene)
        return image

    def _tall(self, scene: Scene) -> int:
        assert scene.picture is not None
        height, width = map(int, scene.picture.shape[:2])
        return min(max(1, round(self.card * height / width)), round(self.card * 1.2))

    def _x(self, time: float) -> float:
        share = (time - self.start) / max(self.end - self.start, 1e-9)
        return self.left + share * (self.right - self.left)

    def _panel(self, image: Image.Image, top: int, height: int, curve: Curve) -> None:
        size = (self.width - 2 * self.margin, height)
        image.paste(_CARD, (self.margin, top), _rounded(*size, self.px(14)))
        pen = ImageDraw.Draw(image, "RGBA")
        label = _font(self.px(19))
        at = (self.left, top + self.padding + self.px(10))
        pen.text(at, curve.name, _BRIGHT, _font(self.px(22)), "ls")
        told = f"threshold {curve.threshold:g}"
        pen.text((self.right, at[1]), told, _LIMIT, label, "rs")
        first = top + self.padding + self.px(30)
        last = first + self.chart
        # Peaks far above the threshold are cut off, or nothing else could be seen.
        highest = max(float(curve.values.max()), curve.threshold * 1.25, 1e-9)
        usual = max(curve.threshold * 5, float(np.median(curve.values)) * 1.5)
        highest = min(highest, usual) if curve.threshold > 0 else highest
        self._bands(pen, first, last)
        for tick in _ticks(highest, 4):
            level = last - tick / highest * self.chart
            pen.line((self.left, level, self.right, level), _EDGE)
            pen.text((self.left - self.px(12), level), f"{tick:g}", _MUTED, label, "rm")
        for tick in _ticks(self.end - self.start, 10):
            told = _clock(self.start + tick, self.end)
            pen.text((self._x(self.start + tick), last + self.px(9)), told, _MUTED, label, "mt")
        self._cuts(pen, first, last)
        points = self._points(curve, last, highest)
        pen.polygon([(points[0][0], last), *points, (points[-1][0], last)], _SHADE)
        pen.line(points, _CURVE, self.px(2), "curve")
        level = last - curve.threshold / highest * self.chart
        dash = self.px(12)
        for left in range(self.left, self.right, 2 * dash):
            right = min(left + dash, self.right)
            pen.line((left, level, right, level), _LIMIT, self.px(2))

    def _cuts(self, pen: ImageDraw.ImageDraw, first: int, last: int) -> None:
        side = self.px(7)
        for scene in self.scenes[1:]:
            x = self._x(scene.start)
            pen.line((x, first, x, last), (*_ACCENT, 110), self.px(2))
            corners = [(x - side, first - side), (x + side, first - side), (x, first + side)]
            pen.polygon(corners, _ACCENT)

    def _bands(self, pen: ImageDraw.ImageDraw, first: int, last: int) -> None:
        for number, scene in enumerate(self.scenes):
            if number % 2:
                pen.rectangle((self._x(scene.start), first, self._x(scene.end), last), _BAND)

    def _points(self, curve: Curve, last: int, highest: float) -> list[tuple[float, float]]:
        """The curve on the page. Where many frames share a column of pixels, the highest stands."""
        columns = np.array([self._x(time) for time in curve.times]).round().astype(int)
        points: dict[int, float] = {}
        values = np.minimum(curve.values, highest)
        for x, value in zip(columns.tolist(), values.tolist(), strict=True):
            points[x] = max(points.get(x, 0.0), value)
        return [(x, last - value / highest * self.chart) for x, value in points.items()]

    def _scene(self, image: Image.Image, left: int, top: int, number: int, scene: Scene) -> None:
        assert scene.picture is not None
        height = self._tall(scene)
        picture = Image.fromarray(scene.picture).resize(
            (self.card, height), Image.Resampling.LANCZOS
        )
        image.paste(picture, (left, top), _rounded(self.card, height, self.px(10)))
        pen = ImageDraw.Draw(image)
        font = _font(self.px(18))
        index = str(number + 1)
        base = top + height + self.px(22)
        pen.text((left, base), index, _ACCENT, font, "ls")
        after = font.getlength(index) + self.px(9)
        told = _fitted(scene.caption, font, self.card - after)
        pen.text((left + after, base), told, _PLAIN, font, "ls")


def _ticks(length: float, most: int) -> list[float]:
    """Round numbers from 0 to ``length``, at most ``most`` steps."""
    if length <= 0:
        return [0.0]
    rough = length / most
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough * 0.999)
    return [round(i * step, 9) for i in range(int(length / step + 1e-9) + 1)]


def _clock(seconds: float, longest: float) -> str:
    if longest < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if longest >= 3600 else f"{minutes}:{rest:02d}"
