"""Contact sheets: what is in a dataset, at a glance, as one PNG."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from math import inf

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reelmill.report.wheel import flow_picture

RGB = NDArray[np.uint8]
Colour = tuple[int, int, int]

_PAGE: Colour = (13, 17, 23)
_CARD: Colour = (22, 27, 34)
_EDGE: Colour = (48, 54, 61)
_BRIGHT: Colour = (240, 246, 252)
_PLAIN: Colour = (201, 209, 217)
_MUTED: Colour = (139, 148, 158)
_ACCENT: Colour = (247, 169, 59)

# Pillow's built-in font is a subset; these are what captions need of the rest.
_SPELLED = str.maketrans({"×": "x", "–": "-", "—": "-", "−": "-", "→": ">"})


@dataclass(frozen=True)
class SheetRow:
    """One sample: its key, a line about it, and pictures to show side by side.

    ``pictures``, at least one, are uint8 RGB of shape (H, W, 3). ``labels``, if any, are drawn in
    their corners, in their order, where they fit.
    """

    key: str
    caption: str
    pictures: Sequence[RGB]
    labels: Sequence[str] = ()


def contact_sheet(
    rows: Iterable[SheetRow],
    *,
    title: str,
    subtitle: str = "",
    width: int = 1600,
    picture_height: int = 120,
    legend: bool = False,
) -> bytes:
    """PNG, ``width`` pixels wide: a dark page with a heading and a card for every sample.

    Cards are set like words in justified text. Pictures keep their aspect ratio and are about
    ``picture_height`` pixels high, a little more or less so that each line of cards is full. All
    measures are those of a page 1600 wide, and scale with ``width``. ``legend`` adds the key to
    the colours of optical flow. The same rows give the same bytes.
    """
    page = _Page(width, picture_height)
    lines = list(page.lines(rows))
    image = page.draw(title, subtitle, lines, legend)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def flow_legend(size: int, background: Colour = _PAGE) -> RGB:
    """The colours of optical flow by direction and speed: a uint8 RGB disc (size, size, 3)."""
    fine = 4 * size
    at = (np.arange(fine, dtype=np.float32) + 0.5) / np.float32(fine / 2) - 1
    motion = np.stack(np.meshgrid(at, at), axis=-1)
    disc = flow_picture(motion, max_px=1.0)
    disc[np.hypot(motion[..., 0], motion[..., 1]) > 1] = background
    return np.asarray(Image.fromarray(disc).resize((size, size), Image.Resampling.BOX))


@dataclass(frozen=True)
class _Card:
    key: str
    caption: str
    tiles: Sequence[Image.Image]
    labels: Sequence[str]
    aspects: Sequence[float]
    key_width: int

    def strip(self, height: int, gap: int) -> int:
        """How wide its pictures are together, in pixels, at a height."""
        return round(height * sum(self.aspects)) + gap * (len(self.aspects) - 1)


@dataclass(frozen=True)
class _Line:
    cards: Sequence[_Card]
    height: int
    """Of the pictures."""
    spare: int
    """Pixels to share out among the cards, for an even right edge."""


class _Page:
    """The measures of one page, and what is drawn with them."""

    def __init__(self, width: int, picture_height: int) -> None:
        self.width = width
        self.unit = width / 1600
        self.target = self.px(picture_height)
        self.margin = self.px(44)
        self.gutter = self.px(18)
        self.padding = self.px(12)
        self.gap = self.px(5)
        self.corner = self.px(14)
        self.text_height = self.px(60)
        self.title = _font(self.px(42))
        self.subtitle = _font(self.px(23))
        self.key = _font(self.px(22))
        self.caption = _font(self.px(19))
        self.label = _font(self.px(17))

    def px(self, measure: float) -> int:
        return max(1, round(measure * self.unit))

    def lines(self, rows: Iterable[SheetRow]) -> Iterator[_Line]:
        """The cards, broken into lines where the pictures come nearest to their intended height."""
        line: list[_Card] = []
        height = self.target
        for row in rows:
            card = self._measured(row)
            if line and self._misfit([*line, card]) > self._misfit(line):
                height = self._fit(line)
                yield _Line(line, height, self._spare(line, height))
                line = []
            line.append(card)
        if line:
            full = self._fit(line)
            if full <= 1.2 * height:
                yield _Line(line, full, self._spare(line, full))
            else:
                yield _Line(line, height, 0)

    def _measured(self, row: SheetRow) -> _Card:
        # Twice the height at most, so that a long sheet of large frames fits into memory.
        tiles = [Image.fromarray(np.ascontiguousarray(picture)) for picture in row.pictures]
        # A strip thinner than 8:1 is squeezed to that, or it would leave the others no height.
        aspects = [min(8.0, max(0.125, tile.width / tile.height)) for tile in tiles]
        high = 2 * self.target
        tiles = [
            _scaled(tile, round(high * aspect), high) if tile.height > high else tile
            for tile, aspect in zip(tiles, aspects, strict=True)
        ]
        widest = self.width - 2 * self.margin - 2 * self.padding
        key_width = min(widest, round(self.key.getlength(row.key)))
        return _Card(row.key, row.caption, tiles, row.labels, aspects, key_width)

    def _inside(self, card: _Card, height: int) -> int:
        return max(card.key_width, card.strip(height, self.gap))

    def _spare(self, cards: Sequence[_Card], height: int) -> int:
        used = sum(self._inside(card, height) + 2 * self.padding for card in cards)
        return self.width - 2 * self.margin - self.gutter * (len(cards) - 1) - used

    def _fit(self, cards: Sequence[_Card]) -> int:
        """The greatest height of pictures at which ``cards`` fit into one line."""
        heights = range(1, 8 * self.target)
        return max(1, bisect_right(heights, 0, key=lambda height: -self._spare(cards, height)))

    def _misfit(self, cards: Sequence[_Card]) -> float:
        """By what factor a line of ``cards`` misses the intended height."""
        if self._spare(cards, 1) < 0:
            return inf
        height = self._fit(cards)
        return max(height / self.target, self.target / height)

    def draw(self, title: str, subtitle: str, lines: Sequence[_Line], legend: bool) -> Image.Image:
        head = self.px(150)
        heights = [line.height + 2 * self.padding + self.text_height for line in lines]
        below = sum(heights) + self.gutter * len(heights) if lines else self.px(80)
        image = Image.new("RGB", (self.width, head + below + self.margin - self.gutter), _PAGE)
        self._heading(image, title, subtitle, legend)
        y = head
        for line, height in zip(lines, heights, strict=True):
            x = self.margin
            for number, card in enumerate(line.cards):
                more = line.spare * (number + 1) // len(line.cards)
                more -= line.spare * number // len(line.cards)
                inside = self._inside(card, line.height) + more
                self._card(image, card, x, y, inside, line.height)
                x += inside + 2 * self.padding + self.gutter
            y += height + self.gutter
        if not lines:
            draw = ImageDraw.Draw(image)
            draw.text((self.margin, head), "no samples", _MUTED, self.subtitle, anchor="lt")
        return image

    def _heading(self, image: Image.Image, title: str, subtitle: str, legend: bool) -> None:
        draw = ImageDraw.Draw(image)
        room = self.width - 2 * self.margin
        if legend:
            size = self.px(92)
            disc = Image.fromarray(flow_legend(size))
            image.paste(disc, (self.width - self.margin - size, self.px(32)))
            room -= size + self.px(20)
            x = self.margin + room
            for row, text in enumerate(("hue: direction", "saturation: speed", "white: still")):
                at = x, self.px(58 + 25 * row)
                draw.text(at, text, _MUTED, self.caption, anchor="rs")
            room -= self.px(170)
        bar = _rounded(self.px(6), self.px(74), self.px(3))
        image.paste(_ACCENT, (self.margin, self.px(42)), bar)
        x, room = self.margin + self.px(24), room - self.px(24)
        title = _fitted(title, self.title, room)
        bold = 0.6 * self.unit
        draw.text((x, self.px(74)), title, _BRIGHT, self.title, anchor="ls", stroke_width=bold)
        subtitle = _fitted(subtitle, self.subtitle, room)
        draw.text((x, self.px(111)), subtitle, _MUTED, self.subtitle, anchor="ls")

    def _card(
        self, image: Image.Image, card: _Card, x: int, y: int, inside: int, height: int
    ) -> None:
        wide = inside + 2 * self.padding
        high = height + 2 * self.padding + self.text_height
        image.paste(_EDGE, (x, y), _rounded(wide, high, self.corner))
        image.paste(_CARD, (x + 1, y + 1), _rounded(wide - 2, high - 2, self.corner - 1))

        left, top = x + self.padding, y + self.padding
        self._strip(image, card, left, top, inside, height)

        draw = ImageDraw.Draw(image)
        key = _fitted(card.key, self.key, inside)
        caption = _fitted(card.caption, self.caption, inside)
        baseline = top + height + self.px(31)
        bold = 0.4 * self.unit
        draw.text((left, baseline), key, _PLAIN, self.key, anchor="ls", stroke_width=bold)
        draw.text((left, baseline + self.px(28)), caption, _MUTED, self.caption, anchor="ls")

    def _strip(
        self, image: Image.Image, card: _Card, x: int, y: int, inside: int, height: int
    ) -> None:
        """The pictures of a card, as wide as its inside unless its key is much wider."""
        gaps = self.gap * (len(card.aspects) - 1)
        natural = card.strip(height, self.gap)
        strip = inside if inside - natural <= self.px(16) else natural
        x += (inside - strip) // 2
        shares = accumulate(card.aspects, initial=0.0)
        edges = [round((strip - gaps) * share / sum(card.aspects)) for share in shares]
        for number, tile in enumerate(card.tiles):
            left = x + edges[number] + number * self.gap
            tile = _scaled(tile, edges[number + 1] - edges[number], height)
            if number < len(card.labels):
                self._label(tile, card.labels[number])
            image.paste(tile, (left, y), _rounded(tile.width, height, self.px(6)))

    def _label(self, tile: Image.Image, text: str) -> None:
        text = text.translate(_SPELLED)
        inset, pad = self.px(6), self.px(7)
        wide, high = round(self.label.getlength(text)) + 2 * pad, self.px(25)
        if wide > tile.width - 2 * inset:
            return
        top = tile.height - inset - high
        shade = _rounded(wide, high, self.px(7)).point(lambda cover: cover * 7 // 10)
        tile.paste((0, 0, 0), (inset, top), shade)
        at = inset + pad, top + high - self.px(7)
        ImageDraw.Draw(tile).text(at, text, _BRIGHT, self.label, anchor="ls")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _scaled(tile: Image.Image, width: int, height: int) -> Image.Image:
    return tile.resize((max(1, width), height), Image.Resampling.LANCZOS)


@lru_cache(64)
def _rounded(width: int, height: int, radius: int) -> Image.Image:
    """The coverage of a rectangle with round corners, smooth at its edge."""
    fine = Image.new("L", (4 * width, 4 * height))
    box = (0, 0, 4 * width - 1, 4 * height - 1)
    ImageDraw.Draw(fine).rounded_rectangle(box, 4 * radius, fill=255)
    return fine.resize((width, height), Image.Resampling.BOX)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """``text`` on one line, cut off with an ellipsis where it is wider than ``width`` pixels."""
    text = " ".join(text.translate(_SPELLED).split())
    if font.getlength(text) <= width:
        return text
    lengths = range(len(text))
    fits = bisect_right(lengths, width, key=lambda end: font.getlength(text[:end] + "…"))
    return text[: max(0, fits - 1)].rstrip() + "…"
