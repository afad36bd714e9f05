"""``reelmill.load``: a dataset as torch's loaders read it, sample by sample, in a planned order."""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial as bound
from pathlib import Path
from typing import Any, Final, Self, get_args

from reelmill.dataset import Version, open_version
from reelmill.errors import LoadError, ReelmillError
from reelmill.loading.associate import Associate, Associator
from reelmill.loading.cache import ShardCache
from reelmill.loading.decoders import Spec, decoder
from reelmill.loading.loader import Loader, collate
from reelmill.loading.openers import Opener, ShardOpener
from reelmill.loading.plan import Even, Part, Reader, deal, deal_evenly, key_of, order_of
from reelmill.loading.random_access import RandomAccess, counts
from reelmill.loading.reading import Reading
from reelmill.loading.samples import shown
from reelmill.loading.select import Missing, Selection
from reelmill.loading.shuffle import Shuffle
from reelmill.loading.source import (
    OnError,
    Source,
    TarSource,
    Troubles,
    VersionSource,
)
from reelmill.loading.stages import (
    Batched,
    Each,
    Filter,
    Opaque,
    Pass,
    Shuffled,
    Sliced,
    Stage,
)
from reelmill.loading.tensors import torch_module
from reelmill.loading.told import agree, described
from reelmill.loading.torch_data import IterableDataset, get_worker_info
from reelmill.loading.trace import Trace, Tracer
from reelmill.store import Store

_STATE: Final = 1
_SPEC: Final = re.compile(r"[a-z][a-z0-9_-]*(@[A-Za-z0-9._-]+)?")


class Dataset(IterableDataset[Any]):  # type: ignore[misc]
    """Samples in a planned order, through the stages of a pipeline; made by :func:`load`.

    It is never changed: each method gives another dataset, with one more stage. What
    :func:`iter` gives is a :class:`Stream`, which can say where it stands and go on from there.
    Each iteration is of the next epoch, from 0; `set_epoch` says which it is to be, also to the
    workers of a loader, who otherwise begin where the dataset is in the process that made them.

    Samples have the fields ``__key__`` and ``__url__`` (of the tar), as webdataset's have, and
    ``__epoch__``: the epoch, and the passes that went before within it. What is drawn at random for
    a sample by the seed, its epoch and its key is the same however many workers there are.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int = 0,
        nodes: tuple[int, int] | None = None,
        even: Even | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        if even not in (None, *get_args(Even)):
            raise ValueError(f"even={even!r} is neither drop nor repeat")
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error={on_error!r} is neither raise nor skip")
        self.source = source
        self.seed = seed
        self.on_error = on_error
        self._nodes = nodes
        self._even = even
        # Before there are workers, each of which would count.
        self._counts = None if even is None else counts(source)
        self._tracer = Tracer(source)
        self._order = False
        self._shuffles: tuple[Shuffle, ...] = ()
        self._stages: tuple[Stage, ...] = ()
        self._passes: int | None = 1
        self._items: int | None = None
        self._length: int | None = None
        self._is_told = False
        self._turns = _Turns(0)

    def _but(self, **changes: Any) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **changes)
        made._turns = _Turns(self._turns.base)
        return made

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned knows nothing of the process group of who spawned it.
        return {**self.__dict__, "_nodes": self.nodes, "_tracer": Tracer(self.source)}

    def __repr__(self) -> str:
        first = [f"shards={self._order}"] if self._order else []
        first += [Shuffled(one).label for one in self._shuffles]
        return " | ".join([f"Dataset({self.source})", *first, *(one.label for one in self._stages)])

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("how long a pipeline is depends on its stages; say it by with_length()")
        return self._length

    # Order

    def shuffle(self, size: int, *, initial: int | None = None, shards: bool = True) -> Self:
        """What comes so far, in a random order, another in each epoch, decided by the seed.

        Right behind the source (before any stage that looks at samples) shards are shuffled, too,
        and what waits in the buffer is places of samples, unless the dataset is of tars without
        an index. Elsewhere the buffer holds what the stages before made.

        Args:
            size: of the buffer, in samples. A larger one mixes better. 0 shuffles shards only.
            initial: when the first is picked; by default the buffer is full then, or, where what
                waits has been read or made, has 100.
            shards: whether shards are shuffled.
        """
        buffers = (Shuffle(size, initial),) if size else ()
        if self._stages:
            return self._with(*map(Shuffled, buffers))
        return self._but(
            _order=self._order or shards,
            _shuffles=(*self._shuffles, *buffers),
        )

    def with_epoch(self, items: int) -> Self:
        """Epochs of so many items for each reader, by as many passes as that takes."""
        if items < 1:
            raise ValueError("an epoch has 1 item or more")
        return self._but(_items=items, _passes=None)

    def repeat(self, passes: int | None = None) -> Self:
        """So many passes in one epoch, each in another order; without end if ``None``."""
        return self._but(_passes=passes)

    def with_length(self, length: int) -> Self:
        """What ``len`` gives, for those who ask; nothing else changes."""
        return self._but(_length=length)

    # Stages, which are webdataset's

    def map(
        self, function: Callable[[Any], Any], *, handler: Callable[..., bool] | None = None
    ) -> Self:
        """``function`` of each sample; what it gives ``None`` for is left out. The sample's key
        stays with a dict."""
        return self._each("map", described(function), function, handler=handler)

    def decode(self, *specs: Spec, only: str | Collection[str] | None = None) -> Self:
        """Fields decoded by their names: see :func:`~reelmill.loading.decoders.decoder`."""
        label = ", ".join(one if isinstance(one, str) else described(one) for one in specs)
        chosen = f", only={described(only)}" if only is not None else ""
        return self._each("map", f"decode: {label}{chosen}", decoder(*specs, only=only).sample)

    def associate(
        self,
        source: Associator | Dataset | str,
        *,
        store: Store | str | None = None,
        **options: Any,
    ) -> Self:
        """More fields for each sample: see :class:`~reelmill.loading.associate.Associate`, which
        takes the ``options``.

        Args:
            source: a dict, a function, a version or its name, or a dataset of one, of which nothing
                but the version and the choice of fields counts.
            store: where the version of that name is; by default where this dataset is.
        """
        mine = self.source if isinstance(self.source, VersionSource) else None
        if isinstance(source, Dataset):
            if not isinstance(source.source, VersionSource):
                raise LoadError("of tars without an index no sample can be looked up: give a dict")
            options.setdefault("fields", source.source.fields)
            source = source.source.version
        if isinstance(source, str):
            place = store or (mine.version.store if mine else None)
            if place is None:
                raise LoadError(f"{source!r} is a version's name: say in which store=… it is")
            source = open_version(place, source)
        if mine is not None:
            options.setdefault("shard", bound(_shard_id, mine))
        named = str(source) if isinstance(source, Version) else described(source)
        told = [f"{name}={described(one)}" for name, one in options.items() if name != "shard"]
        label = ", ".join(told)
        return self._each("map", f"associate: {named}, {label}", Associate(source, **options))

    def map_dict(
        self, *, handler: Callable[..., bool] | None = None, **functions: Callable[[Any], Any]
    ) -> Self:
        """Functions of single fields, by the fields' names."""
        label = ", ".join(f"{name}={described(one)}" for name, one in functions.items())
        return self._each("map_dict", label, handler=handler, **functions)

    def map_tuple(
        self,
        *functions: Callable[[Any], Any] | None,
        handler: Callable[..., bool] | None = None,
    ) -> Self:
        """Functions of the values of tuples, by their places; ``None`` leaves one as it is."""
        label = ", ".join(map(described, functions))
        return self._each("map_tuple", label, *functions, handler=handler)

    def to_tuple(self, *fields: str, missing: Missing = "error") -> Self:
        """Tuples of fields; of ``"jpg;png"`` the first that a sample has: see `Selection`."""
        selection = Selection(*fields, missing=missing)
        return self._each("map", f"to_tuple: {selection}", selection.values)

    def select(self, *what: str | Callable[[Any], bool], missing: Missing = "error") -> Self:
        """Samples with some of their fields, as ``"jpg;png cls"``; or, given a function, those
        samples of which it is true."""
        if len(what) == 1 and callable(what[0]):
            return self._each("select", described(what[0]), what[0])
        selection = Selection(*map(str, what), missing=missing)
        return self._each("map", f"select: {selection}", selection.sample)

    def rename(self, *, keep: bool = True, **names: str) -> Self:
        """Fields under other names, as ``new="old"``."""
        label = ", ".join(f"{new}={old}" for new, old in names.items())
        return self._each("rename", f"{label}, keep={keep}", keep=keep, **names)

    def flat_map(self, function: Callable[[Any], Iterator[Any]]) -> Self:
        """All that ``function`` gives of each sample, which may be anything from nothing to many:
        the clips of a video."""
        made = bound(_flattened, function)
        # It may give one thing several times, and change it in between.
        return self._with(Each(f"flat_map({described(function)})", made, looks_ahead=False))

    def unbatched(self) -> Self:
        """The samples of batches."""
        return self._each("unbatched", "")

    def unlisted(self) -> Self:
        """The items of lists."""
        return self._each("unlisted", "")

    def batched(
        self,
        size: int,
        collation_fn: Callable[[list[Any]], Any] | None = None,
        *,
        partial: bool = True,
    ) -> Self:
        """Batches of so many samples, put together as webdataset does by default.

        Args:
            partial: whether the last batch of an epoch may be smaller.
        """
        from webdataset.filters import default_collation_fn

        return self._with(Batched(size, collation_fn or default_collation_fn, partial))

    def listed(self, size: int, *, partial: bool = True) -> Self:
        """Lists of so many samples."""
        return self._with(Batched(size, None, partial))

    def slice(self, *bounds: int | None) -> Self:
        """Some items by their numbers in a pass of a reader: what ``range`` would take."""
        made = slice(*bounds)
        start, stop, step = made.start or 0, made.stop, made.step or 1
        if start < 0 or (stop is not None and stop < 0) or step < 1:
            raise ValueError("a slice counts from the beginning, forwards")
        return self._with(Sliced(start, stop, step))

    def compose(self, *filters: Filter) -> Self:
        """Anybody's generators of things from things, such as webdataset's filters.

        Nothing is known of what these hold, so that a resumed iteration does all again up to where
        it stood, and gives nothing out meanwhile.
        """
        return self._with(*(Opaque(f"compose({described(one)})", one) for one in filters))

    def _each(self, name: str, label: str, *args: Any, **options: Any) -> Self:
        from webdataset import filters

        if options.get("handler", ...) is None:
            del options["handler"]
        if "handler" in options:
            label = f"{label}, handler={described(options['handler'])}"
        made: Filter = getattr(filters, name)(*args, **options)
        return self._with(Each(f"{name}({label})", made))

    def _with(self, *stages: Stage) -> Self:
        return self._but(_stages=(*self._stages, *stages))

    # Iteration

    def loader(
        self,
        batch_size: int | None = None,
        num_workers: int = 0,
        *,
        collation_fn: Callable[[list[Any]], Any] = collate,
        drop_last: bool = False,
        **options: Any,
    ) -> Loader:
        """Batches from worker processes, which can be resumed in the middle.

        Args:
            batch_size: samples in a batch, which are put together by ``collation_fn``; by default
                items are given as they are.
            num_workers: processes that read; 0 is this one.
            drop_last: leave out each worker's last batch if it is smaller.
            options: what else torchdata's ``StatefulDataLoader`` takes.
        """
        if batch_size is None:
            return Loader(self, num_workers=num_workers, **options)
        batches = self.batched(batch_size, collation_fn, partial=not drop_last)
        return Loader(batches, num_workers=num_workers, **options)

    def __iter__(self) -> Stream:
        if get_worker_info() is not None and not gc.get_freeze_count():
            # What a worker has from who started it stays shared with it: the collector of garbage
            # would write to all of it, and have it copied. Not what it made since, in epochs that
            # went before.
            gc.freeze()
        return Stream(self, self.reader(), self._turns.take())

    def random_access(self) -> RandomAccess:
        """The same samples by number and key, through the same stages, which must make one thing of
        each sample. Order and batches are the business of torch's samplers and loaders.

        How many samples there are is looked up at once: tars without an index must be files in
        which one can seek, and their headers are read.

        Raises:
            LoadError: a stage is of another kind, or a tar cannot be looked through.
        """
        if self._shuffles or self._order:
            raise LoadError("a dataset with random access has no order: leave shuffle() out")
        return RandomAccess(self.source, self._stages)

    def trace(self, what: Any) -> list[Trace]:
        """Where samples come from: shard, version, and the address their video was downloaded from.

        Args:
            what: a sample, a batch that has ``__key__`` (and better ``__url__``, too), or keys.

        Raises:
            LoadError: there are no keys in it.
            KeyError: there is no such sample.
        """
        return self._tracer.trace(what)

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration be of this epoch, here and in the workers of a loader."""
        self._turns.set(epoch)

    def resumed(self, epoch: int) -> None:
        """Said by a stream that went on within an epoch: the next iteration is of the next one."""
        self._turns.go_on(epoch + 1)

    @property
    def nodes(self) -> tuple[int, int]:
        """The number of this node and how many there are: as given; those of torch's process group;
        or by ``RANK`` and ``WORLD_SIZE``.

        Raises:
            LoadError: these tell of no node.
        """
        if self._nodes is not None:
            return self._nodes
        group = torch_module().distributed
        if group.is_available() and group.is_initialized():
            return group.get_rank(), group.get_world_size()
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            reader = Reader(int(rank), int(world))
        except ValueError:
            raise LoadError(
                f"RANK={rank} and WORLD_SIZE={world} tell of no node, the first of which is 0: set "
                "both as they are, or say nodes=(number, count)"
            ) from None
        return reader.rank, reader.world

    def reader(self) -> Reader:
        """Which of the readers this process is."""
        rank, world = self.nodes
        info = get_worker_info()
        reader = Reader(rank, world, info.id, info.num_workers) if info else Reader(rank, world)
        if not self._is_told and reader.number == 0:
            self._tell(reader)
        return reader

    def for_workers(self, workers: int) -> Self:
        """The same, for so many workers; warns now, once for all of them, if shards are fewer."""
        rank, world = self.nodes
        if not self._is_told and rank == 0:
            self._tell(Reader(rank, world, 0, max(1, workers)))
        return self._but(_is_told=True)

    def _tell(self, reader: Reader) -> None:
        if self._counts is None and self.source.shards < reader.count:
            warnings.warn(self._shared_out(reader), stacklevel=4)

    def _shared_out(self, reader: Reader) -> str:
        count = self.source.shards
        return (
            f"{self.source} has {count} shard{'' if count == 1 else 's'} for {reader.count} readers"
            f" ({reader.world} node{'' if reader.world == 1 else 's'} with {reader.workers} worker"
            f"{'' if reader.workers == 1 else 's'} each): shards are shared, each sample goes to "
            "one reader"
            + ("" if self.source.counted else ", and every reader of a shard reads through it")
            + f"; have {count // reader.world or 1} workers, or smaller shards, for whole ones"
        )

    def parts(self, reader: Reader, epoch: int, number: int = 0) -> list[Part]:
        """What a reader takes in a pass of an epoch, in its order."""
        shards = self.source.shards
        key = key_of(self.seed, epoch, number)
        order = order_of(shards, key) if self._order else range(shards)
        if self._even is None or self._counts is None:
            return deal(order, reader)
        return deal_evenly(order, self._counts, reader, self._even)

    def begin(self, reader: Reader, epoch: int, number: int, troubles: Troubles) -> Pass:
        """A pass of an epoch, at its beginning."""
        key = key_of(self.seed, epoch, number, reader.number)
        parts = self.parts(reader, epoch, number)
        marks = {"__epoch__": epoch + number}
        reading = Reading(self.source, parts, self._shuffles, key, troubles, marks)
        return Pass(reading, self._stages, key, troubles)

    @property
    def passes(self) -> int | None:
        """Passes in an epoch, at most; ``None`` is without end."""
        return self._passes

    @property
    def items(self) -> int | None:
        """Items in an epoch of one reader, at most."""
        return self._items

    def terms(self, reader: Reader) -> dict[str, Any]:
        """What a state must agree in with who goes on from it, as plain data."""
        shuffles = ", ".join(f"{one.size}/{one.initial}" for one in self._shuffles)
        return {
            "dataset": self.source.identity,
            "seed": self.seed,
            "reader": [reader.rank, reader.world, reader.worker, reader.workers],
            "order": f"shards {self._order}, shuffle {shuffles or None}, even {self._even}, "
            f"passes {self._passes}, items {self._items}",
            "stages": [stage.label for stage in self._stages],
        }


class Stream(Iterator[Any]):
    """One epoch of a dataset in one process; it can say where it stands."""

    def __init__(self, dataset: Dataset, reader: Reader, epoch: int) -> None:
        self._dataset = dataset
        self._reader = reader
        self._terms = dataset.terms(reader)
        self.troubles = Troubles(dataset.on_error)
        self.epoch = epoch
        self._number = 0
        self._given = 0
        self._ended = False
        self._begin()

    def _begin(self) -> None:
        self._pass = self._dataset.begin(self._reader, self.epoch, self._number, self.troubles)
        self._values = self._pass.run()
        self._is_empty = True

    def __next__(self) -> Any:
        while not self._ended:
            if self._given == self._dataset.items:
                self._ended = True
                break
            for value in self._values:
                self._given += 1
                self._is_empty = False
                return value
            self._number += 1
            # Of nothing there is no end of passes.
            if self._is_empty or self._number == self._dataset.passes:
                self._ended = True
            else:
                self._begin()
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain data that JSON can hold; to be asked between two items."""
        return {
            "format": _STATE,
            **self._terms,
            "epoch": self.epoch,
            "pass": self._number,
            "given": self._given,
            "is_empty": self._is_empty,
            "ended": self._ended,
            "at": None if self._ended else self._pass.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where another stream stood, to give what that had yet to give, in the same order.

        Raises:
            LoadError: that was a stream of something else, or of another reader.
        """
        if state.get("format") != _STATE:
            raise LoadError("this is no state of a stream of this version of Reelmill")
        agree(state, self._terms)
        self.epoch, self._number = state["epoch"], state["pass"]
        self._ended = state["ended"]
        if not self._ended:
            self._begin()
            self._pass.restore(state["at"])
            self._values = self._pass.run()
        self._given, self._is_empty = state["given"], state["is_empty"]
        self._dataset.resumed(self.epoch)


class _Turns:
    """Which epoch the next iteration is of. What `set` says is shared with the workers of a loader,
    whenever they were started; each process then counts its own iterations."""

    def __init__(self, base: int) -> None:
        self._said = torch_module().tensor([base, 0]).share_memory_()
        self._heard = 0
        self._next = base

    @property
    def base(self) -> int:
        return int(self._said[0])

    def set(self, epoch: int) -> None:
        self._said[0] = epoch
        self._said[1] += 1

    def go_on(self, epoch: int) -> None:
        self._heard, self._next = int(self._said[1]), epoch

    def take(self) -> int:
        base, said = self._said.tolist()
        if said != self._heard:
            self._heard, self._next = said, base
        self._next += 1
        return self._next - 1


def _flattened(function: Callable[[Any], Iterator[Any]], things: Iterator[Any]) -> Iterator[Any]:
    for thing in things:
        yield from function(thing)


def _shard_id(source: VersionSource, sample: Mapping[str, Any]) -> str:
    """The ID of the shard that a sample of a source lies in."""
    return source.listed[source.shard_at(sample["__url__"])].id


def load(
    what: str | Path | Version | Sequence[str],
    store: Store | str | None = None,
    *,
    fields: str | Collection[str] | None = None,
    seed: int = 0,
    nodes: tuple[int, int] | None = None,
    even: Even | None = None,
    on_error: OnError = "raise",
    opener: Opener | Mapping[str, Opener] | None = None,
    cache: ShardCache | str | Path | None = None,
) -> Dataset:
    """Load a dataset for training.

    Args:
        what: a version, as such or by its name (``clips@latest``) in ``store``; or addresses of
            tars: one with braces (``https://host/clips/{000000..000009}.tar``), or a list.
        fields: those to read, in a list or as ``"mp4 json"``; all by default.
        seed: decides all that is random.
        nodes: the number of this node and how many there are, if neither torch's process group nor
            ``RANK`` and ``WORLD_SIZE`` tell.
        even: have all readers get equally many samples: ``drop`` leaves out the last few of an
            epoch, ``repeat`` gives some twice. It needs to know how many samples shards have: tars
            without an index are read through for that, once.
        on_error: ``skip`` leaves out samples and shards that cannot be had, counts and warns.
        opener: opens addresses of tars, as a binary file, or such functions by the scheme of the
            address: see :class:`~reelmill.loading.openers.ShardOpener`.
        cache: a folder of this machine where tars of others are kept, or a `ShardCache`, which can
            have a bound.

    Raises:
        NotFoundError: there is no such version.
        ReelmillError: it has no samples, or no such field; an address cannot be understood.
        TypeError: ``what`` is nothing of this.
        ValueError: ``even`` or ``on_error`` is none of these.
    """
    wanted = fields.split() if isinstance(fields, str) else fields
    source = _source(what, store, wanted, opener, ShardCache.at(cache))
    return Dataset(source, seed=seed, nodes=nodes, even=even, on_error=on_error)


def _source(
    what: str | Path | Version | Sequence[str],
    store: Store | str | None,
    fields: Collection[str] | None,
    opener: Opener | Mapping[str, Opener] | None,
    cache: ShardCache | None,
) -> Source:
    if isinstance(what, str) and store is not None:
        what, store = open_version(store, what), None
    if store is not None:
        raise ReelmillError("store= is where a version is looked up by its name: leave it out")
    if isinstance(what, Version):
        if opener is not None:
            raise ReelmillError("the tars of a version are read by its store: leave opener out")
        return VersionSource(what, fields, cache)
    if isinstance(opener, ShardOpener):
        if cache is not None:
            raise ReelmillError("a ShardOpener has its own cache: give it the cache")
    else:
        opener = ShardOpener(opener, cache=cache)
    if isinstance(what, str) and _SPEC.fullmatch(what) and not what.endswith(".tar"):
        raise ReelmillError(f"{what!r} is a version's name: say in which store=… it is")
    return TarSource(_addresses(what), fields, opener)


def _addresses(what: str | Path | Sequence[str]) -> list[str]:
    if isinstance(what, str):
        from webdataset.shardlists import expand_urls

        try:
            return [url for url in expand_urls(what) if url]
        except ValueError:
            raise LoadError(f"{shown(what)}: its braces do not fit each other") from None
    if isinstance(what, Path):
        return [str(what)]
    if isinstance(what, Sequence) and all(isinstance(one, str | Path) for one in what):
        return [str(one) for one in what]
    raise TypeError(
        f"{type(what).__name__} is nothing to load: give a version, its name with store=…, or the "
        "addresses of tars as a pattern or a list of texts"
    )
