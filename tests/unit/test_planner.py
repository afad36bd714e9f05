from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelmill.digest import sha256
from reelmill.errors import RecipeError
from reelmill.store.model import Blob, Generation, History, Manifest, Result, Shard
from reelmill.tasks import get_stage
from reelmill.tasks.contract import Job, Output, Params, Slot, Stage, digests, key_params
from reelmill.tasks.download import DownloadParams
from reelmill.tasks.planner import Node, Planner, Todo
from reelmill.tasks.shuffle import ShuffleParams


class Narrow(Stage[Params]):
    name = "narrow"
    params = Params

    def make(self, job: Job[Params]) -> Iterator[Output]:
        raise NotImplementedError


class Second(Narrow):
    name = "second"
    roles = ("left", "right")


class Flaky(Narrow):
    name = "flaky"

    def may_pass(self, reason: str) -> bool:
        return reason == "timeout"


def blob(text: str) -> Blob:
    return Blob(digest=sha256(text.encode()), size=len(text))


def table(*generations: int, samples: int = 10) -> Manifest:
    numbers = iter(range(100_000))
    return Manifest(
        fields=(),
        generations=tuple(
            Generation(
                shards=tuple(
                    Shard(
                        id=f"{(n := next(numbers)):05d}",
                        tar=blob(f"tar {n}"),
                        index=blob(f"row {n}"),
                        samples=samples,
                        rejects=0,
                    )
                    for _ in range(count)
                )
            )
            for count in generations
        ),
    )


def made(todo: Todo, samples: int = 10, **more: object) -> Result:
    """A result that depends on the action alone, as every stage's does."""
    if todo.action.stage == "shuffle" and samples == 10:
        (data,) = todo.slot.documents.values()
        generation = Generation.model_validate_json(data)
        total = sum(shard.samples for shard in generation.shards)
        output, outputs = int(todo.slot.slot["output"]), int(todo.slot.slot["outputs"])
        samples = total * (output + 1) // outputs - total * output // outputs
    tar = blob(todo.action.key) if samples else None
    values = {"tar": tar, "index": blob(f"index of {todo.action.key}"), "rejects": 0, **more}
    return Result(samples=samples, fields=("mp4",), **values)


def nodes(*, samples_per_shard: int = 25) -> list[Node]:
    return [
        Node("videos", Narrow(), Params(), {"source": "urls"}),
        Node("clips", Narrow(), Params(), {"source": "videos"}),
        Node(
            "shuffled",
            get_stage("shuffle"),
            ShuffleParams(samples_per_shard=samples_per_shard),
            {"source": "clips"},
        ),
        Node("frames", Narrow(), Params(), {"source": "shuffled"}),
    ]


def finish(
    planner: Planner, pick: Callable[[list[Todo]], int] = lambda todos: 0
) -> tuple[list[Todo], dict[str, str]]:
    """Make everything, in an order of the caller's; all that was made, and the versions."""
    waiting, order, versions = planner.start(), [], {}
    while waiting:
        todo = waiting.pop(pick(waiting))
        order.append(todo)
        waiting += planner.done(todo, made(todo))
        versions |= {name: sha256(m.as_bytes()) for name, m, _ in planner.finished()}
    return order, versions


def test_a_chain_of_narrow_stages_has_no_barrier() -> None:
    planner = Planner(nodes(), {"urls": table(3)})
    first, *_ = planner.start()
    ready = planner.done(first, made(first))
    assert [todo.label for todo in ready] == [f"narrow/clips/{first.shard}"]


def test_a_shuffle_waits_for_its_whole_generation_and_for_no_other() -> None:
    planner = Planner(nodes(), {"urls": table(2, 2)})
    started = planner.start()
    waiting = [todo for todo in started if todo.generation == 0]
    seen = []
    while waiting:
        todo = waiting.pop(0)
        seen.append(todo)
        if todo.dataset == "shuffled":
            continue
        waiting += planner.done(todo, made(todo))
    assert [todo.label for todo in seen if todo.dataset == "shuffled"] == ["shuffle/shuffled/00000"]
    assert planner.expected()["shuffled"] is None


def test_shuffled_shards_of_later_generations_are_numbered_on() -> None:
    order, _ = finish(Planner(nodes(samples_per_shard=7), {"urls": table(2, 1)}))
    shuffled = {t.shard: t.generation for t in order if t.dataset == "shuffled"}
    assert shuffled == {"00000": 0, "00001": 0, "00002": 0, "00003": 1, "00004": 1}


class Looking(Narrow):
    name = "looking"
    scope = "history"


def looking() -> list[Node]:
    return [
        Node("videos", Narrow(), Params(), {"source": "urls"}),
        Node("unique", Looking(), Params(), {"source": "videos"}),
        Node("clips", Narrow(), Params(), {"source": "unique"}),
    ]


def test_a_stage_that_looks_back_waits_for_its_generation_and_all_before_it() -> None:
    planner = Planner(looking(), {"urls": table(1, 2, 1)})
    old, one, two, young = planner.start()
    assert planner.expected() == {"urls": 4, "videos": 4, "unique": 4, "clips": 4}
    assert planner.done(young, made(young)) == []
    assert planner.done(one, made(one)) == []
    assert [todo.shard for todo in planner.done(old, made(old))] == ["00000"]
    assert [todo.shard for todo in planner.done(two, made(two))] == ["00001", "00002", "00003"]


def test_what_lies_behind_a_stage_that_looks_back_is_named_by_one_digest() -> None:
    order, versions = finish(Planner(looking(), {"urls": table(1, 2, 1)}))
    assert set(versions) == {"videos", "unique", "clips"}
    for todo in order:
        if todo.dataset == "unique":
            assert set(todo.action.inputs) == {"source", "history"}
            digest = todo.action.inputs["history"]["generations"]
            documents = dict(todo.slot.documents)
            assert all(sha256(data) == name for name, data in documents.items())
            history = History.model_validate_json(documents.pop(str(digest)))
            found = [Generation.model_validate_json(documents[d]) for d in history.generations]
            ids = [[shard.id for shard in generation.shards] for generation in found]
            assert ids == [["00000"], ["00001", "00002"], ["00003"]][: todo.generation + 1]
            assert todo.slot.shards["source"] in found[-1].shards


@settings(max_examples=30)
@given(generations=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_a_stage_that_looks_back_plans_the_same_in_any_order_and_after_growth(
    generations: list[int], seed: int
) -> None:
    chance = random.Random(seed)
    order, versions = finish(
        Planner(looking(), {"urls": table(*generations)}),
        lambda todos: chance.randrange(len(todos)),
    )
    assert versions == finish(Planner(looking(), {"urls": table(*generations)}))[1]
    grown, _ = finish(Planner(looking(), {"urls": table(*generations, 1)}))
    new = {todo.label for todo in grown} - {todo.label for todo in order}
    assert len(new) == 3
    assert {t.action.key for t in order} == {t.action.key for t in grown if t.label not in new}


@settings(max_examples=30)
@given(
    generations=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_any_order_of_completion_gives_the_same_versions(
    generations: list[int], size: int, seed: int
) -> None:
    chance = random.Random(seed)
    _, in_order = finish(Planner(nodes(samples_per_shard=size), {"urls": table(*generations)}))
    order, shuffled = finish(
        Planner(nodes(samples_per_shard=size), {"urls": table(*generations)}),
        lambda todos: chance.randrange(len(todos)),
    )
    assert shuffled == in_order
    assert set(in_order) == {"videos", "clips", "shuffled", "frames"}
    assert len({todo.label for todo in order}) == len(order), "a shard was planned twice"


def test_growth_plans_the_same_actions_for_old_shards() -> None:
    before, _ = finish(Planner(nodes(), {"urls": table(3)}))
    after, _ = finish(Planner(nodes(), {"urls": table(3, 1)}))
    old = {todo.action.key for todo in before}
    new = [todo.label for todo in after if todo.action.key not in old]
    assert sorted(new) == [
        "narrow/clips/00003",
        "narrow/frames/00002",
        "narrow/videos/00003",
        "shuffle/shuffled/00002",
    ]


def test_equal_bytes_from_a_changed_producer_stop_the_change() -> None:
    class Newer(Narrow):
        version = 2

    def keys(stage: Stage[Params]) -> dict[str, str]:
        chain = nodes()
        chain[0] = Node("videos", stage, Params(), {"source": "urls"})
        planner = Planner(chain, {"urls": table(2)})
        waiting, found = planner.start(), {}
        while waiting:
            todo = waiting.pop(0)
            found[todo.label] = todo.action.key
            same = Result(samples=10, rejects=0, tar=blob(todo.label), index=blob(todo.label))
            waiting += planner.done(todo, same)
        return found

    old, new = keys(Narrow()), keys(Newer())
    changed = [label for label in old if old[label] != new[label]]
    assert changed == ["narrow/videos/00000", "narrow/videos/00001"]


def test_names_and_shard_ids_are_no_part_of_a_key() -> None:
    def first_key(name: str) -> str:
        node = Node(name, Narrow(), Params(), {"source": "urls"})
        return Planner([node], {"urls": table(1)}).start()[0].action.key

    assert first_key("videos") == first_key("films")


def test_parameters_that_change_no_byte_are_no_part_of_a_key() -> None:
    patient = DownloadParams(timeout=Decimal(900), attempts=9, concurrency=64, user_agent="x")
    assert key_params(patient) == key_params(DownloadParams())
    assert key_params(DownloadParams(max_bytes=5)) != key_params(DownloadParams())


def test_an_empty_shard_of_a_narrow_stage_still_gets_its_children() -> None:
    planner = Planner(nodes(), {"urls": table(1)})
    (first,) = planner.start()
    (child,) = planner.done(first, made(first, samples=0, rejects=10))
    assert child.label == "narrow/clips/00000"
    assert planner.done(child, made(child, samples=0)) == []
    assert planner.expected()["shuffled"] == 0
    names = [name for name, _, _ in planner.finished()]
    assert names == ["videos", "clips", "shuffled", "frames"]


def test_a_failed_shard_keeps_its_dataset_and_its_descendants_open() -> None:
    planner = Planner(nodes(), {"urls": table(2)})
    good, bad = planner.start()
    planner.failed(bad, "no luck")
    (child,) = planner.done(good, made(good))
    planner.done(child, made(child))
    assert list(planner.finished()) == []
    assert planner.problems() == {"videos": f"{bad.label}: no luck"}


def test_too_many_rejects_commit_no_version_and_name_the_reasons() -> None:
    node = Node("videos", Narrow(), Params(), {"source": "urls"}, max_rejects=Decimal("0.5"))
    planner = Planner([node], {"urls": table(1)})
    (todo,) = planner.start()
    planner.done(todo, made(todo, samples=4, rejects=6, reasons={"http_404": 5, "dns": 1}))
    assert list(planner.finished()) == []
    (problem,) = planner.problems().values()
    assert problem.startswith(
        "videos: 6 of 10 samples were rejected (http_404 5, dns 1), more than"
    )
    assert "(50%)" in problem


def test_rejects_that_were_tried_again_no_longer_count() -> None:
    node = Node("videos", Narrow(), Params(), {"source": "urls"}, max_rejects=Decimal("0.5"))
    for retried, is_refused in ((4, False), (0, True)):
        planner = Planner([node], {"urls": table(1, 1)}, {"urls": retried})
        first, again = planner.start()
        planner.done(first, made(first, samples=6, rejects=4))
        planner.done(again, made(again, samples=0, rejects=4))
        list(planner.finished())
        # 4 of 10 say no; or 8 of 14, if the 4 were others.
        assert bool(planner.problems()) is is_refused


def test_a_dataset_leaves_out_what_any_of_its_sources_does() -> None:
    one, other = (table(1).model_copy(update={"removed": (blob(name),)}) for name in "ab")
    both = [
        Node("left", Narrow(), Params(), {"source": "a"}),
        Node("right", Narrow(), Params(), {"source": "b"}),
        Node("joined", Second(), Params(), {"left": "left", "right": "right"}),
        Node("again", Second(), Params(), {"left": "left", "right": "joined"}),
    ]
    planner = Planner(both, {"a": one, "b": other})
    finish(planner)
    assert planner.manifest("left").removed == one.removed
    assert set(planner.manifest("joined").removed) == {*one.removed, *other.removed}
    assert planner.manifest("again").removed == planner.manifest("joined").removed


def test_only_rejects_that_may_pass_are_worth_another_try() -> None:
    def forgotten(reasons: dict[str, int]) -> list[str]:
        node = Node("videos", Flaky(), Params(), {"source": "urls"}, max_rejects=Decimal(0))
        planner = Planner([node], {"urls": table(1)})
        (todo,) = planner.start()
        planner.done(todo, made(todo, samples=9, rejects=1, reasons=reasons))
        list(planner.finished())
        return list(planner.passing())

    assert len(forgotten({"timeout": 1})) == 1
    assert forgotten({"http_404": 1}) == []


def test_samples_lost_in_a_shuffle_are_found() -> None:
    planner = Planner(nodes()[2:3], {"clips": table(2)})
    (todo,) = planner.start()
    planner.done(todo, made(todo, samples=19))
    assert list(planner.finished()) == []
    assert "20 samples in, 19" in planner.problems()["shuffled"]


def test_a_stage_of_two_roles_waits_for_both() -> None:
    chain = [
        Node("a", Narrow(), Params(), {"source": "urls"}),
        Node("b", Narrow(), Params(), {"source": "a"}),
        Node("c", Second(), Params(), {"left": "a", "right": "b"}),
    ]
    order, versions = finish(Planner(chain, {"urls": table(2)}))
    assert sorted(todo.label for todo in order if todo.dataset == "c") == [
        "second/c/00000",
        "second/c/00001",
    ]
    assert "c" in versions


def test_inputs_that_grew_differently_cannot_be_joined() -> None:
    node = Node("c", Second(), Params(), {"left": "x", "right": "y"})
    with pytest.raises(RecipeError, match="grew differently"):
        Planner([node], {"x": table(1), "y": table(1, 1)})


class Together(Narrow):
    """As a stage that puts datasets side by side: each input shard is one of its own."""

    name = "together"
    roles = ()
    open = True
    uneven = True
    scope = "generation"
    conserves = True

    def plan(self, params, inputs, first):  # type: ignore[no-untyped-def]
        taken = [shard for role in sorted(inputs) for shard in inputs[role]]
        return [
            Slot(f"{first + place:05d}", {"source": digests(shard)}, {"source": shard})
            for place, shard in enumerate(taken)
        ]


def test_rows_are_not_taken_for_samples_nor_samples_for_rows() -> None:
    rows = table(1).model_dump()
    rows["generations"][0]["shards"][0]["tar"] = None
    given = {"urls": Manifest.model_validate(rows), "clips": table(1)}
    node = Node("cuts", get_stage("split"), get_stage("split").params(), {"source": "urls"})
    with pytest.raises(RecipeError, match="cuts: stage split reads samples, and urls is a table"):
        Planner([node], given)
    node = Node("videos", get_stage("adopt"), get_stage("adopt").params(), {"source": "clips"})
    with pytest.raises(RecipeError, match="videos: stage adopt reads the rows of a table, and cl"):
        Planner([node], given)


def test_inputs_of_an_uneven_stage_give_what_they_have() -> None:
    node = Node("c", Together(), Params(), {"left": "x", "right": "y"})
    planner = Planner([node], {"x": table(1), "y": table(1, 2)})
    order, versions = finish(planner)
    assert [(t.shard, t.generation) for t in order] == [
        ("00000", 0),
        ("00001", 0),
        ("00002", 1),
        ("00003", 1),
    ]
    assert "c" in versions


class Merging(Together):
    name = "merging"
    roles = ("source",)
    open = False

    def merges(self, params: Params) -> int:
        return 2


@pytest.mark.parametrize(
    ("grown", "expected"), [((1,), [1]), ((1, 2), [3]), ((1, 2, 1, 2), [3, 1, 2])]
)
def test_a_stage_may_take_its_first_generations_for_one(
    grown: tuple[int, ...], expected: list[int]
) -> None:
    chain = [
        Node("a", Narrow(), Params(), {"source": "urls"}),
        Node("b", Merging(), Params(), {"source": "a"}),
        Node("c", Narrow(), Params(), {"source": "b"}),
    ]
    for pick in (lambda todos: 0, lambda todos: len(todos) - 1):
        planner = Planner(chain, {"urls": table(*grown)})
        finish(planner, pick)
        for name in "bc":
            sizes = [len(g.shards) for g in planner.manifest(name).generations]
            assert sizes == expected
    # What came first stays as it is when more comes.
    before = [s for g in planner.manifest("b").generations for s in g.shards]
    planner = Planner(chain, {"urls": table(*grown, 1)})
    finish(planner)
    after = [s for g in planner.manifest("b").generations for s in g.shards]
    assert len(grown) == 1 or after[: len(before)] == before


def test_rejects_that_were_asked_for_are_not_too_many() -> None:
    class Filter(Narrow):
        name = "filter"
        intended = frozenset({"filtered"})

    node = Node("few", Filter(), Params(), {"source": "urls"}, max_rejects=Decimal("0.5"))
    for torn, problem in ((0, None), (1, None), (2, "2 of 3 samples were rejected (torn 2)")):
        planner = Planner([node], {"urls": table(1)})
        (todo,) = planner.start()
        reasons = {"filtered": 7, "torn": torn}
        planner.done(todo, made(todo, samples=3 - torn, rejects=7 + torn, reasons=reasons))
        list(planner.finished())
        assert (problem or "") in planner.problems().get("few", "")
        assert bool(planner.problems()) is bool(problem)


def test_planning_ten_thousand_shards_is_linear_in_their_number() -> None:
    calls = 0

    class Counted(Narrow):
        def plan(self, params, inputs, first):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += sum(len(shards) for shards in inputs.values())
            return super().plan(params, inputs, first)

    chain = [
        Node("a", Counted(), Params(), {"source": "urls"}),
        Node("b", Counted(), Params(), {"source": "a"}),
    ]
    finish(Planner(chain, {"urls": table(10_000)}), lambda todos: len(todos) - 1)
    assert calls == 20_000


@settings(max_examples=60)
@given(st.data())
def test_shards_that_may_be_missing_are_missing_downstream_and_nothing_else_is(
    data: st.DataObject,
) -> None:
    generations = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    bad = data.draw(st.sets(st.integers(0, sum(generations) - 1)))
    chain = nodes()
    chain[0] = Node("videos", Narrow(), Params(), {"source": "urls"}, max_holes=Decimal(1))
    planner = Planner(chain, {"urls": table(*generations)})
    waiting, versions = planner.start(), {}
    while waiting:
        todo = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        if todo.dataset == "videos" and int(todo.shard) in bad:
            waiting += planner.failed(todo, "no luck")
        else:
            waiting += planner.done(todo, made(todo))
        versions |= {name: manifest for name, manifest, _ in planner.finished()}
    good = [f"{n:05d}" for n in range(sum(generations)) if n not in bad]
    if not good:
        assert versions == {}
        assert "could not be made" in planner.problems()["videos"]
        return
    assert [shard.id for shard in versions["videos"].shards] == good
    assert [shard.id for shard in versions["clips"].shards] == good
    assert versions["shuffled"].totals().samples == 10 * len(good)
    assert "frames" in versions
    assert list(planner.holes("videos")) == sorted(f"{n:05d}" for n in bad)
    assert planner.problems() == {}


def test_more_holes_than_allowed_commit_nothing_and_name_the_first() -> None:
    node = Node("videos", Narrow(), Params(), {"source": "urls"}, max_holes=Decimal("0.25"))
    for failures, problems in ((1, 0), (2, 1)):
        planner = Planner([node], {"urls": table(4)})
        todos = planner.start()
        for todo in todos[:failures]:
            planner.failed(todo, "no luck")
        for todo in todos[failures:]:
            planner.done(todo, made(todo))
        assert len(list(planner.finished())) == 1 - problems
        assert len(planner.problems()) == problems
    assert planner.problems()["videos"].startswith("narrow/videos/00000: no luck; 2 of 4 shards")


def test_what_a_stop_cut_off_is_no_hole() -> None:
    node = Node("videos", Narrow(), Params(), {"source": "urls"}, max_holes=Decimal(1))
    planner = Planner([node], {"urls": table(2)})
    good, cut = planner.start()
    planner.done(good, made(good))
    planner.failed(cut, "cancelled", may_be_hole=False)
    assert list(planner.finished()) == []
    assert planner.holes("videos") == {}


class Two(Narrow):
    name = "two"
    roles = ("left", "right")


def test_a_recipe_may_be_deep_and_full_of_diamonds() -> None:
    layers = 400
    deep = [Node("a0", Narrow(), Params(), {"source": "urls"})]
    deep.append(Node("b0", Narrow(), Params(), {"source": "urls"}))
    for n in range(1, layers):
        for name, other in ("ab", "ba"):
            parents = {"left": f"{name}{n - 1}", "right": f"{other}{n - 1}"}
            deep.append(Node(f"{name}{n}", Two(), Params(), parents))
    planner = Planner(deep, {"urls": table(1)})
    assert planner.start()
    assert set(planner.expected().values()) == {1}
    assert len(finish(Planner(deep, {"urls": table(1)}))[1]) == 2 * layers
    # One of the first fails: what derives from it, and that is all that follows, stays open.
    planner = Planner(deep, {"urls": table(1)})
    first, second = planner.start()
    planner.failed(first, "no")
    planner.done(second, made(second))
    assert [name for name, *_ in planner.finished()] == ["b0"]


def test_shards_that_hold_nothing_up_wake_a_long_chain() -> None:
    chain = [
        Node(
            f"d{n:03d}",
            Narrow(),
            Params(),
            {"source": f"d{n - 1:03d}" if n else "urls"},
            max_holes=Decimal(1),
        )
        for n in range(800)
    ]
    planner = Planner(chain, {"urls": table(1)})
    (first,) = planner.start()
    assert planner.failed(first, "no") == []
    assert list(planner.finished()) == []
    assert planner.problems()["d000"].endswith(
        "1 of 1 shards could not be made, and a version of none is none"
    )
