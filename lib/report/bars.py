"""What was measured, as one PNG: panels of bars, the longest first."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from reelmill.report.sheet import (
    _BRIGHT,
    _CARD,
    _EDGE,
    _MUTED,
    _PAGE,
    _PLAIN,
    Colour,
    _fitted,
    _font,
    _rounded,
)
from reelmill.report.timeline import _ticks

_COLOURS: tuple[Colour, ...] = (
    (88, 166, 255),
    (63, 185, 80),
    (247, 169, 59),
    (188, 140, 255),
    (255, 123, 114),
    (57, 197, 207),
)
_LIMIT: Colour = (248, 81, 73)

_FAR = 2.0
"""Where the limit is more than so many times the longest bar, it is told and not drawn: the bars
would be too short to be compared."""


@dataclass(frozen=True)
class Bar:
    """A name, a value, what is written behind the bar, and what its colour stands for."""

    name: str
    value: float
    caption: str
    group: str


@dataclass(frozen=True)
class Panel:
    """Bars of one scale. ``limit``, if there is one, is a value with a name."""

    title: str
    bars: Sequence[Bar]
    limit: tuple[str, float] | None = None


def bar_chart(
    panels: Sequence[Panel], *, title: str, subtitle: str = "", width: int = 1600
) -> bytes:
    """PNG, ``width`` pixels wide: a heading and a chart for each panel, one below the other. All
    measures are those of a page 1600 wide. The same input gives the same bytes."""
    image = _Page(width, panels).draw(title, subtitle)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class _Page:
    """The measures of one page, and what is drawn with them."""

    def __init__(self, width: int, panels: Sequence[Panel]) -> None:
        self.width, self.panels = width, panels
        self.unit = width / 1600
        self.margin, self.padding, self.gutter = self.px(44), self.px(22), self.px(18)
        self.heading, self.row, self.axis = self.px(132), self.px(34), self.px(40)
        self.top = self.padding + self.px(46)
        self.label = _font(self.px(19))
        groups = dict.fromkeys(bar.group for panel in panels for bar in panel.bars)
        self.colours = {
            group: _COLOURS[number % len(_COLOURS)] for number, group in enumerate(groups)
        }
        names = [bar.name for panel in panels for bar in panel.bars]
        captions = [bar.caption for panel in panels for bar in panel.bars]
        room = (width - 2 * self.margin) // 4
        self.named = min(room, self._widest(names))
        self.left = self.margin + self.padding + self.named + self.px(14)
        self.right = width - self.margin - self.padding - min(room, self._widest(captions))
        self.right -= self.px(14)

    def px(self, measure: float) -> int:
        return max(1, round(measure * self.unit))

    def _widest(self, texts: Sequence[str]) -> int:
        return max((round(self.label.getlength(text)) for text in texts), default=0)

    def draw(self, title: str, subtitle: str) -> Image.Image:
        heights = [self.top + len(panel.bars) * self.row + self.axis for panel in self.panels]
        below = sum(heights) + self.gutter * len(heights)
        height = self.heading + below + self.margin - self.gutter
        image = Image.new("RGB", (self.width, height), _PAGE)
        pen = ImageDraw.Draw(image)
        room = self.width - 2 * self.margin
        large, small = _font(self.px(42)), _font(self.px(23))
        title, subtitle = _fitted(title, large, room), _fitted(subtitle, small, room)
        pen.text((self.margin, self.px(68)), title, _BRIGHT, large, "ls")
        pen.text((self.margin, self.px(105)), subtitle, _MUTED, small, "ls")
        top = self.heading
        for panel, tall in zip(self.panels, heights, strict=True):
            self._panel(image, top, tall, panel)
            top += tall + self.gutter
        return image

    def _panel(self, image: Image.Image, top: int, height: int, panel: Panel) -> None:
        inside = self.width - 2 * self.margin
        image.paste(_CARD, (self.margin, top), _rounded(inside, height, self.px(14)))
        pen = ImageDraw.Draw(image)
        base = top + self.padding + self.px(14)
        pen.text((self.margin + self.padding, base), panel.title, _BRIGHT, _font(self.px(22)), "ls")
        first = top + self.top
        last = first + len(panel.bars) * self.row
        longest = max((bar.value for bar in panel.bars), default=0.0)
        limit = panel.limit
        if limit is not None:
            told = f"{limit[0]} {limit[1]:,.0f}"
            at = (self.width - self.margin - self.padding, base)
            pen.text(at, told, _LIMIT, self.label, "rs")
        is_near = limit is not None and limit[1] <= _FAR * longest
        highest = max(longest, limit[1] if limit is not None and is_near else 0.0, 1e-9)
        for tick in _ticks(highest, 8):
            x = self._x(tick, highest)
            pen.line((x, first, x, last), _EDGE)
            pen.text((x, last + self.px(9)), f"{tick:,g}", _MUTED, self.label, "mt")
        for number, bar in enumerate(panel.bars):
            self._bar(image, first + number * self.row, bar, highest)
        if limit is not None and is_near:
            self._dashed(pen, self._x(limit[1], highest), first, last)

    def _x(self, value: float, highest: float) -> float:
        return self.left + value / highest * (self.right - self.left)

    def _bar(self, image: Image.Image, top: int, bar: Bar, highest: float) -> None:
        pen = ImageDraw.Draw(image)
        middle = top + self.row // 2
        name = _fitted(bar.name, self.label, self.named)
        pen.text((self.left - self.px(14), middle), name, _PLAIN, self.label, "rm")
        long, thick = round(self._x(bar.value, highest)) - self.left, self.px(20)
        if long > 0:
            radius = min(self.px(5), long // 2)
            shape = _rounded(long, thick, radius)
            image.paste(self.colours[bar.group], (self.left, middle - thick // 2), shape)
        at = (self.left + long + self.px(10), middle)
        pen.text(at, bar.caption, _MUTED, self.label, "lm")

    def _dashed(self, pen: ImageDraw.ImageDraw, x: float, first: int, last: int) -> None:
        dash = self.px(8)
        for top in range(first, last, 2 * dash):
            pen.line((x, top, x, min(top + dash, last)), _LIMIT, self.px(2))
