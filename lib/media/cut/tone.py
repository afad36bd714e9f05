"""HDR to SDR by a table of colours: the formulas of the standards, worked out once on a grid.

zscale and tonemap compute the same with floating-point instructions that differ from CPU to CPU;
a table that is applied with whole numbers' rounding does not.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelmill.media.cut.picture import Picture
from reelmill.media.cut.plan import Plan

PEAK = 1000.0
"""cd/m² that become white; so is all that is brighter."""

WHITE = 100.0
"""cd/m² of the white of SDR."""

KNEE = 0.3
"""Share of ``WHITE`` up to which light stays as it is."""

_GRID = 33
_Colours = NDArray[np.float64]

# ITU-R BT.2020 and BT.709: luminance, and linear light of the one in the other's primaries.
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])
_TO_709 = np.array(
    [
        [1.660491, -0.587641, -0.072850],
        [-0.124550, 1.132900, -0.008349],
        [-0.018151, -0.100579, 1.118730],
    ]
)


def table_of(plan: Plan) -> Path:
    """The file of the table for a plan's clip."""
    return plan.file("tone.cube")


def table(picture: Picture) -> bytes:
    """The table, in the format of Cube LUTs, for pictures like ``picture``."""
    return _table(picture.is_hlg, picture.is_wide_gamut)


def to_sdr(stream: Any, picture: Picture, table: Path, scaler: str) -> Any:
    """RGB of BT.709, by the file of a table."""
    matrix = {} if picture.has_matrix else {"in_color_matrix": "bt2020"}
    return (
        stream.filter("scale", flags=scaler, **matrix)
        .filter("format", "gbrp16le")
        .filter("lut3d", file=str(table), interp="tetrahedral")
        # The metadata of HDR displays, too.
        .filter("sidedata", mode="delete")
        .filter("setparams", color_primaries="bt709", color_trc="bt709")
    )


def toned(bgr: NDArray[np.uint16], picture: Picture) -> NDArray[np.uint8]:
    """8 bits of SDR, of 16 bits of HDR like ``picture``: blue, green and red, (H, W, 3), in full
    range. By the same table, between whose colours it interpolates in tetrahedra; every step is of
    single numbers, which all CPUs round alike."""
    colours = _grid(picture.is_hlg, picture.is_wide_gamut).astype(np.float32)
    places = bgr.reshape(-1, 3).astype(np.float32) * np.float32((_GRID - 1) / 65535)
    corner = np.minimum(places.astype(np.int32), _GRID - 2)
    blue, green, red = (places - corner).T
    # Red changes fastest in the table.
    steps = np.array([_GRID * _GRID, _GRID, 1], dtype=np.int32)
    first = corner @ steps
    last = first + int(steps.sum())
    most, least = np.maximum(np.maximum(blue, green), red), np.minimum(np.minimum(blue, green), red)
    middle = np.maximum(np.minimum(blue, green), np.minimum(np.maximum(blue, green), red))
    ahead = np.where(blue == most, steps[0], np.where(green == most, steps[1], steps[2]))
    behind = np.where(red == least, steps[2], np.where(green == least, steps[1], steps[0]))
    mixed = colours[first] * (1 - most)[:, None]
    mixed += colours[first + ahead] * (most - middle)[:, None]
    mixed += colours[last - behind] * (middle - least)[:, None]
    mixed += colours[last] * least[:, None]
    levels = np.rint(mixed * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(levels.reshape(bgr.shape)[..., ::-1])


def sdr(signal: _Colours, *, hlg: bool = False, wide: bool = True) -> _Colours:
    """SDR signal of HDR ``signal``: RGB of 0 to 1, colours along the last axis.

    Light of the display by ITU-R BT.2100 (PQ's EOTF; HLG's inverse OETF and its OOTF for 1000
    cd/m²), in the primaries of BT.709; the largest of R, G and B is compressed by Möbius' curve
    (as FFmpeg's tonemap) and the others with it; the signal by the inverse of BT.1886.
    """
    light = (_hlg_light(signal) if hlg else _pq_light(signal)) / WHITE
    if wide:
        light = np.maximum(light @ _TO_709.T, 0)
    most = light.max(axis=-1, keepdims=True)
    mapped = light * (_mobius(most) / np.maximum(most, 1e-9))
    signals: _Colours = np.clip(mapped, 0, 1) ** (1 / 2.4)
    return signals


def _pq_light(signal: _Colours) -> _Colours:
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = signal ** (1 / m2)
    light: _Colours = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return light


def _hlg_light(signal: _Colours) -> _Colours:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luma = (scene @ _LUMA_2020)[..., None]
    light: _Colours = PEAK * np.maximum(luma, 1e-9) ** 0.2 * scene
    return light


def _mobius(light: _Colours) -> _Colours:
    """Light of up to ``PEAK`` within that of SDR: as it is below ``KNEE``, smooth there."""
    j, peak = KNEE, PEAK / WHITE
    a = -(j**2) * (peak - 1) / (j**2 - 2 * j + peak)
    b = (j**2 - 2 * j * peak + peak) / (peak - 1)
    curve = (b**2 + 2 * b * j + j**2) / (b - a) * (light + a) / (light + b)
    return np.where(light <= j, light, np.minimum(curve, 1))


@cache
def _table(hlg: bool, wide: bool) -> bytes:
    lines = [f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in _grid(hlg, wide).tolist()]
    return "\n".join([f"LUT_3D_SIZE {_GRID}", *lines, ""]).encode()


@cache
def _grid(hlg: bool, wide: bool) -> _Colours:
    """SDR of evenly spaced HDR, (colours, 3): red changes fastest."""
    axis = np.linspace(0, 1, _GRID)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    colours = sdr(np.stack([red, green, blue], axis=-1), hlg=hlg, wide=wide).reshape(-1, 3)
    # Six decimals: less than the last bits in which one CPU's powers differ from another's.
    return np.round(colours, 6)
