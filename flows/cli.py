"""The command line: ``reelmill``. Each group of commands has a file of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from reelmill import __version__
from reelmill.errors import ReelmillError

# In the order in which the help names their groups.
from reelmill.flows import cli_building as _building  # noqa: F401
from reelmill.flows import cli_looking as _looking  # noqa: F401
from reelmill.flows import cli_measuring as _measuring  # noqa: F401
from reelmill.flows import cli_using as _using  # noqa: F401
from reelmill.flows.cli_shared import app, err, escaped

__all__ = ["app", "main"]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)  # noqa: T201
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The ``reelmill`` command: one line on standard error and a code other than 0 on failure."""
    from reelmill.flows.exits import Interrupted

    def stop(number: int, _frame: object) -> NoReturn:
        raise Interrupted("stopped; what was finished is kept", number)

    # Until a build's own handler takes over, so that the Prefect server it starts is not left.
    signal.signal(signal.SIGTERM, stop)
    try:
        app(args=arguments, standalone_mode=True)
    except Interrupted as stopped:
        err.print(str(stopped), markup=False)
        sys.exit(stopped.code)
    except ReelmillError as error:
        err.print(f"[bold red]error:[/] {escaped(str(error))}")
        sys.exit(1)
    sys.exit(0)
