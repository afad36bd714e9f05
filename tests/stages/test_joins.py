"""Joins, datasets put end to end, and shares of one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from reelmill.errors import RecipeError, StageError
from reelmill.shards import removed
from reelmill.shards.reader import ShardReader
from reelmill.shards.removed import Removed, source_key
from reelmill.store.model import Blob, Manifest, blob_name

from .datasets import World, keys


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def clips(world: World, *shards: int) -> None:
    """A generation of clips: so many in each shard."""
    first = sum(1 for _ in world.given["clips"].shards) if "clips" in world.given else 0
    made = [
        {k: {"mp4": f"v{k}".encode(), "json": about(n=n), "width": n} for n, k in enumerate(some)}
        for some in (keys(first + number, count) for number, count in enumerate(shards))
    ]
    world.grow("clips", {"width": "int32"}, *made)


def about(**values: Any) -> bytes:
    return json.dumps(values, separators=(",", ":"), sort_keys=True).encode()


def captions(world: World, *shards: list[str], json_too: bool = False) -> None:
    more = {"json": about(model="m")} if json_too else {}
    made = [
        {k: {"txt": f"c{k}".encode(), **more, "score": len(k) / 8, "width": 7} for k in some}
        for some in shards
    ]
    world.grow("captions", {"score": "float64", "width": "int32"}, *made)


JOIN = {"source": "clips", "captions": "captions"}

# Join


def test_fields_and_columns_come_together_by_key(world: World) -> None:
    clips(world, 3, 2)
    captions(world, keys(0, 3), keys(1, 2), json_too=True)
    made = world.one("join", JOIN)
    samples = world.samples(made)
    assert samples.keys() == world.samples(world.given["clips"]).keys()
    one = samples["000010001"]
    assert one.fields == {
        "mp4": b"v000010001",
        "txt": b"c000010001",
        "json": about(captions={"model": "m"}, n=1),
    }
    assert one.columns == {"width": 1, "score": 1.125, "captions_width": 7}


def test_what_a_sample_derives_from_is_its_partner_too(world: World) -> None:
    triplets = [{f"{k}_{n:03d}_{n * 5:06d}": {"jpg": b"j"} for k in keys(0, 2) for n in (0, 11)}]
    world.grow("triplets", {}, *triplets)
    captions(world, ["000000000", "000000001_011"])
    made = world.one("join", {"source": "triplets", "captions": "captions"})
    texts = {key: one.fields["txt"] for key, one in world.samples(made).items()}
    assert texts == {
        "000000000_000_000000": b"c000000000",
        "000000000_011_000055": b"c000000000",
        "000000001_011_000055": b"c000000001_011",
    }
    assert list(world.rejects(made)) == ["000000001_000_000000"]


def test_columns_of_one_name_keep_apart_however_often_they_are_joined(world: World) -> None:
    clips(world, 1)
    captions(world, keys(0, 1))
    columns = {"fields": {"captions": []}}
    datasets = {
        "once": {"stage": "join", "from": JOIN, **columns},
        "twice": {"stage": "join", "from": {**JOIN, "source": "once"}, **columns},
    }
    made = world.build(datasets)["twice"]
    assert list(world.columns(made)) == [
        "width",
        "score",
        "captions_width",
        "captions_score",
        "captions_captions_width",
    ]


def test_a_missing_partner_is_a_reject_or_not(world: World) -> None:
    clips(world, 3)
    captions(world, keys(0, 1))
    made = world.one("join", JOIN, max_rejects="100%")
    said = "nothing for it in captions, in the shard of the same ID; by: key looks in all"
    assert world.rejects(made) == dict.fromkeys(keys(0, 3)[1:], ("no_partner", said))
    kept = world.samples(world.one("join", JOIN, missing="keep"))
    assert len(kept) == 3
    assert kept["000000002"].columns == {"width": 2, "score": None, "captions_width": None}
    with pytest.raises(StageError, match=r"sample 00000000\d: nothing for it in captions"):
        world.one("join", JOIN, missing="fail")


def test_partners_in_other_shards_are_found_by_key(world: World) -> None:
    clips(world, 3, 3)
    shuffled = [*keys(0, 3), *keys(1, 3)]
    random.Random(1).shuffle(shuffled)
    captions(world, shuffled[:1], shuffled[1:5], shuffled[5:])
    made = world.one("join", JOIN, by="key")
    assert {k: one.fields["txt"] for k, one in world.samples(made).items()} == {
        key: f"c{key}".encode() for key in shuffled
    }
    assert [shard.id for shard in made.shards] == ["00000", "00001"]


def test_fields_are_chosen_or_renamed_and_never_overwritten(world: World) -> None:
    clips(world, 2)
    flows = {
        k: {"mp4": b"other", "0.flow.png": b"f", "0.jpg": b"j", "json": b"{}"} for k in keys(0, 2)
    }
    world.grow("flows", {}, flows)
    both = {"source": "clips", "flow": "flows"}
    said = r"source and flow both have the field mp4; say which fields of flow to take"
    with pytest.raises(StageError, match=said):
        world.one("join", both)

    def fields(**params: Any) -> set[str]:
        made = world.samples(world.one("join", both, **params))
        return set(made["000000000"].fields)

    assert fields(fields={"flow": ["*.flow.png"]}) == {"mp4", "json", "0.flow.png"}
    assert fields(fields=["flow:*.flow.png"]) == {"mp4", "json", "0.flow.png"}
    renamed = {"flow.mp4", "flow.0.flow.png", "flow.0.jpg", "flow.json"}
    assert fields(prefix=["flow"]) == {"mp4", "json", *renamed}


def test_a_join_for_columns_alone_leaves_the_tar_as_it_is(world: World) -> None:
    clips(world, 2)
    captions(world, keys(0, 2))
    (shard,) = world.given["clips"].shards
    assert shard.tar is not None
    # Whoever read or copied it would notice.
    world.store.backend.put(blob_name(shard.tar.digest, "tar"), bytes(shard.tar.size))
    made = world.one("join", JOIN, fields={"captions": []})
    (joined,) = made.shards
    assert joined.tar == shard.tar
    rows = ShardReader(world.store, joined).rows()
    assert [row["score"] for row in rows] == [1.125, 1.125]


def test_a_table_has_columns_to_join_and_no_samples(world: World) -> None:
    world.grow("urls", {"title": "string"}, {k: {"title": f"t{k}"} for k in keys(0, 2)})
    world.grow("clips", {}, {f"{k}_000": {"mp4": b"v", "json": b"{}"} for k in keys(0, 2)})
    captions(world, keys(0, 2), json_too=True)
    inputs = {"source": "clips", "table": "urls", "captions": "captions"}
    made = world.samples(world.one("join", inputs))
    assert made["000000001_000"].columns["title"] == "t000000001"
    assert set(made["000000001_000"].fields) == {"mp4", "json", "txt"}
    others: list[tuple[str, Any, dict[str, Any]]] = [
        ("join", {"source": "urls", "other": "clips"}, {}),
        ("filter", "urls", {"where": "title is null"}),
        ("sample", "urls", {"share": "10%"}),
        ("concat", ["urls", "clips"], {}),
        ("shuffle", "urls", {}),
    ]
    for stage, source, params in others:
        match = f"out: stage {stage} reads samples, and urls is a table, whose rows are none"
        with pytest.raises(RecipeError, match=match):
            world.one(stage, source, **params)


def test_a_name_that_json_has_already_is_refused_and_bad_json_is_a_reject(world: World) -> None:
    world.grow("clips", {}, {"000000000": {"json": b'{"captions":1}'}})
    captions(world, keys(0, 1), json_too=True)
    with pytest.raises(StageError, match="says something of captions already; call that input"):
        world.one("join", JOIN)
    bad = World(world.folder / "bad")
    bad.grow("clips", {}, {"000000000": {"json": b"[1]"}})
    captions(bad, keys(0, 1), json_too=True)
    made = bad.one("join", JOIN, max_rejects="100%")
    assert bad.rejects(made) == {"000000000": ("bad_json", "the json of source is no object")}


def test_fields_that_cannot_be_in_one_tar_are_a_reject(world: World) -> None:
    clips(world, 3)
    more = [{"MP4": b"x"}, {f"{'f' * 80}": b"x"}, {"txt": b"x"}]
    world.grow("more", {}, dict(zip(keys(0, 3), more, strict=True)))
    inputs = {"source": "clips", "far-from-short": "more"}
    made = world.one("join", inputs, max_rejects="100%")
    said = "two of its fields differ only in case"
    assert world.rejects(made) == {"000000000": ("unfit_field", said)}
    made = world.one("join", inputs, prefix="far-from-short", max_rejects="100%")
    ((key, (reason, message)),) = world.rejects(made).items()
    assert (key, reason) == ("000000001", "unfit_field")
    assert message.endswith("is longer than 100 bytes")


def test_roles_that_are_not_there_are_named(world: World) -> None:
    clips(world, 1)
    captions(world, keys(0, 1))
    said = "out: join: no input is called caption; there are source, captions"
    with pytest.raises(RecipeError, match=said):
        world.one("join", JOIN, prefix=["caption"])
    with pytest.raises(RecipeError, match="for the other inputs; source keeps its own"):
        world.one("join", JOIN, fields={"source": ["mp4"]})
    with pytest.raises(RecipeError, match="stage join reads source and others"):
        world.one("join", "clips")


def test_a_shard_without_its_like_is_told(world: World) -> None:
    clips(world, 1, 1)
    captions(world, keys(0, 1))
    world.build({"out": {"stage": "join", "from": JOIN}})
    said = "out: clips has a shard 00001 and captions has none, so its samples cannot be put"
    assert world.problems["out"].startswith(said)
    kept = world.one("join", JOIN, by="key", missing="keep")
    assert kept.totals().samples == 2
    # Of other sources, which have shards of the same IDs in other generations.
    clips(world, 1)
    captions(world, keys(1, 1))
    world.given["captions"] = world.given["captions"].model_copy(
        update={"generations": world.given["captions"].generations[::-1]}
    )
    world.build({"out": {"stage": "join", "from": JOIN}})
    said = "out: clips has a shard 00000 and captions has none in generation 1, so its samples"
    assert world.problems["out"].startswith(said)


@pytest.mark.parametrize("by", ["shard", "key"])
def test_joins_grow_and_nothing_old_is_made_again(world: World, by: str) -> None:
    clips(world, 2, 2)
    captions(world, keys(0, 2), keys(1, 2))
    recipe = {
        "wide": {"stage": "filter", "from": "clips", "where": "width >= 0"},
        "out": {"stage": "join", "from": {"source": "wide", "c": "captions"}, "by": by},
    }
    first = world.build(recipe)["out"]
    clips(world, 3)
    captions(world, keys(2, 3))
    grown = world.build(recipe)["out"]
    assert world.made == ["filter/wide/00002", "join/out/00002"]
    assert grown.generations[:1] == first.generations
    assert [len(g.shards) for g in grown.generations] == [2, 1]


def test_inputs_may_come_in_any_order(world: World) -> None:
    clips(world, 2, 2, 2)
    captions(world, keys(0, 2), keys(1, 2), keys(2, 2))
    recipe = {
        "a": {"stage": "filter", "from": "clips", "where": "width < 1"},
        "b": {"stage": "filter", "from": "captions", "where": "score > 0"},
        "out": {"stage": "join", "from": {"source": "a", "b": "b"}},
    }
    found = []
    for seed in range(3):
        again = World(world.folder / str(seed))
        clips(again, 2, 2, 2)
        captions(again, keys(0, 2), keys(1, 2), keys(2, 2))
        rng = random.Random(seed)
        found.append(again.build(recipe, lambda w: w.pop(rng.randrange(len(w))))["out"])  # noqa: B023
    assert found[0] == found[1] == found[2]
    assert found[0].totals().samples == 3


# Concat


def test_datasets_end_to_end_keep_their_tars(world: World) -> None:
    clips(world, 2, 3)
    recipe = {
        "narrow": {"stage": "filter", "from": "clips", "where": "width < 1"},
        "wide": {"stage": "filter", "from": "clips", "where": "width > 0"},
        "all": {"stage": "concat", "from": ["narrow", "wide"]},
    }
    made = world.build(recipe)
    parts = [*made["narrow"].shards, *made["wide"].shards]
    assert [shard.tar for shard in made["all"].shards] == [shard.tar for shard in parts]
    assert [shard.id for shard in made["all"].shards] == ["00000", "00001", "00002", "00003"]
    before, after = world.samples(world.given["clips"]), world.samples(made["all"])
    assert after == {key: before[key] for key in after}
    assert len(after) == len(before) == 5

    clips(world, 2)
    grown = world.build(recipe)["all"]
    assert [label for label in world.made if "all" in label] == [
        "concat/all/00004",
        "concat/all/00005",
    ]
    assert grown.generations[:1] == made["all"].generations


def test_columns_are_those_of_all(world: World) -> None:
    clips(world, 1)
    world.grow("other", {"score": "float64", "width": "int64"}, {"000010000": {"txt": b"t"}})
    made = world.one("concat", ["clips", "other"])
    types = {"width": "int64", "score": "double"}
    for shard in made.shards:
        one = Manifest(fields=(), generations=(made.generations[0],))
        one = one.model_copy(
            update={"generations": (made.generations[0].model_copy(update={"shards": (shard,)}),)}
        )
        assert world.columns(one) == types
    assert world.samples(made)["000000000"].columns == {"width": 0, "score": None}
    world.grow("third", {"width": "string"}, {"000020000": {"txt": b"t"}})
    with pytest.raises(StageError, match="columns width of int32 and string, which are not one"):
        world.one("concat", ["clips", "third"])


def test_keys_that_are_there_twice_are_refused_and_told_apart_by_a_prefix(world: World) -> None:
    clips(world, 2, 1)
    world.grow("night_ones", {"width": "int32"}, {k: {"mp4": b"n"} for k in keys(0, 2)})
    both = {"day": "clips", "night_ones": "night_ones"}
    with pytest.raises(StageError, match=r"more than once \(2 of them, such as 000000000\); say"):
        world.one("concat", both)
    made = world.one("concat", both, prefix=True)
    samples = world.samples(made)
    assert sorted(samples) == [
        "day-000000000",
        "day-000000001",
        "day-000010000",
        "night-ones-000000000",
        "night-ones-000000001",
    ]
    assert samples["day-000000001"].fields["mp4"] == b"v000000001"
    assert samples["day-000000001"].columns == {"width": 1}


def test_a_prefix_that_makes_keys_the_same_is_refused(world: World) -> None:
    world.grow("one", {}, {"000000000": {"txt": b""}})
    world.grow("two", {}, {"000000000": {"txt": b""}})
    recipe = {
        "k": {"stage": "concat", "from": {"b": "one", "c": "two"}, "prefix": True},
        "out": {"stage": "concat", "from": {"a": "k", "a-b": "one"}, "prefix": True},
    }
    with pytest.raises(StageError, match=r"more than once \(1 of them, such as a-b-000000000\)"):
        world.build(recipe)


def test_roles_that_come_to_one_prefix_are_no_harm(world: World) -> None:
    for name, shard in (("one", 0), ("two", 0), ("three", 1)):
        world.grow(name, {}, {key: {"txt": name.encode()} for key in keys(shard, 1)})
    made = world.one("concat", {"a_b": "one", "c": "two", "a-b": "three"}, prefix=True)
    assert sorted(world.samples(made)) == ["a-b-000000000", "a-b-000010000", "c-000000000"]


def test_keys_of_generations_before_are_looked_at_too(world: World) -> None:
    clips(world, 1)
    clips(world, 1)
    # Of another source, whose first shard came to nothing.
    world.grow("others", {"width": "int32"}, {}, {k: {"mp4": b"n"} for k in keys(1, 1)})
    world.grow("others", {"width": "int32"})
    with pytest.raises(StageError, match=r"more than once \(1 of them, such as 000010000\)"):
        world.one("concat", ["clips", "others"])


def test_datasets_that_grew_unequally_need_a_prefix(world: World) -> None:
    clips(world, 1)
    clips(world, 1)
    world.grow("old", {"age": "int32"}, {"999990000": {"txt": b"", "age": 9}})
    recipe: dict[str, Any] = {"out": {"stage": "concat", "from": {"new": "clips", "old": "old"}}}
    assert world.build(recipe) == {}
    assert "out: old grew less often than the others" in world.problems["out"]
    recipe["out"]["prefix"] = True
    made = world.build(recipe)["out"]
    assert [len(generation.shards) for generation in made.generations] == [2, 1]
    tables = [ShardReader(world.store, shard).table for shard in made.shards]
    assert all({"width", "age"} <= set(table.column_names) for table in tables)


def test_rows_that_no_longer_count_do_not_under_their_new_keys(world: World) -> None:
    clips(world, 2)
    data = removed.encode({"000000001": Removed("changed", "000000000")})
    world.remove("clips", world.store.put_blob(data, "parquet"))
    world.grow("old", {}, {k: {"txt": b""} for k in keys(0, 2)})
    made = world.one("concat", {"day": "clips", "old": "old"}, prefix=True)
    (blob,) = made.removed
    assert isinstance(blob, Blob)
    rows = removed.decode(world.store.read_blob(blob.digest, "parquet"))
    assert rows == {"day-000000001": Removed("changed", "day-000000000")}
    gone = [key for key in world.samples(made) if source_key(key) in rows]
    assert gone == ["day-000000001"], "and not the other dataset's row of that key"


# Sample


def test_a_share_is_nested_in_larger_ones_and_says_why_others_went(world: World) -> None:
    clips(world, *[50] * 8)
    made = {s: world.one("sample", "clips", share=s, max_rejects="0%") for s in ("10%", "40%")}
    few, many = (set(world.samples(one)) for one in made.values())
    assert few < many
    assert 15 < len(few) < 70
    assert 110 < len(many) < 210
    reasons = world.rejects(made["10%"])
    assert len(reasons) == 400 - len(few)
    reason, message = next(iter(reasons.values()))
    assert reason == "not_sampled"
    assert message.endswith("of 1, is not below 0.1")
    other = set(world.samples(world.one("sample", "clips", share="10%", seed=1)))
    assert other != few
    whole = world.one("sample", "clips", share="100%")
    assert [s.tar for s in whole.shards] == [s.tar for s in world.given["clips"].shards]


def test_sources_stay_together(world: World) -> None:
    world.grow("clips", {}, {f"{k}_{n:03d}": {"t": b""} for k in keys(0, 40) for n in range(3)})
    made = world.samples(world.one("sample", "clips", share="50%", by="source"))
    counts = [sum(key.startswith(k) for key in made) for k in keys(0, 40)]
    assert set(counts) == {0, 3}
    alone = world.samples(world.one("sample", "clips", share="50%"))
    assert {sum(key.startswith(k) for key in alone) for k in keys(0, 40)} == {0, 1, 2, 3}


def test_a_count_is_of_each_generation_and_exact(world: World) -> None:
    clips(world, 30, 1, 40)
    first = world.one("sample", "clips", count=12)
    assert first.totals().samples == 12
    assert [shard.id for shard in first.shards] == ["00000", "00001", "00002"]
    assert set(world.samples(first)) < set(world.samples(world.one("sample", "clips", count=20)))
    assert world.one("sample", "clips", count=500).totals().samples == 71
    clips(world, 20)
    grown = world.one("sample", "clips", count=12)
    assert grown.generations[:1] == first.generations
    assert grown.totals().samples == 24
    assert world.made == ["sample/out/00003"]


def test_one_size_is_given(world: World) -> None:
    clips(world, 1)
    for params in ({}, {"share": "10%", "count": 3}):
        with pytest.raises(RecipeError, match="give share or count"):
            world.one("sample", "clips", **params)


# On an object store


def test_ranges_of_a_store_on_s3_give_the_same(tmp_path: Path, s3_url: str) -> None:
    made = []
    for world in (World(tmp_path), World(tmp_path, s3_url)):
        clips(world, 6, 6)
        shuffled = [*keys(0, 6), *keys(1, 6)]
        random.Random(2).shuffle(shuffled)
        captions(world, shuffled[:7], shuffled[7:], json_too=True)
        recipe: dict[str, Any] = {
            "some": {"stage": "filter", "from": "clips", "where": "width in [0, 2, 3, 5]"},
            "joined": {"stage": "join", "from": {"source": "some", "c": "captions"}, "by": "key"},
            "few": {"stage": "sample", "from": "joined", "count": 5},
            "all": {"stage": "concat", "from": {"a": "few", "b": "clips"}, "prefix": True},
        }
        versions = world.build(recipe)
        made.append(versions)
        assert len(world.samples(versions["joined"])) == 8
        assert len(world.samples(versions["all"])) == 17
    assert made[0] == made[1]


# Nothing at all


def test_shards_without_a_sample_go_through_everything(world: World) -> None:
    (world.folder / "own.py").write_text("def f(sample):\n    return {'x': 'y'}\n")
    clips(world, 2, 2)
    made = world.build(
        {
            "none": {"stage": "filter", "from": "clips", "where": "width > 99"},
            "mapped": {"stage": "map", "from": "none", "function": "own.py:f"},
            "asked": {"stage": "filter", "from": "none", "function": "own.py:f"},
            "joined": {"stage": "join", "from": {"source": "mapped", "other": "clips"}},
            "kept": {
                "stage": "join",
                "from": {"source": "clips", "other": "mapped"},
                "missing": "keep",
            },
            "share": {"stage": "sample", "from": "asked", "share": "50%"},
            "few": {"stage": "sample", "from": "share", "count": 3},
            "ends": {"stage": "concat", "from": ["few", "kept"]},
        }
    )
    assert world.problems == {}
    assert {name: one.totals().samples for name, one in made.items()} == {
        **dict.fromkeys(["none", "mapped", "asked", "joined", "share", "few"], 0),
        "kept": 4,
        "ends": 4,
    }
    assert [shard.id for shard in made["ends"].shards] == ["00000", "00001"]
