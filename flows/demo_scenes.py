"""The scenes of the demonstration's videos, drawn with NumPy and OpenCV."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import cv2
import numpy as np

# What OpenCV returns is Any to type checkers.
Picture: TypeAlias = Any
"""uint8 RGB, (H, W, 3)."""
Field: TypeAlias = Any
"""float32, (H, W)."""
Colour = tuple[int, int, int]
Rng = np.random.Generator
Scene = Callable[[float], Picture]
"""Paints the picture at a time, in seconds since the scene began."""
Painter = Callable[[int, int, Rng], Scene]
"""Sets a scene up for a width and a height in pixels."""

TAU = 2 * math.pi
# OpenCV draws at coordinates of this many fractional bits.
_SHIFT = 6


def _palette(codes: str) -> list[Colour]:
    """Colours of hexadecimal codes between spaces."""
    return [(code[0], code[1], code[2]) for code in map(bytes.fromhex, codes.split())]


def _gradient(width: int, height: int, codes: str) -> Picture:
    """The colours from top to bottom, evenly spaced."""
    stops = np.array(_palette(codes), np.float32)
    at = np.linspace(0, len(stops) - 1, height)
    column = np.stack([np.interp(at, range(len(stops)), channel) for channel in stops.T], axis=1)
    return np.rint(column).astype(np.uint8)[:, None].repeat(width, axis=1)


def _noise(width: int, height: int, cells: int, rng: Rng, octaves: int = 4) -> Field:
    """Smooth noise in 0 to 1 that tiles both ways, ``cells`` bumps across."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        columns = cells << octave
        rows = max(2, round(columns * height / width))
        grid = np.pad(rng.random((rows, columns), np.float32), 2, mode="wrap")
        x = np.arange(width, dtype=np.float32) * np.float32(columns / width) + 2
        y = np.arange(height, dtype=np.float32) * np.float32(rows / height) + 2
        across, down = np.meshgrid(x, y)
        total += cv2.remap(grid, across, down, cv2.INTER_CUBIC) / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def _colourise(values: Field, codes: str) -> Picture:
    """A picture of ``values`` in 0 to 1, through a scale of colours."""
    return _gradient(1, 256, codes)[(np.clip(values, 0, 1) * 255).astype(np.uint8), 0]


def _grey(values: Field) -> Picture:
    """A grey picture of ``values`` in 0 to 1."""
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _grid(width: int, height: int) -> tuple[Field, Field]:
    """x and y of every pixel."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x, y


def _enlarged(picture: Picture, width: int, height: int) -> Picture:
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)


def _lit(picture: Picture, light: Picture) -> Picture:
    return cv2.multiply(picture, light, scale=1 / 255)


def _wrapped(texture: Picture, x: Field, y: Field) -> Picture:
    return cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _shape(picture: Picture, colour: Colour, *xy: tuple[float, float]) -> None:
    corners = np.rint(np.array(xy) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(picture, [corners], colour, cv2.LINE_AA, _SHIFT)


def _disc(picture: Picture, x: float, y: float, radius: float, colour: Colour) -> None:
    cx, cy, r = (round(v * (1 << _SHIFT)) for v in (x, y, radius))
    cv2.circle(picture, (cx, cy), r, colour, -1, cv2.LINE_AA, _SHIFT)


def _oval(
    x: float, y: float, a: float, b: float, angle: float = 0, start: float = 0, end: float = TAU
) -> list[tuple[float, float]]:
    """The outline of an ellipse, or its part between two angles, turned by ``angle``."""
    turn = np.linspace(start, end, 48)
    px, py = a * np.cos(turn), b * np.sin(turn)
    c, s = math.cos(angle), math.sin(angle)
    return list(zip(x + c * px - s * py, y + s * px + c * py, strict=True))


def _glow(
    picture: Picture, x: float, y: float, radius: float, colour: Colour, gain: float = 1
) -> None:
    """Adds light: soft at a ``gain`` of 1, nearer to a disc as it grows."""
    height, width = picture.shape[:2]
    left, right = max(0, int(x - radius)), min(width, int(x + radius) + 1)
    top, bottom = max(0, int(y - radius)), min(height, int(y + radius) + 1)
    if left >= right or top >= bottom:
        return
    dx = (np.arange(left, right, dtype=np.float32) - x) / radius
    dy = (np.arange(top, bottom, dtype=np.float32) - y) / radius
    light = np.clip(gain * (1 - dx**2 - dy[:, None] ** 2), 0, 1) ** 2
    patch = picture[top:bottom, left:right]
    patch[:] = cv2.add(patch, (light[..., None] * np.array(colour, np.float32)).astype(np.uint8))


class _Panorama:
    """A picture twice as wide as the screen, whose ends meet."""

    def __init__(self, pixels: Picture) -> None:
        self.period = pixels.shape[1]
        self.width = self.period // 2
        self.pixels = np.pad(pixels, ((0, 0), (0, self.width + 1), (0, 0)), mode="wrap")

    def at(self, shift: float) -> Picture:
        """The screen whose left edge is ``shift`` pixels into it."""
        column, share = divmod(shift % self.period, 1)
        left, right = (
            self.pixels[:, start : start + self.width] for start in (int(column), int(column) + 1)
        )
        return cv2.addWeighted(left, 1 - share, right, share, 0)


class _Layer:
    """A panorama with holes: colour of 0 to 255 (H, W, 3) and coverage of 0 to 1 (H, W)."""

    def __init__(self, colour: Field, cover: Field) -> None:
        self.top = int(cover.any(axis=1).argmax())
        colour, cover = colour[self.top :], cover[self.top :]
        self.colour = _Panorama((np.clip(colour, 0, 255) * cover[..., None]).astype(np.uint8))
        self.veil = _Panorama(_grey(1 - cover))

    def paint(self, picture: Picture, shift: float) -> None:
        """Over ``picture``, its left edge ``shift`` pixels into the panorama."""
        under = picture[self.top :]
        under[:] = cv2.add(_lit(under, self.veil.at(shift)), self.colour.at(shift))


def _hills(
    width: int, height: int, rng: Rng, colour: Colour, top: float, swing: float
) -> tuple[_Layer, Field]:
    """A ridge of hills, and at each column its height in pixels; both measures are in heights."""
    x = np.linspace(0, TAU, 2 * width, endpoint=False, dtype=np.float32)
    waves = sum(np.sin(k * x + rng.uniform(0, TAU)) / k**1.2 for k in (1, 2, 3, 5, 8))
    ridge = height * (top + swing * waves / 2)
    depth = np.arange(height, dtype=np.float32)[:, None] - ridge
    texture = _noise(2 * width, height, 24, rng) - 0.5
    shade = 1.12 - 0.45 * np.clip(depth / height, 0, 1) + 0.35 * texture
    return _Layer(shade[..., None] * colour, np.clip(depth + 0.5, 0, 1)), ridge


def dunes(
    width: int,
    height: int,
    rng: Rng,
    sky: str = "2b2d6e b2507a f7a072 ffe0a3",
    sand: str = "d98e5f c4713f 9c4f2c",
    ball: str = "e5383b",
    snow: int = 0,
    speed: float = 0.16,
) -> Scene:
    """Hills in parallax; a disc rolls along the nearest ridge, snow may fall."""
    backdrop = _gradient(width, height, sky)
    _glow(backdrop, 0.72 * width, 0.42 * height, 0.5 * height, (90, 70, 40))
    _disc(backdrop, 0.72 * width, 0.42 * height, 0.085 * height, (255, 244, 214))
    layers = [
        _hills(width, height, rng, colour, 0.52 + 0.15 * i, 0.07 + 0.02 * i)
        for i, colour in enumerate(_palette(sand))
    ]
    ridge = layers[-1][1]
    flakes = rng.random((snow, 3))
    (body,), radius = _palette(ball), 0.085 * height

    def scene(t: float) -> Picture:
        picture = backdrop.copy()
        for i, (layer, _) in enumerate(layers):
            shift = speed * width * t * 2.0 ** (i - 1)
            layer.paint(picture, shift)
        x = width * (0.18 + 0.12 * t)
        y = float(np.interp(x + shift, range(2 * width), ridge, period=2 * width)) - 0.9 * radius
        _disc(picture, x, y, radius, body)
        for k in range(3):
            angle = (x + shift) / radius + k * math.pi / 3
            _shape(picture, (255, 236, 217), *_oval(x, y, 0.8 * radius, 0.16 * radius, angle))
        _disc(picture, x, y, 0.3 * radius, body)
        for fx, fy, near in flakes:
            x = (fx + 0.03 * math.sin(2 * t + TAU * near) - 0.05 * t) % 1.1
            y = (fy + (0.1 + 0.2 * near) * t) % 1.1
            size = (0.004 + 0.007 * near) * height
            _disc(picture, x * width, y * height, size, (250, 252, 255))
        return picture

    return scene


def aurora(width: int, height: int, rng: Rng) -> Scene:
    """Northern lights over mountains and stars."""
    backdrop = _gradient(width, height, "050a24 0b1d4a 153a63")
    for x, y, light in rng.random((140, 3)):
        _disc(backdrop, x * width, y * 0.8 * height, 0.4 + 1.1 * light, (205, 215, 235))
    far, _ = _hills(width, height, rng, (16, 35, 63), 0.76, 0.13)
    near, _ = _hills(width, height, rng, (6, 13, 28), 0.9, 0.08)
    w, h = width // 4, height // 4
    x = np.linspace(0, 1, w, dtype=np.float32)
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None]
    tint = _gradient(w, h, "4a1d8f 8f3fd1 2fe6a0 1fb57f 041018").astype(np.float32)

    def scene(t: float) -> Picture:
        light = np.zeros((h, w), np.float32)
        for k, phase in enumerate((0.0, 2.1, 4.4)):
            foot = 0.5 + 0.09 * k + 0.1 * np.sin(5 * x + phase + 0.9 * t)
            above = foot + 0.04 * np.sin(13 * x - 1.3 * t) - y
            rays = 0.65 + 0.35 * np.sin(40 * x + 9 * np.sin(4 * x + phase) + 2.5 * t)
            light += rays * np.where(above > 0, np.exp(-3.2 * above), np.exp(30 * above))
        glow = np.clip(tint * np.minimum(light, 1.4)[..., None] * 0.8, 0, 255).astype(np.uint8)
        picture = cv2.add(backdrop, _enlarged(glow, width, height))
        far.paint(picture, 0.05 * width * t)
        near.paint(picture, 0.14 * width * t)
        return picture

    return scene


def balloons(
    width: int,
    height: int,
    rng: Rng,
    sky: str = "4ea8de 90d5f0 fdf0d5",
    land: str = "7fb069 4f8a4b",
) -> Scene:
    """Striped balloons rise over hills."""
    backdrop = _gradient(width, height, sky)
    hills = [
        _hills(width, height, rng, colour, 0.74 + 0.11 * i, 0.05)[0]
        for i, colour in enumerate(_palette(land))
    ]
    cloth = [
        _palette(c) for c in ("e63946 fff1e6", "f4a261 264653", "9d4edd ffd6ff", "ffb703 d00000")
    ]
    crew = sorted(
        (
            0.07 + 0.11 * rng.random(),
            (i + 0.2 + 0.6 * rng.random()) / 6,
            0.5 + 0.5 * rng.random(),
            i,
        )
        for i in range(6)
    )

    def scene(t: float) -> Picture:
        picture = backdrop.copy()
        for i, layer in enumerate(hills):
            layer.paint(picture, (0.02 + 0.03 * i) * width * t)
        for size, x0, y0, i in crew:
            r = size * height
            x = width * (x0 + 0.12 * size * t) + 2 * math.sin(t + i)
            y = height * (y0 - 1.1 * size * t)

            def at(
                across: float, down: float, x: float = x, y: float = y, r: float = r
            ) -> tuple[float, float]:
                return x + across * r, y + down * r

            for side in (-1, 1):
                rope = (
                    at(side * 0.55, 0.8),
                    at(side * 0.2, 1.75),
                    at(side * 0.14, 1.75),
                    at(side * 0.45, 0.8),
                )
                _shape(picture, (92, 64, 51), *rope)
            body, stripe = cloth[i % len(cloth)]
            for share, colour in ((1.0, body), (0.68, stripe), (0.24, body)):
                gore = _oval(x, y, share * r, r, 0, 0.87 * math.pi, 2.13 * math.pi)
                _shape(picture, colour, *gore, at(0.25 * share, 1.35), at(-0.25 * share, 1.35))
            basket = at(-0.22, 1.7), at(0.22, 1.7), at(0.17, 2.05), at(-0.17, 2.05)
            _shape(picture, (122, 84, 60), *basket)
        return picture

    return scene


def _from_above(
    width: int,
    height: int,
    texture: Picture,
    spin: float = 0,
    zoom: float = 0,
    pan: tuple[float, float] = (0, 0),
    scale: float = 1,
) -> Scene:
    """A tiling texture that moves by ``spin`` radians, e^``zoom`` and ``pan`` heights a second."""

    def scene(t: float) -> Picture:
        size = scale * math.exp(zoom * t)
        c, s = math.cos(spin * t) * size, math.sin(spin * t) * size
        x, y = (height * p * t for p in pan)
        # From the picture to the texture, about the middle of the picture.
        back = np.array(
            [
                [c, -s, x - c * width / 2 + s * height / 2],
                [s, c, y - s * width / 2 - c * height / 2],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(
            texture, back, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP
        )

    return scene


def tiles(
    width: int,
    height: int,
    rng: Rng,
    colours: str = "f4f1de e07a5f 3d405b 81b29a",
    spin: float = 0.35,
    zoom: float = -0.12,
) -> Scene:
    """Truchet tiles turn, and grow or shrink."""
    side, count = 96, 8
    ground, *inks = _palette(colours)
    texture = np.full((side * count, side * count, 3), ground, np.uint8)
    for row in range(count):
        for column in range(count):
            tile = texture[row * side : (row + 1) * side, column * side : (column + 1) * side]
            ink = inks[rng.integers(len(inks))]
            turn = side * int(rng.integers(2))
            for x, y in ((turn, 0), (side - turn, side)):
                _disc(tile, x, y, 0.64 * side, ink)
                _disc(tile, x, y, 0.36 * side, ground)
                _disc(tile, x, y, 0.2 * side, inks[(row + column) % len(inks)])
    return _from_above(width, height, texture, spin, zoom, scale=432 / height)


def fields(
    width: int,
    height: int,
    rng: Rng,
    colours: str = "588157 a3b18a d4a373 e9c46a 3a5a40 bc6c25 dda15e",
    pan: tuple[float, float] = (0.25, -0.16),
    spin: float = 0.06,
) -> Scene:
    """Fields from the air, with furrows, hedges and the shadows of clouds."""
    side, count = 1024, 70
    seeds = rng.random((count, 2)).astype(np.float32) * side
    x, y = _grid(side, side)
    away = np.abs(np.stack([x, y], -1)[::4, ::4, None] - seeds)
    away = np.minimum(away, side - away)
    distance = np.hypot(away[..., 0], away[..., 1])
    nearest = np.partition(distance, 1, axis=2)
    owner = distance.argmin(axis=2).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    hedge = _enlarged(nearest[..., 1] - nearest[..., 0], side, side)

    crops = _palette(colours)
    angle = rng.uniform(0, math.pi, count).astype(np.float32)[owner]
    furrows = np.sin((x * np.cos(angle) + y * np.sin(angle)) * np.float32(0.55))
    shade = 0.86 + 0.09 * furrows + 0.3 * (_noise(side, side, 12, rng) - 0.5)
    crop = np.array([crops[i % len(crops)] for i in range(count)], np.float32)
    edge = np.clip((9 - hedge) / 3, 0, 1)[..., None]
    texture = crop[owner] * shade[..., None] * (1 - edge) + edge * np.array((51, 73, 47))
    land = _from_above(
        width, height, np.clip(texture, 0, 255).astype(np.uint8), spin, 0, pan, 360 / height
    )
    cloud = _noise(2 * width, height, 5, rng, 3)
    shadow = _Panorama(_grey(1 - 0.47 * np.clip(4 * cloud - 2.1, 0, 1)))
    return lambda t: _lit(land(t), shadow.at(-0.3 * width * t))


def planet(
    width: int,
    height: int,
    rng: Rng,
    land: str = "0b2545 134074 1f6f8b c9b458 6a994e 386641 f2f2f2",
    air: str = "5aa9e6",
) -> Scene:
    """A planet turns among stars, a moon about it."""
    heavens = _colourise(_noise(2 * width, height, 4, rng) ** 3, "070a18 3a2463 6a3a8f")
    for x, y, light in rng.random((220, 3)):
        _disc(heavens, x * 2 * width, y * height, 0.4 + light, (230, 230, 245))
    stars = _Panorama(heavens)
    texture = _colourise(_noise(1024, 512, 6, rng, 6), land)

    radius = 0.33 * min(width, 1.3 * height)
    cx, cy = 0.46 * width, 0.52 * height
    x, y = _grid(width, height)
    x, y = (x - cx) / radius, (y - cy) / radius
    off = np.hypot(x, y)
    z = np.sqrt(np.clip(1 - off**2, 0, 1))
    longitude = np.arctan2(x, z) * np.float32(1024 / TAU)
    latitude = (np.arcsin(np.clip(y, -1, 1)) / np.float32(math.pi) + np.float32(0.5)) * 511
    cover = np.clip((1 - off) * radius + 0.5, 0, 1)
    light = _grey((0.12 + 0.95 * np.clip(0.7 * z - 0.55 * x - 0.45 * y, 0, 1)) * cover)
    veil = _grey(1 - cover)
    halo = np.exp(-14 * np.abs(off - 1)) * np.clip(0.75 - 0.5 * x - 0.4 * y, 0, 1)
    haze = _lit(_grey(0.8 * halo), np.full_like(veil, _palette(air)[0]))

    def moon(picture: Picture, angle: float) -> None:
        mx = cx + 1.55 * radius * math.sin(angle)
        my = cy - 0.35 * radius * math.sin(angle + 0.5)
        _disc(picture, mx, my, 0.16 * radius, (206, 204, 214))
        _disc(picture, mx + 0.05 * radius, my + 0.03 * radius, 0.035 * radius, (164, 162, 175))
        _disc(picture, mx - 0.05 * radius, my - 0.05 * radius, 0.025 * radius, (172, 170, 182))

    def scene(t: float) -> Picture:
        picture = stars.at(0.04 * width * t)
        angle = 0.9 * t - 0.6
        if math.cos(angle) < 0:
            moon(picture, angle)
        surface = _lit(_wrapped(texture, longitude - 90 * t, latitude), light)
        picture = cv2.add(cv2.add(_lit(picture, veil), surface), haze)
        if math.cos(angle) >= 0:
            moon(picture, angle)
        return picture

    return scene


def tunnel(
    width: int, height: int, rng: Rng, colours: str = "03071e 6a040f dc2f02 faa307 fff3b0"
) -> Scene:
    """A flight through a striped tunnel."""
    stripes = (np.indices((512, 512)).sum(axis=0) // 64 % 2).astype(np.float32)
    texture = _colourise(0.25 + 0.4 * _noise(512, 512, 6, rng) + 0.32 * stripes, colours)
    x, y = _grid(width, height)
    x, y = x - np.float32(0.54 * width), y - np.float32(0.47 * height)
    radius = np.hypot(x, y) / height + np.float32(1e-3)
    along = np.minimum(90 / radius, 4000)
    around = np.arctan2(y, x) * np.float32(1024 / TAU)
    light = _grey(2.6 * radius - 0.12)
    return lambda t: _lit(_wrapped(texture, around + 30 * t, along + 190 * t), light)


def _fish(
    picture: Picture, x: float, y: float, way: float, size: float, colour: Colour, t: float
) -> None:
    c, s = math.cos(way), math.sin(way)
    wag = 0.22 * math.sin(9 * t + x)

    def at(along: float, across: float) -> tuple[float, float]:
        across += wag * min(0.0, along) ** 2
        return x + size * (c * along - s * across), y + size * (s * along + c * across)

    dark = (colour[0] * 4 // 5, colour[1] * 4 // 5, colour[2] * 4 // 5)
    for side in (-1, 1):
        _shape(picture, dark, at(0.35, side * 0.2), at(0, side * 0.62), at(-0.1, side * 0.2))
    tail = at(-0.8, 0.06), at(-1.6, 0.42), at(-1.35, 0), at(-1.6, -0.42), at(-0.8, -0.06)
    _shape(picture, dark, *tail)
    _shape(picture, colour, *(at(a, b) for a, b in _oval(0, 0, 1, 0.3)))
    _shape(picture, (255, 250, 240), *(at(a, b) for a, b in _oval(0.25, 0, 0.3, 0.18)))


def pond(
    width: int,
    height: int,
    rng: Rng,
    water: str = "013a4a 026b78 1aa6a6 9ff0dd",
    koi: str = "ff7b00 fffaf0 e63946 ffb703 ff9e6d",
) -> Scene:
    """Koi swim under rain rings."""
    w, h = width // 2, height // 2
    x, y = (axis / np.float32(h) for axis in _grid(w, h))
    bed = 0.3 * _noise(w, h, 10, rng) + 0.18
    drops = [
        (0.35 * i - 0.8, np.hypot(x - rng.uniform(0, w / h), y - rng.random())) for i in range(9)
    ]
    school = [
        (
            rng.uniform(0.1, 0.9),
            rng.uniform(0.12, 0.9),
            rng.uniform(-0.5, 0.5) + i * math.pi,
            colour,
        )
        for i, colour in enumerate(_palette(koi))
    ]

    def scene(t: float) -> Picture:
        swell = np.sin(9 * x + 5 * y + 1.7 * t) + np.sin(7 * y - 6 * x + 1.2 * t)
        picture = _enlarged(_colourise(bed + 0.05 * swell, water), width, height)
        for i, (fx, fy, way, colour) in enumerate(school):
            px = fx * width + 0.28 * height * t * math.cos(way)
            py = fy * height + 0.28 * height * t * math.sin(way)
            _fish(picture, px, py, way, (0.1 + 0.02 * (i % 3)) * height, colour, t)
        rings = np.zeros((h, w), np.float32)
        for start, away in drops:
            if (age := t - start) > 0:
                front = away - 0.33 * age
                rings += np.exp(-400 * front**2) * np.sin(60 * front) * math.exp(-0.9 * age)
        return cv2.add(picture, _enlarged(_grey(0.43 * rings), width, height))

    return scene


def city(width: int, height: int, rng: Rng) -> Scene:
    """A skyline at dusk, and the lights of cars."""
    backdrop = _gradient(width, height, "14062e 4a1a70 b5477e ff9f6b ffd29a")
    step = max(6, height // 32)
    layers = []
    for depth, wall in enumerate(_palette("7a3b72 3a1b52 160a28")):
        colour = np.full((height, 2 * width, 3), wall, np.float32)
        cover = np.zeros((height, 2 * width), np.float32)
        x = 0
        while x < 2 * width:
            right = x + int(rng.uniform(0.07, 0.16) * height)
            top = int(
                height * (0.93 + 0.03 * depth - (0.42 - 0.07 * depth) * rng.uniform(0.45, 1.15))
            )
            cover[top:, x:right] = 1
            for wy in range(top + step, int(0.97 * height), step):
                for wx in range(x + step // 2, min(right, 2 * width) - step // 2, step):
                    if rng.random() < 0.42:
                        lamp = np.array((255, 209, 102) if rng.random() < 0.8 else (140, 220, 255))
                        window = slice(wy, wy + step // 2), slice(wx, wx + step // 2)
                        colour[window] = lamp * (0.55 + 0.15 * depth)
            x = right + int(rng.uniform(0, 0.03) * height)
        layers.append(_Layer(colour, cover))
    cars = [(rng.random(), -1 if i % 2 else 1, rng.uniform(0.35, 0.6)) for i in range(12)]

    def scene(t: float) -> Picture:
        picture = backdrop.copy()
        for depth, layer in enumerate(layers):
            layer.paint(picture, 0.05 * width * t * 2.2**depth)
        picture[int(0.93 * height) :] = (12, 8, 20)
        for start, way, pace in cars:
            x = ((start + way * pace * t) % 1.2 - 0.1) * width
            if way > 0:
                _glow(picture, x, 0.975 * height, 0.05 * height, (255, 70, 60))
            else:
                _glow(picture, x, 0.95 * height, 0.05 * height, (255, 244, 200))
        return picture

    return scene


def rosette(
    width: int,
    height: int,
    rng: Rng,
    ground: str = "f8edeb fec5bb",
    petals: str = "9d0208 e85d04 f48c06 ffba08 fff3b0 d00000",
) -> Scene:
    """Rings of petals turn against each other."""
    backdrop = _gradient(width, height, ground)
    rings = _palette(petals)
    reach = 0.62 * math.hypot(width, height)
    start = rng.uniform(0, TAU)

    def scene(t: float) -> Picture:
        picture = backdrop.copy()
        for ring, (red, green, blue) in enumerate(rings):
            size = reach * (1 - ring / len(rings)) * (1 + 0.05 * math.sin(1.5 * t + ring))
            dark = (red * 6 // 7, green * 6 // 7, blue * 6 // 7)
            count, turn = (12, 0.35 * t) if ring % 2 else (14, -0.28 * t)
            for k in range(count):
                angle = start + turn + TAU * k / count
                x = width / 2 + 0.62 * size * math.cos(angle)
                y = height / 2 + 0.62 * size * math.sin(angle)
                colour = (red, green, blue) if k % 2 else dark
                _shape(picture, colour, *_oval(x, y, 0.36 * size, 0.17 * size, angle))
        _disc(picture, width / 2, height / 2, 0.09 * height, _palette(ground)[0])
        return picture

    return scene


def bokeh(
    width: int,
    height: int,
    rng: Rng,
    ground: str = "0d1b2a 1b263b 2a1a3e",
    lights: str = "ff006e fb5607 ffbe0b 8338ec 3a86ff",
) -> Scene:
    """Lights out of focus drift upwards."""
    backdrop = _gradient(width, height, ground)
    lamps = _palette(lights)
    discs = rng.random((34, 3))

    def scene(t: float) -> Picture:
        picture = backdrop.copy()
        for i, (x, y, near) in enumerate(discs):
            px = width * (x + 0.02 * math.sin(0.8 * t + i))
            py = height * ((y - (0.05 + 0.13 * near) * t) % 1.25 - 0.12)
            red, green, blue = (int(v * (0.3 + 0.3 * near)) for v in lamps[i % len(lamps)])
            _glow(picture, px, py, (0.04 + 0.1 * near) * height, (red, green, blue), gain=7)
        return picture

    return scene


def court(
    width: int,
    height: int,
    rng: Rng,
    sky: str = "48bfe3 bde0fe ffffff",
    floor: str = "f1faee 457b9d",
    balls: str = "e63946 ffb703 2a9d8f",
) -> Scene:
    """Balls bounce over a chequered floor that slides towards the viewer."""
    horizon = round(0.48 * height)
    backdrop = _gradient(width, height, sky)
    squares = (np.indices((512, 512)) // 64).sum(axis=0) % 2
    shade = 0.8 + 0.2 * _noise(512, 512, 8, rng)
    texture = np.array(_palette(floor), np.float32)[squares] * shade[..., None]
    texture = texture.astype(np.uint8)
    x, y = _grid(width, height - horizon)
    depth = 150 * height / (y + 1)
    across = (x - width / 2) * depth / height
    haze = np.clip(y / (0.22 * height), 0, 1)[..., None]
    far = backdrop[horizon].astype(np.float32) * (1 - haze)
    red, green, blue = _palette(floor)[1]
    dark = (red // 2, green // 2, blue // 2)

    def scene(t: float) -> Picture:
        picture = backdrop.copy()
        picture[horizon:] = _wrapped(texture, across + 40 * t, depth + 260 * t) * haze + far
        for i, colour in enumerate(_palette(balls)):
            phase = (0.9 * t + 0.37 * i) % 1
            leap = 6 * phase * (1 - phase)
            size = (0.07 + 0.03 * i) * height
            px = width * (0.2 + 0.28 * i + 0.05 * math.sin(1.1 * t + 2 * i))
            foot = height * (0.66 + 0.1 * i)
            py = foot - size - 0.26 * height * leap
            near = 1 - 0.26 * leap
            _shape(picture, dark, *_oval(px, foot, size * near, 0.25 * size * near))
            _disc(picture, px, py, size, colour)
            _glow(picture, px - 0.35 * size, py - 0.4 * size, 0.7 * size, (120, 120, 120))
        return picture

    return scene
