"""How a command that was asked to stop ends."""

from __future__ import annotations


class Interrupted(Exception):  # noqa: N818 - the user's wish, not an error
    """A build stopped by a signal; its text says what is kept and how to go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number
