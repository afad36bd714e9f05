"""Exported rejects: tables that come back as they were, and that no spreadsheet computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reelmill import tables
from reelmill.rejects import Reject, export

GOOD = Reject("000000001", "http_404", "h", 'https://h/a?"b"', "not\there", 2, 60)
FORMULA = '=HYPERLINK("http://evil/")'


def exported(path: Path, *rejects: Reject) -> list[dict[str, Any]]:
    assert export(iter(rejects), path) == len(rejects)
    table = tables.open_table(str(path))
    return [row for _, batch in table.batches() for row in batch.to_pylist()]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_exported_rejects_are_a_table(tmp_path: Path, ending: str) -> None:
    (row,) = exported(tmp_path / f"rejects.{ending}", GOOD)
    assert row["url"] == GOOD.url
    assert row["attempts"] == GOOD.attempts
    assert row["message"] == ("not\\there" if ending == "tsv" else GOOD.message)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("text", [FORMULA, "+1", "-1", "@a", "\tx"])
def test_nothing_exported_is_a_formula(tmp_path: Path, ending: str, text: str) -> None:
    bad = GOOD._replace(url=text, message=text)
    row, last = exported(tmp_path / f"rejects.{ending}", bad, GOOD)
    assert row["url"][0] == row["message"][0] == "'"
    assert last["url"] == GOOD.url
