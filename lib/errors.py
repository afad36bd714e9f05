"""The errors that Reelmill raises on purpose. Each message says what, where and what to do."""

from __future__ import annotations

LONGEST_LINE = 500


def one_line(text: str) -> str:
    """``text``, which may hold what strangers wrote, as one printable line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def told(error: BaseException) -> str:
    """What an error says, in one printable line of at most ``LONGEST_LINE`` characters."""
    try:
        text = one_line(" ".join(str(error).split()))
    except Exception:  # an error of somebody else's code may fail even at this
        text = ""
    if not isinstance(error, ReelmillError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


class ReelmillError(Exception):
    """Base of all errors a user can cause or mend; its text is one printable line."""


class RecipeError(ReelmillError):
    """A recipe that cannot be built; the text begins with ``file:line: field``."""


class StoreError(ReelmillError):
    """A store that cannot be opened, read or written."""


class NotFoundError(StoreError):
    """A dataset, version, tag, shard or blob that the store does not hold."""


class ShardError(ReelmillError):
    """A tar or index that breaks the shard format, or a sample that cannot be put into one."""


class StageError(ReelmillError):
    """A stage that could not make its shard for a reason outside the data; nothing is committed."""


class PoisonError(StageError):
    """A shard under which workers died, again and again."""


class LoadError(ReelmillError):
    """A dataset that cannot be loaded for training, a sample of it that cannot be given, or a state
    that does not belong to it."""


class MissingDependencyError(ReelmillError):
    """An optional package is needed; the text gives the pip line that installs it."""


class Rejected(Exception):  # noqa: N818 - an outcome of one sample, not a failure of the program
    """One sample that cannot be used. The shard goes on; the index records the reason.

    ``reason`` is a class from a small closed set per stage (``http_404``, ``undecodable``);
    ``message`` must depend on the data alone, since the index that holds it is content-addressed.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
