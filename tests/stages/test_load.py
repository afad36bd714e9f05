"""`reelmill.load` over real shards: every sample once, in any process, and on from anywhere."""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchdata.stateful_dataloader")

import webdataset as wds  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402

import reelmill  # noqa: E402
from reelmill.dataset import Version  # noqa: E402
from reelmill.errors import LoadError, ReelmillError  # noqa: E402
from reelmill.loading import (  # noqa: E402
    Dataset,
    FrameBatch,
    Trace,
    collate,
    sample_clips,
    video,
)
from reelmill.loading.stages import named  # noqa: E402
from reelmill.shards import removed  # noqa: E402
from reelmill.shards.removed import GONE, Removed  # noqa: E402
from reelmill.store import Store  # noqa: E402
from reelmill.store.model import blob_name  # noqa: E402
from tests.stages.datasets import World, keys  # noqa: E402

torch.set_num_threads(1)

SHARDS = 5
SAMPLES = 13


def cells(key: str) -> dict[str, bytes]:
    text = json.dumps({"key": key, "number": int(key)}).encode()
    return {"json": text, "left.bin": key.encode() * (1 + int(key) % 7)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Version:
    world = World(tmp_path_factory.mktemp("load"))
    shards = [{key: cells(key) for key in keys(shard, SAMPLES)} for shard in range(SHARDS)]
    world.grow("clips", {}, *shards)
    return world.commit("clips")


Loaded = Callable[[], Dataset]


@pytest.fixture(params=["version", "tars"])
def loaded(request: pytest.FixtureRequest, clips: Version) -> Loaded:
    """Loads the same samples, by their index and as any tars."""
    if request.param == "version":
        return lambda: reelmill.load("clips@latest", clips.store, seed=4)
    return lambda: reelmill.load(clips.urls(), seed=4)


def keys_of(items: Iterable[Any]) -> list[Any]:
    return [item["__key__"] for item in items]


def numbered(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "number": json.loads(sample["json"])["number"]}


def clips_of(sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """From none to three things of a sample."""
    for number in range(int(sample["__key__"]) % 4):
        yield {"__key__": sample["__key__"], "clip": number}


def rich(dataset: Dataset) -> Dataset:
    """A pipeline with everything that holds something."""
    return dataset.shuffle(9).flat_map(clips_of).shuffle(5, initial=3)


ALL = [key for shard in range(SHARDS) for key in keys(shard, SAMPLES)]


# What is given


def test_samples_are_those_that_webdataset_gives(clips: Version) -> None:
    plain = list(wds.WebDataset(clips.urls(), shardshuffle=False))
    for sample in plain:
        sample.pop("__local_path__")
        sample["__epoch__"] = 0
    assert list(reelmill.load(clips)) == plain
    assert list(reelmill.load(clips.urls())) == plain
    assert sorted(keys_of(plain)) == ALL


def test_only_some_fields_are_given_if_some_are_asked_for(clips: Version) -> None:
    for what, fields in ((clips, "left.bin"), (clips.urls(), ["left.bin"])):
        sample = next(iter(reelmill.load(what, fields=fields)))
        assert list(sample) == ["__key__", "__url__", "left.bin", "__epoch__"]
        assert sample["left.bin"] == cells(sample["__key__"])["left.bin"]


def test_braces_and_names_of_versions_are_told_apart(clips: Version, tmp_path: Path) -> None:
    for number, url in enumerate(clips.urls()):
        (tmp_path / f"{number:02}.tar").symlink_to(url)
    dataset = reelmill.load(f"{tmp_path}/{{00..04}}.tar")
    assert sorted(keys_of(dataset)) == ALL
    with pytest.raises(ReelmillError, match="'clips@v1' is a version's name: say in which store="):
        reelmill.load("clips@v1")
    with pytest.raises(ReelmillError, match="the list of addresses is empty"):
        reelmill.load([])
    with pytest.raises(ReelmillError, match="store= is where a version is looked up by its name"):
        reelmill.load(clips.urls(), clips.store)


def test_what_was_removed_or_rejected_is_not_given(tmp_path: Path) -> None:
    world = World(tmp_path)
    shards = [{key: cells(key) for key in keys(shard, 6)} for shard in range(3)]
    world.grow("clips", {}, *shards)
    gone = {"000000002", "000010000", "000010001"}
    data = removed.encode({key: Removed(GONE) for key in gone})
    world.remove("clips", world.store.put_blob(data, "parquet"))
    version = world.commit("clips")
    left = sorted({key for some in shards for key in some} - gone)
    dataset = reelmill.load(version)
    assert sorted(keys_of(dataset)) == left
    assert sorted(keys_of(dataset.random_access())) == left
    assert len(dataset.random_access()) == len(left)
    with pytest.raises(KeyError):
        dataset.random_access()["000010001"]
    shuffled = dataset.shuffle(4)
    whole = keys_of(shuffled)
    shuffled.set_epoch(0)
    stream = iter(shuffled)
    assert keys_of(itertools.islice(stream, 9)) == whole[:9]
    resumed = iter(shuffled)
    resumed.load_state_dict(stream.state_dict())
    assert keys_of(resumed) == whole[9:]
    evenly = [
        keys_of(reelmill.load(version, nodes=(rank, 4), even="repeat").shuffle(3))
        for rank in range(4)
    ]
    assert {len(some) for some in evenly} == {4}
    assert set(itertools.chain(*evenly)) == set(left)


def test_a_dataset_is_never_changed(clips: Version) -> None:
    first = reelmill.load(clips)
    before = keys_of(first)
    assert keys_of(first.shuffle(10).map(numbered).slice(3)) != before
    first.with_epoch(2)
    first.repeat(2)
    first.with_length(3)
    assert keys_of(first) == before
    with pytest.raises(TypeError):
        len(first)


def test_an_epoch_begins_before_anything_is_read(
    clips: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = reelmill.load(clips).shuffle(4).map(numbered)
    reads = Counter[str]()
    read = Store.read_blob

    def counted(store: Store, digest: str, suffix: Any) -> bytes:
        reads[suffix] += 1
        return read(store, digest, suffix)

    monkeypatch.setattr(Store, "read_blob", counted)
    monkeypatch.setattr(dataset.source, "window", 1)
    stream = iter(dataset)
    assert reads.total() == 0
    next(stream)
    assert reads == {"parquet": 1}


def test_stages_are_webdatasets(clips: Version) -> None:
    dataset = reelmill.load(clips).map(numbered)
    plain = wds.WebDataset(clips.urls(), shardshuffle=False).map(numbered)
    for ours, theirs in [
        (dataset.to_tuple("number", "png;json"), plain.to_tuple("number", "png;json")),
        (dataset.map_dict(number=str), plain.map_dict(number=str)),
        (dataset.rename(text="json"), plain.rename(text="json")),
        (dataset.select(odd), plain.select(odd)),
        (dataset.to_tuple("number").map_tuple(str), plain.to_tuple("number").map_tuple(str)),
        (dataset.slice(3, 20, 4), plain.slice(3, 20, 4)),
        (dataset.listed(7).unlisted(), plain.listed(7).unlisted()),
        (dataset.compose(wds.filters.select(odd)), plain.compose(wds.filters.select(odd))),
    ]:
        assert [without_ours(one) for one in ours] == [without_ours(one) for one in theirs]
    ours, theirs = (one.to_tuple("number", "json").batched(4) for one in (dataset, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine[0].tolist() == other[0].tolist()
        assert mine[1] == other[1]
    back = dataset.to_tuple("number").batched(6, partial=False).unbatched()
    assert [int(one[0]) for one in back] == [one["number"] for one in dataset][: 65 // 6 * 6]


def odd(sample: dict[str, Any]) -> bool:
    return bool(sample["number"] % 2)


def without_ours(item: Any) -> Any:
    if isinstance(item, dict):
        added = ("__local_path__", "__epoch__")
        return {name: value for name, value in item.items() if name not in added}
    return item


# Readers


def test_readers_share_what_there_is(clips: Version) -> None:
    given_out = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rank in range(2):
            dataset = reelmill.load(clips, nodes=(rank, 2)).shuffle(6)
            given_out += keys_of(DataLoader(dataset, batch_size=None, num_workers=2))
    assert sorted(given_out) == ALL


@pytest.mark.parametrize("what", ["version", "tars"])
def test_fewer_shards_than_readers_are_shared_by_samples(clips: Version, what: str) -> None:
    def one(rank: int) -> Dataset:
        return reelmill.load(clips if what == "version" else clips.urls(), nodes=(rank, 8))

    with pytest.warns(UserWarning, match=r"has 5 shards for 8 readers \(8 nodes with 1 worker ea"):
        first = keys_of(one(0).shuffle(3))
    with warnings.catch_warnings():
        # One of them says it.
        warnings.simplefilter("error")
        rest = [keys_of(one(rank).shuffle(3)) for rank in range(1, 8)]
    assert sorted(itertools.chain(first, *rest)) == ALL
    assert {len(some) for some in rest} <= {7, 8, 9}


def test_nodes_are_told_by_the_environment(clips: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    second = reelmill.load(clips)
    assert second.nodes == (1, 2)
    # What is sent to a worker stays what it was where it was sent from.
    sent = pickle.dumps(second)
    monkeypatch.setenv("RANK", "0")
    assert sorted(keys_of(second) + keys_of(pickle.loads(sent))) == ALL
    assert reelmill.load(clips, nodes=(0, 1)).nodes == (0, 1)
    for rank in ("2", "-1", ""):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(LoadError, match=f"RANK={rank} and WORLD_SIZE=2 tell of no node"):
            iter(second)


def in_group(rank: int, folder: str, store: str, answers: Any) -> None:
    group = torch.distributed
    group.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    dataset = reelmill.load("clips", store).shuffle(5)
    loader = dataset.loader(num_workers=1)
    answers.put((rank, keys_of(loader), keys_of(loader)))
    group.barrier()
    group.destroy_process_group()


def test_two_processes_of_a_group_share_each_epoch(clips: Version, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("fork")
    answers = context.Queue()
    given = str(tmp_path), clips.store.url, answers
    processes = [context.Process(target=in_group, args=(rank, *given)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(rank for rank, *_ in found) == [0, 1]
    epochs = [sorted(itertools.chain(*some)) for some in zip(*(e for _, *e in found), strict=True)]
    assert epochs == [ALL, ALL]
    assert set(found[0][1]) != set(found[0][2])


@pytest.mark.parametrize("even", ["drop", "repeat"])
@pytest.mark.parametrize("what", ["version", "tars"])
def test_all_readers_get_equally_many_batches(clips: Version, even: Any, what: str) -> None:
    source = clips if what == "version" else clips.urls()
    batches = [
        [
            keys_of([batch])[0]
            for batch in reelmill.load(source, nodes=(rank, 3), even=even).loader(4, 2)
        ]
        for rank in range(3)
    ]
    assert len({tuple(map(len, some)) for some in batches}) == 1
    every = Counter(key for some in batches for batch in some for key in batch)
    assert len(every) == (60 if even == "drop" else 65)
    assert every.total() == (60 if even == "drop" else 66)


# Epochs


def test_each_iteration_is_of_the_next_epoch(loaded: Loaded) -> None:
    dataset = rich(loaded())
    first, second = list(dataset), list(dataset)
    assert first != second
    assert Counter(map(str, first)) == Counter(map(str, second))
    dataset.set_epoch(0)
    assert [list(dataset), list(dataset)] == [first, second]
    assert list(rich(loaded())) == first


def test_workers_that_stay_learn_of_epochs(clips: Version) -> None:
    dataset = reelmill.load(clips).shuffle(8)
    once = dataset.loader(num_workers=2)
    epochs = [keys_of(once), keys_of(once)]
    assert epochs[0] != epochs[1]
    stay = dataset.loader(num_workers=2, persistent_workers=True)
    assert [keys_of(stay), keys_of(stay)] == epochs
    stay.set_epoch(1)
    assert keys_of(stay) == epochs[1]


def frozen(sample: dict[str, Any]) -> dict[str, Any]:
    return {"frozen": gc.get_freeze_count()}


def test_workers_that_stay_collect_the_garbage_of_epochs_that_went_before(clips: Version) -> None:
    stay = reelmill.load(clips).map(frozen).loader(num_workers=1, persistent_workers=True)
    counts = [max(item["frozen"] for item in stay) for _ in range(3)]
    assert counts[0] > 0
    # Fewer are left where something of them is no longer needed.
    assert counts == sorted(counts, reverse=True)


def test_an_epoch_may_be_of_so_many_items_or_passes(loaded: Loaded) -> None:
    dataset = loaded().shuffle(5)
    assert len(keys_of(dataset.with_epoch(100))) == 100
    twice = keys_of(dataset.repeat(2))
    assert sorted(twice) == sorted(ALL * 2)
    assert twice[:65] != twice[65:]
    # Of nothing there is no more by repeating it.
    assert list(dataset.select(lambda sample: False).repeat()) == []
    assert len(dataset.with_length(65)) == 65


# Going on


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_a_loader_goes_on_where_another_stood(loaded: Loaded, workers: int) -> None:
    def loader() -> Any:
        return rich(loaded()).loader(3, workers)

    whole = loader()
    epochs = [str(list(whole)) for _ in range(2)]
    assert epochs[0] != epochs[1]
    stopped = loader()
    batches = iter(stopped)
    head = [next(batches) for _ in range(11)]
    state = json.loads(json.dumps(stopped.state_dict()))
    del batches
    resumed = loader()
    resumed.load_state_dict(state)
    assert str(head + list(resumed)) == epochs[0]
    state = resumed.state_dict()
    assert str(list(resumed)) == epochs[1]
    # From the end of an epoch the next one follows.
    last = loader()
    last.load_state_dict(state)
    assert str(list(last)) == epochs[1]


@pytest.mark.parametrize("at", [0, 7, 24, 25, 30, 33])
def test_a_stream_goes_on_through_passes(loaded: Loaded, at: int) -> None:
    # 65 samples are 17 batches, so that an epoch of 25 has a second pass.
    for dataset in (loaded().shuffle(9).batched(4).with_epoch(25), rich(loaded()).repeat(2)):
        whole = list(dataset)
        dataset.set_epoch(0)
        stream = iter(dataset)
        head = list(itertools.islice(stream, at))
        resumed = iter(dataset)
        resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert str(head + list(resumed)) == str(whole)
        assert iter(dataset).epoch == 1


def changing(sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Things of a sample that is changed in between, and would be seen to be given twice."""
    sample["taken"] = sample.get("taken", 0) + 1
    for number in range(3):
        sample["number"] = number
        yield sample


def test_functions_may_change_what_they_are_given(loaded: Loaded) -> None:
    def dataset() -> Dataset:
        parts = loaded().shuffle(5).flat_map(changing).map(dict).flat_map(changing).map(dict)
        return parts.shuffle(7).to_tuple("__key__", "number", "taken")

    plain = wds.filters.map(dict)(one for sample in loaded() for one in changing(sample))
    parts = loaded().flat_map(changing).map(dict)
    assert [one["number"] for one in parts] == [one["number"] for one in plain] == [0, 1, 2] * 65
    whole = list(dataset())
    for at in (1, 40, 80):
        stream, resumed = iter(dataset()), iter(dataset())
        assert list(itertools.islice(stream, at)) == whole[:at]
        resumed.load_state_dict(stream.state_dict())
        assert list(resumed) == whole[at:]


def endless(sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return ({"__key__": sample["__key__"], "number": number} for number in itertools.count())


def test_a_function_may_give_things_without_end(loaded: Loaded) -> None:
    dataset = loaded().flat_map(endless).shuffle(4).with_epoch(20)
    whole = list(dataset)
    dataset.set_epoch(0)
    stream, resumed = iter(dataset), iter(dataset)
    head = list(itertools.islice(stream, 9))
    resumed.load_state_dict(stream.state_dict())
    assert head + list(resumed) == whole


@pytest.mark.parametrize("what", ["version", "tars"])
@pytest.mark.parametrize("readers", [1, 16])
def test_an_order_without_shuffles_goes_on_anywhere(
    clips: Version, what: str, readers: int
) -> None:
    source = clips if what == "version" else clips.urls()
    with warnings.catch_warnings(action="ignore"):
        loaded = reelmill.load(source, nodes=(readers // 2, readers))
        whole = [one["__key__"] for one in iter(loaded)]
        for at in range(len(whole) + 1):
            stream, again = iter(loaded), iter(loaded)
            for _ in range(at):
                next(stream)
            again.load_state_dict(stream.state_dict())
            assert [one["__key__"] for one in again] == whole[at:]


def test_torchs_own_loaders_do_with_a_dataset_what_they_do(loaded: Loaded) -> None:
    dataset = loaded().shuffle(7).map(numbered).to_tuple("number")
    whole = [batch[0].tolist() for batch in StatefulDataLoader(dataset, 4, num_workers=2)]
    assert sorted(itertools.chain(*whole)) == [int(key) for key in ALL]
    stopped = StatefulDataLoader(dataset, 4, num_workers=2)
    head = [batch[0].tolist() for batch in itertools.islice(stopped, 5)]
    resumed = StatefulDataLoader(dataset, 4, num_workers=2)
    resumed.load_state_dict(stopped.state_dict())
    assert head + [batch[0].tolist() for batch in resumed] == whole
    loader = wds.WebLoader(dataset, batch_size=None).shuffle(10).batched(5)
    assert sorted(n for batch in loader for n in batch[0].tolist()) == [int(key) for key in ALL]


def test_a_state_before_the_first_batch_is_of_the_first_epoch(clips: Version) -> None:
    def loader() -> Any:
        return reelmill.load(clips).shuffle(9).loader(num_workers=1)

    first = loader()
    state = first.state_dict()
    epochs = [keys_of(first), keys_of(first)]
    second = loader()
    second.load_state_dict(state)
    assert [keys_of(second), keys_of(second)] == epochs


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"seed": 5}, "the state is of seed 4, and cannot go on with seed 5"),
        ({"nodes": (1, 2)}, r"of reader \[0, 1, 0, 1\], .* with reader \[1, 2, 0, 1\]"),
        ({"fields": ["json"]}, "the state is of dataset clips@"),
        ({"even": "drop"}, "the state is of order shards True, shuffle 9/None, even None"),
    ],
)
def test_a_state_of_something_else_is_refused(
    clips: Version, other: dict[str, Any], line: str
) -> None:
    stream = iter(reelmill.load(clips, seed=4).shuffle(9))
    next(stream)
    strange = iter(reelmill.load(clips, **{"seed": 4, **other}).shuffle(9))
    with pytest.raises(LoadError, match=line):
        strange.load_state_dict(stream.state_dict())


def test_a_state_of_another_pipeline_is_refused(clips: Version) -> None:
    dataset = reelmill.load(clips)
    stream = iter(dataset.map(numbered))
    with pytest.raises(LoadError, match=r"stages \['map\(.*numbered\)'\], .* stages \['batched"):
        iter(dataset.batched(3)).load_state_dict(stream.state_dict())
    with pytest.raises(LoadError, match="no state of a stream"):
        stream.load_state_dict({})
    with pytest.raises(LoadError, match="no state of a loader"):
        dataset.loader().load_state_dict(stream.state_dict())
    with pytest.raises(LoadError, match="of a loader with 0 workers, and cannot go on with 2"):
        dataset.loader(num_workers=2).load_state_dict(dataset.loader().state_dict())


def scaled(by: int) -> Callable[[Any], Any]:
    def scale(sample: Any) -> Any:
        return {**sample, "scale": by}

    return scale


class Crop:
    """A function that is an object and says nothing of itself."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, sample: Any) -> Any:
        return sample


class Trainer:
    """Has functions, and changes as it works."""

    def __init__(self) -> None:
        self.steps = 0

    def changed(self, sample: Any) -> Any:
        return sample


def clips_at(**params: Any) -> Callable[[Any], Any]:
    return sample_clips("random_indices", num_frames_per_clip=8, **params)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda d: d.map(clips_at(num_clips=2)), lambda d: d.map(clips_at(num_clips=3))),
        (lambda d: d.map(lambda s: s), lambda d: d.map(lambda s: dict(s))),
        (lambda d: d.map(lambda s: s in (1, 2)), lambda d: d.map(lambda s: s in (1, 3))),
        (lambda d: d.map(scaled(2)), lambda d: d.map(scaled(3))),
        (lambda d: d.map(partial(max, 2)), lambda d: d.map(partial(max, 3))),
        (lambda d: d.flat_map(Crop(2)), lambda d: d.flat_map(Crop(3))),
        (lambda d: d.decode(video(frames=4)), lambda d: d.decode(video(frames=5))),
        (lambda d: d.batched(4), lambda d: d.batched(4, collate)),
    ],
)
def test_a_state_of_other_parameters_is_refused(clips: Version, one: Any, other: Any) -> None:
    state = iter(one(reelmill.load(clips))).state_dict()
    iter(one(reelmill.load(clips))).load_state_dict(state)
    with pytest.raises(LoadError, match="the state is of stages"):
        iter(other(reelmill.load(clips))).load_state_dict(state)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (lambda d: d.loader(4, 0), "a loader with 2 workers, and cannot go on with 0: say num_"),
        (
            lambda d: d.loader(5, 2),
            r"is of stages \['batched\(4, .* stages \['batched\(5",
        ),
        (lambda d: d.shuffle(3).loader(4, 2), "the state is of order"),
    ],
)
def test_a_loader_refuses_a_state_of_something_else_at_once(
    clips: Version, other: Any, line: str
) -> None:
    dataset = reelmill.load(clips)
    state = dataset.loader(4, 2).state_dict()
    dataset.loader(4, 2).load_state_dict(state)
    with pytest.raises(LoadError, match=line):
        other(dataset).load_state_dict(state)


def test_what_changes_as_a_program_works_tells_nothing_of_its_functions(clips: Version) -> None:
    trainer = Trainer()
    state = iter(reelmill.load(clips).map(trainer.changed)).state_dict()
    trainer.steps = 7
    iter(reelmill.load(clips).map(trainer.changed)).load_state_dict(state)


LABELS = """
from reelmill.loading.told import described
names = frozenset(["jpg", "json", "mp4", "txt"])
class Known:
    names = names
    def __init__(self): self.names = names
    def __call__(self, sample): return sample
print(described(lambda sample: sample in {"a", "b", "c"} or names), described(names))
print(described(Known()), described(lambda sample, names=names: (lambda: names)))
"""


def test_functions_are_called_the_same_in_each_run_of_a_program() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", LABELS],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in (1, 2)
    ]
    assert runs[0] == runs[1]
    assert b"0x" not in runs[0]


def test_a_state_is_small(clips: Version) -> None:
    stream = iter(reelmill.load(clips).shuffle(50).map(numbered).batched(4))
    next(stream)
    assert len(json.dumps(stream.state_dict())) < 800


# Trouble


def boom(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["number"] % 10 == 3:
        raise ValueError("no good")
    return sample


def test_trouble_with_a_sample_names_it(loaded: Loaded) -> None:
    dataset = loaded().map(numbered).map(boom)
    line = r"map\(.*boom\) of sample 0000\d000\d of .*\.tar: ValueError: no good; on_error='skip'"
    with pytest.raises(LoadError, match=line):
        list(dataset)
    with pytest.raises(LoadError) as caught:
        list(loaded().select("png"))
    assert str(caught.value).count("of /") == 1


def test_no_message_holds_what_an_address_keeps_secret() -> None:
    sample = {"__key__": "a", "__url__": "https://me:word@host.example/0.tar?token=t"}
    assert named(sample) == "sample a of https://host.example/0.tar"


def test_what_cannot_be_loaded_is_said_at_once(clips: Version) -> None:
    for what in (5, [5], clips.manifest):
        with pytest.raises(TypeError, match="is nothing to load: give a version, its name with"):
            reelmill.load(what)
    for what in ("", []):
        with pytest.raises(ReelmillError, match="there is no tar to load"):
            reelmill.load(what)
    with pytest.raises(LoadError, match=r"0\.\.3\.tar: its braces do not fit each other"):
        reelmill.load("https://host.example/{0..3.tar")
    with pytest.raises(ValueError, match="even='both' is neither drop nor repeat"):
        reelmill.load(clips, even="both")
    with pytest.raises(ValueError, match="on_error='stop' is neither raise nor skip"):
        reelmill.load(clips, on_error="stop")


def test_trouble_is_counted_and_warned_of_once_if_it_is_to_be_skipped(clips: Version) -> None:
    dataset = reelmill.load(clips, on_error="skip").map(numbered).map(boom)
    stream = iter(dataset)
    with pytest.warns(UserWarning, match="ValueError: no good; it is left out") as warned:
        left = keys_of(stream)
    assert len(warned) == 1
    assert sorted(left) == [key for key in ALL if int(key) % 10 != 3]
    assert stream.troubles.counts == {"ValueError": 5}


def test_a_shard_that_is_damaged_is_named(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.grow("clips", {}, *({key: cells(key) for key in keys(n, 9)} for n in range(3)))
    version = world.commit("clips")
    shards = list(version.manifest.shards)
    paths = [Path(url) for url in version.urls()]
    for path in paths[:2]:
        path.chmod(0o644)
    paths[0].write_bytes(paths[0].read_bytes()[:3000])
    paths[1].unlink()
    with pytest.raises(LoadError, match=f"sample {keys(0, 9)[0][:6]}.* of shard 00000 of clips@"):
        list(reelmill.load(version))
    with pytest.warns(UserWarning, match="it is left out"):
        left = keys_of(reelmill.load(version, on_error="skip").shuffle(3))
    assert {key[:5] for key in left} == {"00000", "00002"}
    assert len([key for key in left if key[:5] == "00002"]) == 9
    with pytest.raises(LoadError, match=re.escape(str(paths[0]))):
        list(reelmill.load([str(path) for path in paths]))
    with pytest.warns(UserWarning, match="it is left out"):
        plain = keys_of(reelmill.load([str(path) for path in paths], on_error="skip"))
    assert [key for key in plain if key[:5] == "00002"] == sorted_as_they_lie(version, 2)
    index = Path(world.store.backend.locate(blob_name(shards[2].index.digest, "parquet")))
    index.unlink()
    with pytest.raises(LoadError, match=r"shard 00002 of clips@.* is gone"):
        list(reelmill.load(version, on_error="raise", nodes=(2, 3)))


def sorted_as_they_lie(version: Version, shard: int) -> list[str]:
    return [row["key"] for row in list(version.shards())[shard].rows()]


def test_a_table_has_no_samples_to_load(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.grow("urls", {"url": "string"}, {"000000000": {"url": "https://a.example/1.mp4"}})
    with pytest.raises(ReelmillError, match="has no samples: it is a table"):
        reelmill.load(world.commit("urls"))


# Random access


def test_samples_are_had_by_number_and_key(loaded: Loaded) -> None:
    dataset = loaded().map(numbered)
    every = [without_ours(sample) for sample in dataset]
    samples = dataset.random_access()
    assert len(samples) == 65
    assert list(samples) == every
    assert samples[-1] == every[-1]
    assert samples["000030007"]["number"] == 30007
    part = samples[10:60:5]
    assert part[2] == every[20]
    assert list(part) == every[10:60:5]
    assert part[every[25]["__key__"]] == every[25]
    assert samples.__getitems__([64, 0, 3, 3]) == [every[64], every[0], every[3], every[3]]
    with pytest.raises(IndexError, match="has 65 samples, and none 65"):
        samples[65]
    for key in ("000990000", every[11]["__key__"]):
        with pytest.raises(KeyError, match=key):
            part[key]


def test_random_access_needs_files_in_which_one_can_seek(clips: Version) -> None:
    class Stream(io.FileIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(LoadError, match=r"\.tar: in what its opener gives one cannot seek"):
        reelmill.load(clips.urls(), opener=Stream).random_access()
    packed = reelmill.load(clips.urls(), opener=lambda url: io.BytesIO(b"no tar at all" * 99))
    with pytest.raises(LoadError, match="no tar; only in a whole, uncompressed tar can samples"):
        packed.random_access()


def test_random_access_needs_one_thing_of_each_sample(clips: Version) -> None:
    dataset = reelmill.load(clips)
    with pytest.raises(LoadError, match=r"clips_of\) makes [023] things of sample"):
        list(dataset.flat_map(clips_of).random_access())
    with pytest.raises(LoadError, match=r"cannot have batched\(2, partial=True, "):
        dataset.batched(2).random_access()
    with pytest.raises(LoadError, match=r"leave shuffle\(\) out"):
        dataset.shuffle(3).random_access()
    with pytest.raises(LoadError, match=r"boom\) of sample 0000\d000\d of .*ValueError: no good"):
        list(dataset.map(numbered).map(boom).random_access())


def test_workers_read_by_number(loaded: Loaded) -> None:
    samples = loaded().map(numbered).random_access()
    assert samples["000030007"] == pickle.loads(pickle.dumps(samples))["000030007"]
    assert by_number(samples, "fork") == [int(key) for key in ALL]


def test_workers_that_begin_from_nothing_read_by_number(clips: Version) -> None:
    samples = reelmill.load(clips).map(numbered).random_access()
    assert by_number(samples, "spawn") == [int(key) for key in ALL]


def by_number(samples: Any, start: str) -> list[int]:
    loader = DataLoader(
        samples,
        batch_size=8,
        shuffle=True,
        num_workers=1,
        collate_fn=collate,
        multiprocessing_context=start,
    )
    return sorted(n for batch in loader for n in batch["number"].tolist())


# Traces


def test_a_batch_is_traced_to_its_sources(tmp_path: Path) -> None:
    world = World(tmp_path)
    rows = [
        {key: {"url": f"https://a.example/{key}.mp4"} for key in keys(shard, 4)}
        for shard in range(2)
    ]
    world.grow("urls", {"url": "string"}, *rows)
    urls = world.commit("urls")
    every = [key for some in rows for key in some]
    world.grow("videos", {}, {key: cells(key) for key in every})
    videos = world.commit("videos", {"source": str(urls)})
    made = {f"{key}_{n:03}": {"txt": b"x", "start": n} for key in every for n in range(2)}
    world.grow("clips", {"start": "int64"}, made)
    clips = world.commit("clips", {"source": str(videos)})
    dataset = reelmill.load(clips).shuffle(5)
    seen = []
    for batch in dataset.loader(3, 1):
        traces = dataset.trace(batch)
        assert [trace.key for trace in traces] == batch["__key__"]
        assert [trace.url for trace in traces] == batch["__url__"]
        seen += traces
    assert sorted(trace.key for trace in seen) == sorted(made)
    for trace in seen:
        root, _, number = trace.key.partition("_")
        assert (trace.shard, trace.version) == ("00000", str(clips))
        assert trace.columns == {"start": int(number)}
        assert (trace.source_key, trace.source) == (root, str(urls))
        assert trace.source_url == f"https://a.example/{root}.mp4"
    by_key = dataset.trace("000010003_001")
    assert by_key == [trace for trace in seen if trace.key == "000010003_001"]
    assert dataset.trace(["000010003_001"]) == by_key
    with pytest.raises(LoadError, match="nothing to trace in int"):
        dataset.trace(3)
    with pytest.raises(KeyError, match="no sample 000090000"):
        dataset.trace("000090000")
    with pytest.raises(LoadError, match="a batch of 2 keys and 1 addresses"):
        dataset.trace({"__key__": ["a", "b"], "__url__": ["c"]})
    plain = reelmill.load(clips.urls())
    assert plain.trace(next(iter(plain))) == [Trace(made_first(clips), clips.urls()[0])]


def made_first(version: Version) -> str:
    return sorted_as_they_lie(version, 0)[0]


# Elsewhere


def test_workers_read_from_a_remote_store(s3_url: str, tmp_path: Path) -> None:
    world = World(tmp_path, s3_url)
    world.grow("clips", {}, *({key: cells(key) for key in keys(n, 9)} for n in range(2)))
    version = world.commit("clips")
    dataset = reelmill.load(version)
    every = sorted(keys_of(dataset))
    assert len(every) == 18
    for cache in (None, tmp_path / "cache"):
        plain = reelmill.load(version.urls(), cache=cache)
        assert sorted(keys_of(plain)) == every
        assert list(plain.random_access()) == list(dataset.random_access())
    # Its drivers do not outlive the fork.
    assert sorted(keys_of(dataset.shuffle(4).loader(num_workers=2))) == every
    assert sorted(keys_of(dataset.random_access())) == every


def test_batches_are_of_tensors_where_they_can_be() -> None:
    frames = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    times = torch.zeros(2, dtype=torch.float64)
    sample = {
        "__key__": "a",
        "number": 3,
        "array": np.ones((2, 2), np.float32),
        "tensor": torch.ones(2),
        "frames": FrameBatch(frames, times, times),
        "text": "words",
    }
    batch = collate([sample, {**sample, "__key__": "b", "number": 4}])
    assert batch["__key__"] == ["a", "b"]
    assert batch["number"].tolist() == [3, 4]
    assert batch["array"].shape == (2, 2, 2)
    assert batch["tensor"].tolist() == [[1, 1], [1, 1]]
    assert batch["frames"].data.shape == (2, 2, 3, 4, 4)
    assert batch["text"] == ["words", "words"]
    assert collate([(1, "x"), (2, "y")])[1] == ["x", "y"]
    with pytest.raises(ValueError, match=r"samples of fields \['a'\] and \['a', 'b'\]"):
        collate([{"a": 1}, {"a": 1, "b": 2}])
    with pytest.raises(ValueError, match=r"arrays of shapes \(1,\), \(2,\)"):
        collate([torch.ones(1), torch.ones(2)])


def test_a_batch_that_cannot_be_put_together_names_its_samples(clips: Version) -> None:
    def shaped(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "array": np.zeros(int(sample["__key__"]) % 3)}

    with pytest.raises(LoadError, match=r"a batch of 4 \(sample 0000.*arrays of shapes"):
        list(reelmill.load(clips).map(shaped).batched(4, collate))


def test_the_examples_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.grow("clips", {}, *({key: cells(key) for key in keys(n, 14)} for n in range(3)))
    world.commit("clips")
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "loading.md"
    text, *_ = page.read_text().partition("## Where shards are")  # from there on, elsewhere
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["samples"]["000010003"]["number"] == 10003
    # Its functions hold on to it, and it to workers.
    names.clear()
