"""A user's function as a stage's parameter, and its calls on the samples of a shard."""

from __future__ import annotations

import functools
import json
import re
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pyarrow as pa
from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from reelmill.digest import plain_json, sha256
from reelmill.errors import MissingDependencyError, Rejected, StageError
from reelmill.functions import (
    Called,
    Declared,
    FunctionError,
    called,
    declared_of,
    imported,
    load,
    locate,
    placed,
    refuse_arguments,
    source_digest,
)
from reelmill.recipe import BASE
from reelmill.shards import index
from reelmill.shards.reader import Sample as InputSample
from reelmill.store import Store
from reelmill.tasks.contract import Params, Reject, Runtime, Slot

FAILED: Final = "function_failed"
"""Why a sample was left out on which the function failed."""

NO_FIELD: Final = "no_field"
"""Why a sample was left out that lacks a field which the function reads."""

_setting_up = threading.Lock()

_REASON: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Function(Params):
    """A user's function as an action knows it: its name and the digest of its file's text, or,
    where it states a version or is in an installed module, its address.

    ``source`` names the blob of its file's text; a function of an installed module has none.
    """

    address: str
    name: str = ""
    source: str | None = None
    declared: Annotated[Declared, Runtime] = Declared()
    version: str | None = None

    _document: bytes | None = PrivateAttr(None)
    _target: Any = PrivateAttr(None)

    def effective(self) -> dict[str, Any]:
        if self.version is not None:
            return {"source": None}
        # Where a file is says nothing of what is in it.
        return {"version": None, ("address" if self.source else "source"): None}

    @model_validator(mode="wrap")
    @classmethod
    def _find(
        cls, given: Any, handler: ModelWrapValidatorHandler[Function], info: ValidationInfo
    ) -> Function:
        """In a recipe, the function at an address. On a worker, what the recipe's came to."""
        base = (info.context or {}).get(BASE)
        if base is None:
            return handler({"address": given} if isinstance(given, str) else given)
        asked = given
        if isinstance(given, Mapping):
            # What a form filled in, or what an action tells of the function it was made by.
            asked = given.get("address")
            if asked is None and "name" in given:
                raise ValueError(f"is in a file; say which, such as ./own.py:{given['name']}")
        try:
            found = locate(asked, Path(base))
        except FunctionError as error:
            raise ValueError(str(error)) from None
        declared = declared_of(found.target)
        made = handler(
            {
                "address": found.address,
                "name": found.name,
                "source": None if found.document is None else sha256(found.document),
                "declared": declared,
                "version": declared.version,
            }
        )
        made._document, made._target = found.document, found.target
        return made

    @property
    def file(self) -> str:
        """What errors call its file."""
        return Path(self.address.rpartition(":")[0]).name

    def refuse_arguments(self, arguments: str) -> None:
        """Raise ``ValueError`` if it cannot be called with these arguments; a worker trusts the
        recipe."""
        if self._target is not None:
            try:
                refuse_arguments(self._target, self.address, json.loads(arguments))
            except FunctionError as error:
                raise ValueError(str(error)) from None

    def documents(self) -> dict[str, bytes]:
        """What workers must have, by digest."""
        if self.source is None or self._document is None:
            return {}
        return {self.source: self._document}

    def tools(self) -> dict[str, str]:
        """What its results depend on beside its own file: declared packages, and the source of an
        installed module, which every worker has to have alike.

        Raises:
            MissingDependencyError: a package is not installed.
        """
        found = {name: _version(name, self.address) for name in self.declared.packages}
        if self.source is None and self.version is None and self.name:
            try:
                found[f"source of {self.address}"] = source_digest(self.address)
            except FunctionError as error:
                raise StageError(_here(error)) from error
        return found

    def needs(self) -> dict[str, float]:
        """Dask resources that a worker must have."""
        return {name: float(count) for name, count in self.declared.resources}

    def ready(self, store: Store, arguments: str) -> Called:
        """The function, set up once for this process.

        Raises:
            StageError: it cannot be loaded here, or set up.
        """
        try:
            # One thread at a time: the second finds what the first has set up.
            with _setting_up:
                return _ready(store, self, arguments)
        except FunctionError as error:
            raise StageError(_here(error)) from error


def _here(error: FunctionError) -> str:
    return f"{error} (on {socket.gethostname()})"


def _version(package: str, address: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise MissingDependencyError(
            f"{address} needs the package {package}; pip install {package}"
        ) from None


@functools.lru_cache(maxsize=4)
def _ready(store: Store, function: Function, arguments: str) -> Called:
    if function.source is None:
        target = imported(function.address)
    else:
        document = store.read_blob(function.source, "json")
        target = load(document, function.file, function.name)
    return called(target, json.loads(arguments))


def _arguments(given: Any) -> str:
    """Arguments as the canonical JSON that action keys hold; text that is JSON is taken for it."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise ValueError("must be a mapping, or one as JSON") from None
    if not isinstance(given, Mapping):
        raise ValueError("must be a mapping of arguments")
    try:
        return plain_json(given).decode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"holds what no JSON does: {error}") from None


def _patterns(given: Any) -> Any:
    """``true`` for all fields, ``false`` for none, or a list of names and patterns."""
    if isinstance(given, bool):
        return ["*"] if given else []
    return [given] if isinstance(given, str) else given


Address = Annotated[
    Function,
    WithJsonSchema({"type": "string", "examples": ["mymodule:score", "./own.py:score"]}),
]
Arguments = Annotated[str, BeforeValidator(_arguments)]
Patterns = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], BeforeValidator(_patterns)
]
"""Fields by name or pattern, such as ``*.image.jpg``."""

OnError = Literal["fail", "reject"]


def matching(names: Iterable[str], patterns: Sequence[str] | None) -> set[str]:
    """The names that one of the patterns fits; ``None`` fits all."""
    return {
        name for name in names if patterns is None or any(fnmatchcase(name, p) for p in patterns)
    }


def field_names(table: pa.Table) -> set[str]:
    """The names of all fields of an index's samples."""
    names = table["fields"].combine_chunks().flatten().field("name")
    return set(names.unique().to_pylist())


def with_documents(slots: Iterable[Slot], function: Function | None) -> list[Slot]:
    """Slots whose workers need a function's source."""
    documents = function.documents() if function else {}
    return [replace(slot, documents={**slot.documents, **documents}) for slot in slots]


Handle = Callable[[InputSample, Any], Any]
"""Makes a stage's answer of what the function returned for a sample. Raises ``Rejected``, or
``StageError`` for what it may not return."""


class Caller:
    """Calls a function on samples as it declares, and tells its failures apart.

    Args:
        handle: makes of a result what the stage wants.
    """

    def __init__(
        self, function: Function, ready: Called, on_error: OnError, handle: Handle
    ) -> None:
        self._function = function
        self._ready = ready
        self._on_error = on_error
        self._handle = handle

    def results(self, samples: Iterable[InputSample]) -> Iterator[tuple[InputSample, Any]]:
        """Each sample with the stage's answer, or with the ``Reject`` that became of it.

        Raises:
            StageError: the function failed, and failures are not to be rejected.
        """
        waiting: list[InputSample] = []
        for sample in samples:
            lacking = self._lacking(sample.fields)
            if lacking is not None:
                yield (
                    sample,
                    Reject(sample.key, NO_FIELD, f"has no field {lacking}", sample.columns),
                )
                continue
            waiting.append(sample)
            if len(waiting) == (self._function.declared.batch or 1):
                yield from self._of_batch(waiting)
                waiting = []
        if waiting:
            yield from self._of_batch(waiting)

    def _lacking(self, fields: Collection[str]) -> str | None:
        reads = self._function.declared.reads or ()
        return next((name for name in reads if not matching(fields, (name,))), None)

    def _of_batch(self, samples: list[InputSample]) -> Iterator[tuple[InputSample, Any]]:
        try:
            results = self._called(samples)
        except Rejected as rejected:
            results = [rejected] * len(samples) if len(samples) == 1 else self._alone(samples)
        except StageError:
            raise
        except (Exception, SystemExit) as error:
            if self._fails(error):
                raise StageError(self._told(error, samples)) from error
            if len(samples) > 1:
                results = self._alone(samples)
            else:
                results = [Rejected(FAILED, placed(error, self._ready.file))]
        for sample, result in zip(samples, results, strict=True):
            yield sample, self._answer(sample, result)

    def _alone(self, samples: list[InputSample]) -> list[Any]:
        """The results of a batch that failed as a whole, sample by sample."""
        results: list[Any] = []
        for sample in samples:
            try:
                results += self._called([sample])
            except Rejected as rejected:
                results.append(rejected)
            except StageError:
                raise
            except (Exception, SystemExit) as error:
                if self._fails(error):
                    raise StageError(self._told(error, [sample])) from error
                results.append(Rejected(FAILED, placed(error, self._ready.file)))
        return results

    def _called(self, samples: list[InputSample]) -> list[Any]:
        # Whatever a function does to what it is given, it gives what it returns and nothing else.
        given = [InputSample(one.key, {**one.fields}, deepcopy(one.columns)) for one in samples]
        if self._function.declared.batch is None:
            return [self._ready(given[0])]
        found = self._ready(given)
        if not isinstance(found, list | tuple) or len(found) != len(samples):
            count = len(found) if isinstance(found, list | tuple) else typed(found)
            raise StageError(
                f"{self._function.address} returned {count} for a batch of {len(samples)}; it "
                "returns a list with a result for each sample"
            )
        return list(found)

    def _fails(self, error: BaseException) -> bool:
        """Whether an error is the shard's. Memory that is short says nothing of a sample."""
        return self._on_error == "fail" or isinstance(error, MemoryError)

    def _answer(self, sample: InputSample, result: Any) -> Any:
        try:
            if isinstance(result, Rejected):
                raise result
            return self._handle(sample, result)
        except Rejected as rejected:
            if not _REASON.fullmatch(str(rejected.reason)):
                raise StageError(
                    f"{self._function.address} rejected sample {sample.key} for the reason "
                    f"{rejected.reason!r}; a reason is a word of a-z, 0-9 and _"
                ) from None
            return Reject(sample.key, str(rejected.reason), str(rejected.message), sample.columns)

    def _told(self, error: BaseException, samples: Sequence[InputSample]) -> str:
        keys = samples[0].key if len(samples) == 1 else f"{samples[0].key} to {samples[-1].key}"
        return f"{placed(error, self._ready.file)} (sample {keys})"


def typed(value: Any) -> str:
    """What a value is that it should not be."""
    return f"a value of type {type(value).__name__}"


def wrong(function: Function, key: str, what: str, right: str) -> StageError:
    """That a function returned what it may not."""
    return StageError(f"{function.address} returned {what} for sample {key}; {right}")


def carried(table: pa.Schema, own: pa.Schema) -> pa.Schema:
    """A function's own columns, and those of its input that they do not replace."""
    kept = (field for field in index.own_columns(table) if field.name not in own.names)
    return pa.schema([*kept, *own])
