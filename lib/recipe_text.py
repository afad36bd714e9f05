"""Adding to the text of a recipe: what people wrote stays as it is, to the last blank.

A round trip through a YAML library would lay columns out anew and choose other quotes. Here the
text of a new entry is put in where the entries before it end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from reelmill.errors import RecipeError
from reelmill.recipe import compose, is_plain_string

__all__ = ["append", "inline"]

_WIDTH: Final = 100
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@%+-]*")


def append(text: str, section: str, name: str, value: Mapping[str, Any], *, file: str) -> str:
    """The text of a recipe with one more entry, at the end of ``sources`` or ``datasets``.

    It looks like the entry before it. Whether the result means what it should is for the caller to
    find out: anchors, for one, are not looked at.

    Args:
        section: ``sources``, which may be absent, or ``datasets``.
        file: what errors call the recipe.

    Raises:
        RecipeError: the text is no YAML mapping.
    """
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix(mark)
    root = compose(text, file)
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{file}: a recipe is a mapping with store, sources and datasets")
    places = {key.value: place for place, (key, _) in enumerate(root.value)}
    if section not in places:
        return mark + _with_section(text, root, section, name, value)
    place = places[section]
    key, node = root.value[place]
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        return mark + _in_flow(text, node, name, value)
    end = root.end_mark if place + 1 == len(root.value) else root.value[place + 1][0].start_mark
    last = node.value[-1] if isinstance(node, yaml.MappingNode) else None
    column = last[0].start_mark.column if last else key.start_mark.column + 2
    return mark + _after(text, end.index, column, _entry(name, value, column, last))


def _with_section(
    text: str, root: yaml.MappingNode, section: str, name: str, value: Mapping[str, Any]
) -> str:
    """Put a section of one entry before the last one, and before the comment that belongs to it."""
    if root.flow_style:
        return _in_flow(text, root, section, {name: value})
    key = root.value[-1][0]
    column = key.start_mark.column
    lines = text[: key.start_mark.index - column].splitlines(keepends=True)
    while lines and lines[-1].lstrip().startswith("#"):
        lines.pop()
    at = sum(map(len, lines))
    new = [f"{section}:", *_entry(name, value, 2, None)]
    return text[:at] + "".join(f"{' ' * column}{line}{_newline(text)}" for line in new) + text[at:]


def _after(text: str, end: int, column: int, lines: list[str]) -> str:
    """Put lines in after the last one before ``end`` that is no blank and no comment further out:
    that belongs to what follows."""
    before = text[:end]
    kept = before[: before.rfind("\n") + 1].splitlines(keepends=True)
    if before[before.rfind("\n") + 1 :].strip():
        kept.append(before[before.rfind("\n") + 1 :])
    while kept and _is_outside(kept[-1], column):
        kept.pop()
    at = sum(map(len, kept))
    newline = _newline(text)
    start = "" if not at or text[at - 1] == "\n" else newline
    return text[:at] + start + "".join(f"{line}{newline}" for line in lines) + text[at:]


def _is_outside(line: str, column: int) -> bool:
    stripped = line.strip()
    return not stripped or (stripped.startswith("#") and len(line) - len(line.lstrip(" ")) < column)


def _in_flow(text: str, node: yaml.MappingNode, name: str, value: Mapping[str, Any]) -> str:
    """Put an entry in before the brace that closes a mapping."""
    closing = node.end_mark.index - 1
    if not node.value:
        at = node.start_mark.index + 1
        return f"{text[:at]}{inline(name)}: {inline(value)}{text[at:]}"
    key, last = node.value[-1]
    quoted = key.style == '"'
    entry = f"{inline(name, quoted=quoted)}: {inline(value, quoted=quoted)}"
    end = last.end_mark.index
    comma = re.match(r"\s*,", text[end:closing])
    at = end + (comma.end() if comma else 0)
    head = text[:end] + ("," if comma is None else text[end:at])
    column = key.start_mark.column
    begins = text[key.start_mark.index - column : key.start_mark.index].strip() == ""
    line_end = text.find("\n", at, closing) + 1
    if begins and line_end:
        line = f"{' ' * column}{entry}{_newline(text)}"
        return f"{head}{text[at:line_end]}{line}{text[line_end:]}"
    return f"{head} {entry}{text[at:]}"


def _entry(
    name: str,
    value: Mapping[str, Any],
    column: int,
    last: tuple[yaml.Node, yaml.Node] | None,
) -> list[str]:
    """The lines of an entry, in the style of the one before it."""
    margin = " " * column
    beside = last is None or (isinstance(last[1], yaml.MappingNode) and bool(last[1].flow_style))
    if beside:
        start = f"{margin}{name}:"
        if last is not None and last[0].start_mark.line == last[1].start_mark.line:
            start = start.ljust(last[1].start_mark.column - 1)
        line = f"{start} {inline(value)}"
        if len(line) <= _WIDTH:
            return [line]
    step = 2
    if last is not None and not beside:
        step = max(1, last[1].start_mark.column - column)
    inner = margin + " " * step
    return [f"{margin}{name}:", *(f"{inner}{inline(k)}: {inline(v)}" for k, v in value.items())]


def inline(value: Any, *, quoted: bool = False) -> str:
    """A value in a recipe's YAML, on one line; ``quoted`` as JSON would have it."""
    if isinstance(value, Mapping):
        pairs = (
            f"{inline(str(k), quoted=quoted)}: {inline(v, quoted=quoted)}" for k, v in value.items()
        )
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(inline(item, quoted=quoted) for item in value)}]"
    if isinstance(value, str):
        if not quoted and _PLAIN.fullmatch(value) and is_plain_string(value):
            return value
        shown = json.dumps(value, ensure_ascii=not value.isprintable())
        return shown.replace("\x7f", "\\x7f").replace("${", "$${")
    return json.dumps(value)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
