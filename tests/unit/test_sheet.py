from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from reelmill.report.sheet import SheetRow, contact_sheet, flow_legend

PAGE = (13, 17, 23)


def flat(width: int, height: int, *colour: int) -> np.ndarray:
    return np.full((height, width, 3), colour or (200, 40, 40), np.uint8)


def opened(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


def boxes(page: np.ndarray, *colour: int) -> tuple[slice, slice]:
    """Where a colour is: its rows and columns."""
    rows, columns = np.nonzero((page == colour).all(axis=2))
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


def some_rows() -> list[SheetRow]:
    shapes = [(640, 360), (360, 640), (320, 240), (480, 270), (200, 200)]
    return [
        SheetRow(f"00000000{i}_00{i}", f"{i}.5 s · 30 frames", [flat(*shapes[i % 5])] * (1 + i % 4))
        for i in range(17)
    ]


def test_the_same_rows_give_the_same_bytes() -> None:
    first, second = (
        contact_sheet(iter(some_rows()), title="clips", subtitle="17 clips", legend=True)
        for _ in range(2)
    )
    assert first == second
    assert opened(first).shape[1] == 1600


def test_pictures_keep_their_aspect_ratio_and_colour() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    shapes = [(640, 360), (270, 480), (320, 240), (1000, 200)]
    rows = [
        SheetRow(f"key{i}", "", [flat(*shape, *colour)])
        for i, (shape, colour) in enumerate(zip(shapes, colours, strict=True))
    ]
    page = opened(contact_sheet(rows, title="four"))
    tops = set()
    for (width, height), colour in zip(shapes, colours, strict=True):
        found_rows, found_columns = boxes(page, *colour)
        wide, high = found_columns.stop - found_columns.start, found_rows.stop - found_rows.start
        assert wide / high == pytest.approx(width / height, rel=0.12)
        tops.add(found_rows.start)
    assert len(tops) == 1


def test_lines_are_full_and_in_order() -> None:
    rows = [SheetRow(f"k{i}", "", [flat(160, 90, 250, 5 * i, 0)]) for i in range(24)]
    page = opened(contact_sheet(rows, title="many"))
    places = [boxes(page, 250, 5 * i, 0) for i in range(24)]
    starts = [(found[0].start, found[1].start) for found in places]
    assert starts == sorted(starts)
    lines = sorted({top for top, _ in starts})
    assert 2 < len(lines) < 24
    for top in lines[:-1]:
        right = max(found[1].stop for found in places if found[0].start == top)
        assert 1600 - right == pytest.approx(44 + 12, abs=2)


def test_frames_of_a_row_stand_side_by_side() -> None:
    pictures = [flat(160, 90, 0, 0, 250), flat(160, 90, 0, 250, 0), flat(90, 90, 250, 0, 0)]
    page = opened(contact_sheet([SheetRow("a", "b", pictures)], title="t"))
    first, second, third = (boxes(page, *picture[0, 0]) for picture in pictures)
    assert first[0] == second[0] == third[0]
    assert first[1].stop < second[1].start < second[1].stop < third[1].start
    assert abs((first[1].stop - first[1].start) - (second[1].stop - second[1].start)) <= 2


def test_words_and_labels_are_drawn() -> None:
    def page(**changes: object) -> np.ndarray:
        row = {"key": "key", "caption": "caption", "labels": ["t"]} | changes
        return opened(contact_sheet([SheetRow(pictures=[flat(160, 90)], **row)], title="title"))

    base = page()
    for changes in ({"key": "other"}, {"caption": "another"}, {"labels": ["t+1"]}, {"labels": []}):
        assert (page(**changes) != base).any()
    assert (page(caption="2 × 3 — 4") == page(caption="2 x 3 - 4")).all()


def test_the_legend_is_in_the_heading() -> None:
    without, with_legend = (
        opened(contact_sheet(some_rows()[:3], title="flow", legend=legend))
        for legend in (False, True)
    )
    changed = np.nonzero((without != with_legend).any(axis=2))
    assert changed[0].max() < 150
    assert changed[1].min() > 1200


def test_the_colours_of_the_legend() -> None:
    disc = flow_legend(81)
    assert (disc.shape, disc.dtype) == ((81, 81, 3), np.uint8)
    assert disc[40, 40].min() > 240
    right, down = disc[40, 78].astype(int), disc[78, 40].astype(int)
    assert right[0] > 240 > 40 > right[1:].max()
    assert down[:2].min() > 200 > 40 > down[2]
    assert tuple(disc[0, 0]) == PAGE


@pytest.mark.parametrize("width", [300, 1000, 1600])
def test_odd_content(width: int) -> None:
    rows = [
        SheetRow("k" * 300, "words " * 100, [flat(2000, 2)]),
        SheetRow("thin", "", [flat(2, 2000)], ["a label that cannot fit"]),
        SheetRow("many", "", [flat(10, 10)] * 40),
        SheetRow("日本語", "\x00\n\t", [flat(1, 1)]),
    ]
    page = opened(contact_sheet(rows, title="t" * 500, subtitle="s" * 900, width=width))
    assert page.shape[1] == width
    assert tuple(page[-1, -1]) == PAGE


def test_no_samples() -> None:
    assert opened(contact_sheet([], title="clips")).shape[1] == 1600
