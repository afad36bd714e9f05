"""Training from beginning to end, by the code of docs/training.md: it learns, and resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from reelmill.digest import sha256
from tests.references.workshop import build, files_of, modules, torch

OPPOSITE = [1, 0, 3, 2]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page's training, in a folder where its dataset is built."""
    folder = tmp_path_factory.mktemp("training")
    files = files_of("training.md")
    for name, text in files.items():
        (folder / name).write_text(text)
    with (
        pytest.MonkeyPatch.context() as patch,
        modules(folder, "make_videos", "train") as (make_videos, trained),
    ):
        patch.chdir(folder)
        make_videos.main(Path("videos"), 48)
        build(folder, files["recipe.yaml"], (folder / "urls.csv").read_text())
        yield trained


def test_a_network_learns_which_way_things_move(train: ModuleType) -> None:
    run = train.Training()
    losses = [loss for _ in range(4) for loss in run.losses()]
    assert losses[-1] < losses[0] / 10
    assert train.accuracy(run.network) > 0.9

    count = backwards = 0
    with torch.no_grad():
        for clips, directions in train.batches("val", workers=0):
            assert clips.shape[1:] == (8, 3, 48, 48)
            assert clips.dtype == torch.uint8
            said = run.network(clips.flip(1)).argmax(dim=1)
            backwards += sum(
                OPPOSITE[one] == two for one, two in zip(said, directions, strict=True)
            )
            count += len(directions)
    assert count > 20
    assert backwards > 0.9 * count


def said(
    train: ModuleType, checkpoint: Path, patch: pytest.MonkeyPatch, stop: int | None = None
) -> list[str]:
    """The lines of two epochs' training, which is interrupted when it says line ``stop``."""
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == stop:
            raise KeyboardInterrupt

    patch.setattr(train, "print", say, raising=False)
    try:
        train.main(checkpoint, epochs=2)
    except KeyboardInterrupt:
        assert stop
    return lines


def test_what_was_interrupted_goes_on_to_the_same_network(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = tmp_path / "whole.pt", tmp_path / "parted.pt"
    lines = said(train, whole, monkeypatch)
    second = next(n for n, line in enumerate(lines) if line.startswith("epoch 1"))
    assert second > 5
    first = said(train, parted, monkeypatch, stop=second + 6)
    assert first == lines[: second + 6]
    # The last checkpoint is of the fourth batch.
    assert said(train, parted, monkeypatch) == lines[second + 4 :]
    ended, resumed = (torch.load(path)["network"] for path in (whole, parted))
    assert ended.keys() == resumed.keys()
    assert all(torch.equal(ended[name], resumed[name]) for name in ended)


def test_each_epoch_has_other_clips_and_they_do_not_depend_on_the_workers(
    train: ModuleType,
) -> None:
    def digests(loader: Any) -> list[str]:
        clips = [clip for clips, _ in loader for clip in clips]
        return sorted(sha256(clip.numpy().tobytes()) for clip in clips)

    alone, shared = train.batches("val", workers=0), train.batches("val", workers=2)
    first, second = digests(alone), digests(alone)
    assert [digests(shared), digests(shared)] == [first, second]
    assert len(set(first) & set(second)) < len(first) / 2
