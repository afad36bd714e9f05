"""Saving what was derived: one more dataset in a recipe that makes the same again."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelmill.dataset import Version, open_version
from reelmill.errors import RecipeError, ReelmillError
from reelmill.flows.derivation import MAX_HOLES, MAX_REJECTS, Asked
from reelmill.recipe import Pinned, Recipe, parse_recipe, read_overrides
from reelmill.recipe_text import append
from reelmill.store import Store
from reelmill.tasks import Stages
from reelmill.tasks.contract import Params, key_params
from reelmill.tasks.ingest import Source


@dataclass(frozen=True)
class Saving:
    """A dataset that a recipe gets, since it was derived from versions of the recipe's store."""

    path: Path
    asked: Asked
    store: Store

    def text(self) -> str | None:
        """The recipe's text with the dataset in it; ``None`` if it has it already.

        Raises:
            RecipeError: the recipe has another store, something of that name, or a form in which
                nothing can be put.
        """
        if self.path.suffix == ".py":
            raise RecipeError(
                f"{self.path} is a Python file, in which --save does not write; add this to its "
                f"datasets: {self.asked.name!r}: {self._entry(self._plain_inputs())!r}"
            )
        before = _read(self.path)
        recipe = self._parse(before)
        self._refuse_other_store(recipe)
        inputs, pins = self._wired(recipe)
        name = self.asked.name
        derived = self.asked.recipe(self.store.url).datasets[name]
        if (held := recipe.datasets.get(name)) is not None and not pins:
            wired = derived.model_copy(update={"inputs": inputs})
            if (held.stage, held.inputs) == (wired.stage, wired.inputs) and _means(
                held.params
            ) == _means(wired.params):
                return None
        if name in recipe.datasets or name in recipe.sources:
            raise RecipeError(
                f"{self.path} has a {'dataset' if held else 'source'} {name} already; give the new "
                "dataset another name"
            )
        written = self._entry(self._from(inputs))
        try:
            after = before
            for source, version in pins.items():
                after = append(after, "sources", source, {"version": version}, file=str(self.path))
            after = append(after, "datasets", name, written, file=str(self.path))
            same = self._is_same(recipe, self._parse(after), inputs, pins)
        except RecipeError:
            same = False
        if not same:
            raise RecipeError(
                f"{self.path} is laid out in a way in which --save cannot put a dataset; add it by "
                f"hand: {name}: {written}"
            )
        return after

    def addition(self) -> str | None:
        """The lines that the recipe would get; ``None`` if it has the dataset already.

        Raises:
            RecipeError: as ``text``.
        """
        text = self.text()
        if text is None:
            return None
        lines = difflib.ndiff(_read(self.path).splitlines(), text.splitlines())
        return "\n".join(line[2:] for line in lines if line.startswith("+ "))

    def write(self) -> bool:
        """Append the dataset to the file, at once or not at all; whether it was not in it.

        Of several that append to one file at the same time, each finds what the others wrote.
        """
        target = self.path.resolve()
        try:
            with _alone_in(target.parent):
                text = self.text()
                if text is None:
                    return False
                if not os.access(target, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                _replace(target, text)
        except OSError as error:
            raise RecipeError(f"{self.path}: cannot be written: {error.strerror}") from None
        return True

    def _parse(self, text: str) -> Recipe:
        return parse_recipe(
            text,
            stages=Stages(),
            source_model=Source,
            name=str(self.path),
            base=self.path.parent,
        )

    def _refuse_other_store(self, recipe: Recipe) -> None:
        try:
            url = Store.open(recipe.store).url
        except ReelmillError:
            url = recipe.store
        if url != self.store.url and os.path.realpath(url) != os.path.realpath(self.store.url):
            raise RecipeError(
                f"{self.path} is for the store {url}, and the dataset is derived in "
                f"{self.store.url}; choose another recipe with --recipe"
            )

    def _wired(self, recipe: Recipe) -> tuple[dict[str, str], dict[str, str]]:
        """By role, the recipe's own name of each parent; and versions to pin, by new names."""
        derived = self.asked.recipe(self.store.url)
        inputs: dict[str, str] = {}
        pins: dict[str, str] = {}
        for role, source in derived.datasets[self.asked.name].inputs.items():
            pinned = derived.sources[source]
            assert isinstance(pinned, Pinned)
            version = open_version(self.store, pinned.version)
            inputs[role] = self._own(recipe, version) or _pin(recipe, version, pins)
        return inputs, pins

    def _own(self, recipe: Recipe, version: Version) -> str | None:
        """What a recipe calls a version: its dataset whose latest one it is, or a pinned source."""
        dataset = recipe.datasets.get(version.name)
        if dataset is not None and dataset.stage == version.ref.stage:
            latest = self.store.latest(version.name)
            if latest is not None and latest.version == version.digest:
                return version.name
        for name, source in recipe.sources.items():
            if isinstance(source, Pinned):
                try:
                    held = open_version(self.store, source.version)
                except ReelmillError:
                    continue
                if (held.name, held.digest) == (version.name, version.digest):
                    return name
        return None

    def _from(self, inputs: Mapping[str, str]) -> Any:
        """What to write after ``from``: in the short form where that was enough."""
        stage = Stages()[self.asked.stage]
        needed = [role for role in stage.roles if role not in stage.optional]
        if list(inputs) == needed and len(needed) == 1 and not stage.open:
            return inputs[needed[0]]
        if not stage.roles and all(role == name for role, name in inputs.items()):
            return list(inputs)
        return dict(inputs)

    def _plain_inputs(self) -> Any:
        derived = self.asked.recipe(self.store.url)
        return self._from(derived.datasets[self.asked.name].inputs)

    def _entry(self, inputs: Any) -> dict[str, Any]:
        asked = self.asked
        shares = {
            "max_rejects": asked.max_rejects if asked.max_rejects != MAX_REJECTS else None,
            "max_holes": asked.max_holes if asked.max_holes != MAX_HOLES else None,
        }
        return {
            "stage": asked.stage,
            "from": inputs,
            **read_overrides(asked.overrides),
            **{key: f"{share:%}" for key, share in shares.items() if share is not None},
        }

    def _is_same(
        self,
        before: Recipe,
        after: Recipe,
        inputs: Mapping[str, str],
        pins: Mapping[str, str],
    ) -> bool:
        """Whether a recipe means what it did, and the dataset besides."""
        name = self.asked.name
        derived = self.asked.recipe(self.store.url).datasets[name]
        new = after.datasets.get(name)
        old = after.model_copy(
            update={
                "datasets": {n: d for n, d in after.datasets.items() if n != name},
                "sources": {n: s for n, s in after.sources.items() if n not in pins},
            }
        )
        return (
            old == before
            and new is not None
            and new.inputs == inputs
            and _means(new.params) == _means(derived.params)
        )


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until nobody else saves in a folder: a file itself is another one after each time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(target: Path, text: str) -> None:
    mode = target.stat().st_mode
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).chmod(mode & 0o7777)
        Path(scratch).replace(target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text") from None


def _pin(recipe: Recipe, version: Version, pins: dict[str, str]) -> str:
    """Pin a version under a name that is free."""
    taken = {*recipe.sources, *recipe.datasets}
    for name in (version.name, f"{version.name}-{version.digest[:8]}"[-63:]):
        if pins.get(name, str(version)) == str(version) and name not in taken:
            pins[name] = str(version)
            return name
    raise RecipeError(f"there is no free name for {version} among the recipe's sources")


def _means(params: Any) -> dict[str, Any]:
    assert isinstance(params, Params)
    return key_params(params)
