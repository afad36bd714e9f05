"""What a process that runs yt-dlp may not do, whatever a page talks it into.

Python announces what it is about to do to audit hooks, which can refuse it and cannot be removed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from reelmill.fetch.addresses import is_public

_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# The arguments that are paths; a number is an open file.
_CHANGES: Final = {
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.setxattr": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "sqlite3.connect": 1,
}
_STARTS: Final = frozenset(
    {"os.exec", "os.fork", "os.forkpty", "os.spawn", "os.system", "pty.spawn"}
)
_OPEN: Final = frozenset({"/dev/null", ":memory:"})


class RefusedError(PermissionError):
    """Something that the guard does not let happen."""


class PrivateAddressError(RefusedError):
    """A connection to an address that is not public."""


class Guard:
    """Refuses, in this process and from `install` on: connections to addresses that are not public,
    programs, and changes of files outside a folder.

    Attributes:
        private: Whether a connection was refused since this was last set to False.
    """

    def __init__(
        self,
        folder: Path,
        *,
        allow_private: bool = False,
        allowed: Iterable[tuple[str, int]] = (),
        programs: Iterable[str] = (),
    ) -> None:
        self.private = False
        self._folder = os.path.realpath(folder)
        self._allow_private = allow_private
        self._allowed = frozenset(allowed)
        self._programs = frozenset(programs)
        self._checks: dict[str, Callable[[tuple[Any, ...]], None]] = {
            "socket.connect": self._connect,
            "socket.sendto": self._connect,
            "socket.sendmsg": self._connect,
            "socket.bind": self._refuse,
            "subprocess.Popen": self._program,
            "os.posix_spawn": self._program,
            "open": self._open,
            **dict.fromkeys(_STARTS, self._refuse),
        }

    def install(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        check = self._checks.get(event)
        if check is not None:
            check(args)
        elif event in _CHANGES:
            for path in args[: _CHANGES[event]]:
                self._change(path)

    def _connect(self, args: tuple[Any, ...]) -> None:
        address = args[1]
        if address is None:
            return  # sent on a connection that was let through
        if not isinstance(address, tuple):
            raise RefusedError("only the internet may be reached")
        host, port = str(address[0]), int(address[1])
        if (host, port) in self._allowed:
            return
        try:
            public = is_public(str(ip_address(host)))
        except ValueError:
            # A name, which would be resolved behind our back.
            public = False
        if not (public or self._allow_private):
            self.private = True
            raise PrivateAddressError("the address is not public")

    def _program(self, args: tuple[Any, ...]) -> None:
        if os.fsdecode(args[0]) not in self._programs:
            raise RefusedError("this program may not be started")

    def _refuse(self, args: tuple[Any, ...]) -> None:
        raise RefusedError("this may not be done here")

    def _open(self, args: tuple[Any, ...]) -> None:
        path, mode, flags = args
        writing = flags & _WRITING if mode is None else set(mode) & set("wax+")
        if writing:
            self._change(path)

    def _change(self, path: object) -> None:
        if isinstance(path, int):
            return
        name = os.fsdecode(path)  # type: ignore[arg-type]
        real = os.path.realpath(name)
        inside = real.startswith(self._folder + os.sep) and not name.startswith("file:")
        if not inside and name not in _OPEN:
            raise RefusedError("files may be changed in the scratch folder only")
