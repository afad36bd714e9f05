"""What the compose file starts, started by hand: each service at a loopback address of its own."""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

INFRA = Path(__file__).parents[2] / "infra"
START_SECONDS = 240.0
STOP_SECONDS = 20.0

Service = dict[str, Any]


def read_settings(path: Path) -> dict[str, str]:
    """The variables of an env file."""
    lines = [line.partition("=") for line in path.read_text().splitlines()]
    return {name: value for name, _, value in lines if value and not name.startswith("#")}


def interpolate(value: Any, settings: Mapping[str, str]) -> Any:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``, as Compose does."""
    if isinstance(value, Mapping):
        return {key: interpolate(one, settings) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolate(one, settings) for one in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if settings.get(name):
            return settings[name]
        assert operator == ":-", f"{name} is not set: {rest}"
        return rest

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", fill, value)


def load_services(settings: Mapping[str, str]) -> dict[str, Service]:
    """The services of infra/compose.yaml."""
    text = (INFRA / "compose.yaml").read_text()
    services: dict[str, Service] = interpolate(yaml.safe_load(text), settings)["services"]
    return services


@dataclass
class Box:
    """Services with an address each in a network of this machine's loopback interface.

    Attributes:
        folder: where logs and the homes of the services are.
        services: as in the compose file; the commands may be others.
        mounts: folders of this machine by where they are in the containers.
    """

    folder: Path
    services: dict[str, Service]
    mounts: Mapping[str, str]
    addresses: dict[str, str] = field(init=False)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _well: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        network = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}"
        self.addresses = {
            name: f"{network}.{number}" for number, name in enumerate(self.services, start=2)
        }

    def start(
        self, name: str, command: Sequence[str] = (), **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a service, or another command in its place, on as many cores as it may use.

        ``options`` are of ``Popen``.
        """
        limits = self.services[name].get("deploy", {}).get("resources", {}).get("limits", {})
        cores = os.sched_getaffinity(0)
        share = sorted(cores)[: math.ceil(float(limits.get("cpus", len(cores))))]
        with self._log(name).open("wb") as log:
            # A process inherits the cores of the thread that starts it.
            os.sched_setaffinity(0, share)
            try:
                self._running[name] = subprocess.Popen(
                    self._program(command or self.services[name]["command"]),
                    env=self._environ(name),
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **options,
                )
            finally:
                os.sched_setaffinity(0, cores)
        return self._running[name]

    def up(self, names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> None:
        """Start services, each once those that it depends on are well, and wait for all.

        ``options`` are of ``Popen``, by service.
        """
        deadline = time.monotonic() + START_SECONDS
        while missing := [name for name in names if name not in self._well]:
            for name in missing:
                if name in self._running:
                    if self._is_well(name):
                        self._well.add(name)
                elif set(self.services[name].get("depends_on", ())) <= self._well:
                    self.start(name, **options.get(name, {}))
            assert time.monotonic() < deadline, f"{missing} did not come up; see {self.folder}"
            time.sleep(0.5)

    def log(self, name: str) -> str:
        """What a service has written since it was started."""
        return self._log(name).read_text(errors="replace")

    def listening(self) -> dict[str, set[str]]:
        """The addresses at which the processes of each service listen."""
        found: dict[str, set[str]] = {}
        for name in self._running:
            for process in self._processes(name):
                # PostgreSQL's processes come and go.
                with contextlib.suppress(psutil.NoSuchProcess):
                    for socket in process.net_connections(kind="inet"):
                        if socket.status == psutil.CONN_LISTEN:
                            found.setdefault(name, set()).add(socket.laddr.ip)
        return found

    def down(self) -> None:
        """End every process, first those that depend on others."""
        for name, process in reversed(self._running.items()):
            family = self._processes(name)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_SECONDS)
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _processes(self, name: str) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._running[name].pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _is_well(self, name: str) -> bool:
        """Whether a service has come as far as those that depend on it wait for."""
        service = self.services[name]
        code = self._running[name].poll()
        if service.get("restart") == "on-failure":
            assert not code, self.log(name)
            return code == 0
        assert code is None, self.log(name)
        if "healthcheck" not in service:
            return True
        kind, *words = service["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            self._program(words), env=self._environ(name), capture_output=True, check=False
        )
        return done.returncode == 0

    def _program(self, words: Sequence[str]) -> list[str]:
        """A command as it is run here, with the programs of this environment."""
        program, *rest = words
        before = [program, *rest[:-1]]
        rest = [
            self._here(word, is_host=last == "--host")
            for last, word in zip(before, rest, strict=True)
        ]
        if program == "python":
            return [sys.executable, *rest]
        script = Path(sysconfig.get_path("scripts"), program)
        if Path(program).name == program and script.exists():
            return [sys.executable, str(script), *rest]
        return [program, *rest]

    def _environ(self, name: str) -> dict[str, str]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        own = self.services[name].get("environment", {})
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            **{key: self._here(text, is_host=key.endswith("_HOST")) for key, text in own.items()},
        }

    def _here(self, text: str, *, is_host: bool) -> str:
        """``text`` with addresses for names of services, and folders for where they are mounted.

        A name is an address before a port, at the beginning or after ``//``.
        """
        for name, address in self.addresses.items():
            if is_host and text == name:
                return address
            text = re.sub(rf"(^|//){name}(?=:\d)", rf"\g<1>{address}", text)
        for inside, outside in self.mounts.items():
            text = re.sub(rf"^{inside}(?=/)", outside, text)
        return text


@contextlib.contextmanager
def box(folder: Path, services: dict[str, Service], mounts: Mapping[str, str]) -> Iterator[Box]:
    """A box that is taken down at the end, however the body ends."""
    made = Box(folder, services, mounts)
    try:
        yield made
    finally:
        made.down()
