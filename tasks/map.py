"""Map: a user's function on every sample: what it returns is added to the sample, or stands for it.

A function is given a sample, with its key, its fields and its index columns, and returns a mapping
of fields and declared columns, a whole sample, or several of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
from pydantic import ConfigDict, Field, model_validator

from reelmill.errors import Rejected, ShardError
from reelmill.shards import tar
from reelmill.shards.reader import Sample as InputSample
from reelmill.shards.reader import ShardReader
from reelmill.store.model import Shard
from reelmill.tasks.contract import (
    Job,
    Output,
    Params,
    Reject,
    Sample,
    Slot,
    Stage,
    sample_json,
)
from reelmill.tasks.own import (
    Address,
    Arguments,
    Caller,
    Function,
    OnError,
    Patterns,
    carried,
    field_names,
    matching,
    typed,
    with_documents,
    wrong,
)
from reelmill.tasks.taken import taken

NO_RESULT: Final = "no_result"
"""Why a sample was left out for which the function returned nothing."""

_RIGHT: Final = "a function returns a mapping of fields, a Sample, or a list of either"


class MapParams(Params):
    """Which function, and what stays beside what it returns."""

    model_config = ConfigDict(serialize_by_alias=True)

    function: Address = Field(
        description="a function that is given a sample: module:function or ./file.py:function"
    )
    arguments: Arguments = Field(
        "{}", alias="with", description="arguments of the function by name, as JSON"
    )
    keep: Patterns = Field(
        ("*",),
        description="fields of the sample that stay beside those returned, by names or patterns",
    )
    on_error: OnError = Field(
        "fail", description="where the function fails: fail, or reject the sample"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> MapParams:
        self.function.refuse_arguments(self.arguments)
        return self

    def effective(self) -> dict[str, Any]:
        return {"keep": ("*",) if "*" in self.keep else tuple(sorted(set(self.keep)))}


class Map(Stage[MapParams]):
    """Shards keep their IDs. A function that gives columns alone leaves the tar as it is."""

    name = "map"
    params = MapParams
    order = "input"
    memory = 250_000_000

    def plan(
        self, params: MapParams, inputs: Mapping[str, Sequence[Shard]], first: int
    ) -> list[Slot]:
        return with_documents(super().plan(params, inputs, first), params.function)

    def tools(self, params: MapParams) -> dict[str, str]:
        return params.function.tools()

    def needs(self, params: MapParams) -> Mapping[str, float]:
        return params.function.needs()

    def memory_of(self, params: MapParams) -> int | None:
        return params.function.declared.memory or self.memory

    def schema(self, job: Job[MapParams]) -> pa.Schema:
        own = job.params.function.declared.arrow()
        return carried(job.reader("source").table.schema, own)

    def make(self, job: Job[MapParams]) -> Iterator[Output]:
        reader = job.reader("source")
        maker = _Maker(job.params, reader)
        if maker.describes:
            yield from _described(job, reader, maker)
            return
        for outputs in _results(job, reader, maker):
            yield from outputs


def _results(job: Job[MapParams], reader: ShardReader, maker: _Maker) -> Iterator[list[Output]]:
    """What each sample of a shard becomes."""
    function = job.params.function
    caller = Caller(
        function, function.ready(job.store, job.params.arguments), job.params.on_error, maker
    )
    total = job.shards["source"].samples
    for done, (sample, answer) in enumerate(caller.results(reader.samples(maker.wanted)), 1):
        if isinstance(answer, Reject):
            yield [replace(answer, columns=maker.carried(sample))]
        else:
            yield answer
        if job.watch is not None:
            job.watch(done, total)


def _described(job: Job[MapParams], reader: ShardReader, maker: _Maker) -> Iterator[Output]:
    """Samples that get columns, whose bytes stay as they lie."""
    staying: dict[str, Mapping[str, Any]] = {}
    rejects: list[Output] = []
    for (output,) in _results(job, reader, maker):
        if isinstance(output, Sample):
            staying[output.key] = output.columns
        else:
            rejects.append(output)
    yield from taken(job, "source", reader.rows(), staying)
    yield from rejects


class _Maker:
    """Makes samples of what a function returns.

    ``describes`` says that it returns columns alone, and all fields stay: then they are not read.
    """

    def __init__(self, params: MapParams, reader: ShardReader) -> None:
        names = field_names(reader.table)
        self._function: Function = params.function
        self._reads = matching(names, self._function.declared.reads)
        self._keeps = matching(names, params.keep)
        self._columns = self._function.declared.arrow()
        self.describes = self._function.declared.writes == () and self._keeps == names

    @property
    def wanted(self) -> set[str]:
        """The fields to read."""
        return self._reads if self.describes else self._reads | self._keeps

    def carried(self, sample: InputSample) -> dict[str, Any]:
        """The columns that a sample keeps."""
        return {n: v for n, v in sample.columns.items() if n not in self._columns.names}

    def __call__(self, sample: InputSample, result: Any) -> list[Output]:
        """The samples that a result stands for.

        Raises:
            Rejected: it is nothing.
            StageError: it is nothing that a function may return.
        """
        if result is None or (isinstance(result, list | tuple) and not result):
            raise Rejected(NO_RESULT, f"{self._function.name} returned nothing")
        if not isinstance(result, list | tuple):
            return [self._sample(sample, result, sample.key)]
        if self.describes:
            raise self._wrong(sample, "several", "with writes=() it gives columns alone")
        return [
            self._sample(sample, one, f"{sample.key}_{number:03d}")
            for number, one in enumerate(result)
        ]

    def _sample(self, sample: InputSample, result: Any, key: str) -> Sample:
        if isinstance(result, InputSample | Sample):
            return self._whole(sample, result, key)
        if not isinstance(result, Mapping):
            raise self._wrong(sample, typed(result), _RIGHT)
        columns = {n: v for n, v in result.items() if n in self._columns.names}
        fields = {n: v for n, v in result.items() if n not in columns}
        kept = {n: v for n, v in sample.fields.items() if n in self._keeps}
        return self._made(sample, key, {**kept, **self._fields(sample, fields)}, columns)

    def _whole(self, sample: InputSample, result: InputSample | Sample, key: str) -> Sample:
        """A sample that the function made itself. It may have chosen its key."""
        if result.key != sample.key:
            key = result.key
        if key != sample.key and not str(key).startswith(f"{sample.key}_"):
            right = "the key of what is made of a sample begins with that sample's, and _"
            raise self._wrong(sample, f"one with the key {key!r}", right)
        names = self._columns.names
        if not isinstance(result.fields, Mapping) or not isinstance(result.columns, Mapping):
            raise self._wrong(sample, "a sample whose fields or columns are no mapping", _RIGHT)
        if strays := result.columns.keys() - names - sample.columns.keys():
            raise self._wrong(sample, f"a column {min(strays)}", "columns are declared")
        columns = {n: v for n, v in result.columns.items() if n in names}
        return self._made(sample, key, self._fields(sample, result.fields), columns)

    def _made(
        self,
        sample: InputSample,
        key: str,
        fields: Mapping[str, bytes],
        columns: Mapping[str, Any],
    ) -> Sample:
        if self.describes and key != sample.key:
            raise self._wrong(sample, f"the key {key}", "with writes=() it gives columns alone")
        if not fields and not self.describes:
            raise self._wrong(sample, "no field", "with those that stay, a sample has at least one")
        own = {name: self._cell(sample, name, value) for name, value in columns.items()}
        return Sample(key, fields, {**self.carried(sample), **own})

    def _fields(self, sample: InputSample, fields: Mapping[str, Any]) -> dict[str, bytes]:
        allowed = self._function.declared.writes
        made = {}
        for name, value in fields.items():
            is_input = name in sample.fields and value is sample.fields[name]
            if not is_input and not matching([str(name)], allowed):
                raise self._wrong(sample, f"a field {name}", "it declares what it writes")
            try:
                tar.member_name(sample.key, name)
            except (ShardError, TypeError) as error:
                raise self._wrong(sample, f"a field {name!r}", str(error)) from None
            made[name] = self._bytes(sample, name, value)
        return made

    def _bytes(self, sample: InputSample, name: str, value: Any) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, bytearray | memoryview):
            return bytes(value)
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace")
        if isinstance(value, Mapping) and str(name).rpartition(".")[2] == "json":
            try:
                return sample_json(value)
            except (ValueError, TypeError, RecursionError) as error:
                what = f"json that is none ({error})"
                raise self._wrong(sample, what, "give JSON's types") from None
        right = "a field is bytes or text, and json may be a mapping; columns are declared"
        raise self._wrong(sample, f"{typed(value)} as {name}", right)

    def _cell(self, sample: InputSample, name: str, value: Any) -> Any:
        kind = self._columns.field(name).type
        plain = value.item() if hasattr(value, "item") and not isinstance(value, str) else value
        try:
            return pa.scalar(plain, kind).as_py()
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            what = f"{plain!r:.80} as column {name}"
            raise self._wrong(sample, what, f"it is declared as {kind}") from None

    def _wrong(self, sample: InputSample, what: str, right: str) -> Exception:
        return wrong(self._function, sample.key, what, right)
