"""Which libraries can decode: what each takes, what it needs, and whether it can be used here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, TypeAlias, get_args

from reelmill.errors import MissingDependencyError, ReelmillError, told
from reelmill.loading.readers.decoder import Decoder, Job
from reelmill.loading.readers.media import Form
from reelmill.loading.tensors import torch_module

BackendName: TypeAlias = Literal[
    "auto", "pyav", "torchcodec", "opencv", "torchvision", "pynvvideocodec", "vali"
]


@dataclass(frozen=True)
class Backend:
    """One library that decodes.

    Attributes:
        name: what ``open_video`` and errors call it.
        module: what is imported; where it cannot be, the backend is not there.
        install: what ``pip install`` gets it by.
        devices: kinds of devices that its frames can lie on.
        takes: forms in which it takes a video; others are turned into one of them.
        decoder: the module that has its decoder, and the name of that there; imported on use. The
            module's ``check(device)`` raises ReelmillError where the library is there and cannot be
            used.
    """

    name: str
    module: str
    install: str
    devices: tuple[str, ...]
    takes: tuple[Form, ...]
    decoder: str

    def open(self, job: Job) -> Decoder[Any]:
        """Its decoder for one video; raises as :class:`~reelmill.loading.readers.decoder.Decoder`
        does, and as :meth:`need` does."""
        self.need(job.device)
        module, _, name = self.decoder.partition(":")
        made: Decoder[Any] = getattr(importlib.import_module(module), name)(job, self.takes)
        return made

    def need(self, device: str) -> None:
        """Raise where it cannot be used for ``device``: MissingDependencyError where it or torch is
        not installed, else ReelmillError, both with what to do."""
        kind = device.partition(":")[0]
        if kind not in self.devices:
            raise ReelmillError(
                f"backend {self.name} decodes on {' and '.join(self.devices)}, not on {kind}: "
                f"say device={self.devices[0]!r} or take another backend"
            )
        if not _is_there(self.module):
            raise MissingDependencyError(
                f"backend {self.name} needs a package that is not installed (no module "
                f"{self.module}): pip install {self.install}"
            )
        torch_module()
        importlib.import_module(self.decoder.partition(":")[0]).check(device)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


_HERE: Final = "reelmill.loading.readers"

BACKENDS: Final = {
    one.name: one
    for one in (
        Backend(
            name="pyav",
            module="av",
            install="reelmill",
            devices=("cpu",),
            takes=("path", "bytes", "file"),
            decoder=f"{_HERE}.pyav:PyavDecoder",
        ),
        Backend(
            name="torchcodec",
            module="torchcodec",
            install="'reelmill[torchcodec]'",
            devices=("cpu", "cuda"),
            takes=("path", "bytes", "file"),
            decoder=f"{_HERE}.torchcodec:TorchcodecDecoder",
        ),
        Backend(
            name="opencv",
            module="cv2",
            install="reelmill",
            devices=("cpu",),
            takes=("path", "file"),
            decoder=f"{_HERE}.opencv:OpencvDecoder",
        ),
        Backend(
            name="torchvision",
            module="torchvision",
            install="'torchvision<0.26'",
            devices=("cpu",),
            takes=("path", "bytes"),
            decoder=f"{_HERE}.torchvision:TorchvisionDecoder",
        ),
        Backend(
            name="pynvvideocodec",
            module="PyNvVideoCodec",
            install="'reelmill[gpu]'",
            devices=("cuda",),
            takes=("path", "bytes", "file"),
            decoder=f"{_HERE}.pynvvideocodec:PynvvideocodecDecoder",
        ),
        Backend(
            name="vali",
            module="python_vali",
            install="'reelmill[vali]'",
            devices=("cuda",),
            takes=("path",),
            decoder=f"{_HERE}.vali:ValiDecoder",
        ),
    )
}
"""All backends by name."""

AUTO: Final = {"cpu": ("torchcodec", "pyav"), "cuda": ("pynvvideocodec", "torchcodec", "vali")}
"""What ``auto`` tries for a kind of device, the best first: see docs/readers.md for how they were
measured."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used here: ``why_not`` says what is missing, for each kind of device
    that it could decode on; it is empty for one that works."""

    name: str
    install: str
    why_not: dict[str, str]

    @property
    def devices(self) -> tuple[str, ...]:
        """The kinds of devices on which it can be used here."""
        return tuple(kind for kind, reason in self.why_not.items() if not reason)


def backends() -> dict[str, Availability]:
    """Every backend by name, and whether it can be used here. Imports those that are there."""
    return {
        one.name: Availability(
            one.name, one.install, {kind: _why_not(one, kind) for kind in one.devices}
        )
        for one in BACKENDS.values()
    }


def _why_not(backend: Backend, device: str) -> str:
    try:
        backend.need(device)
    except ReelmillError as error:
        return told(error)
    return ""


def candidates(name: str, device: str) -> list[Backend]:
    """The backends to try for a name, ``auto`` or one of them.

    Raises: ReelmillError where there is none of that name.
    """
    if name == "auto":
        tried = AUTO[device.partition(":")[0]]
        return [BACKENDS[one] for one in tried if one in BACKENDS]
    if name not in BACKENDS:
        known = ", ".join(get_args(BackendName))
        raise ReelmillError(f"there is no backend {name!r} to decode video: name one of {known}")
    return [BACKENDS[name]]


def first_that_opens(
    tried: Sequence[Backend], job: Job
) -> tuple[Backend, Decoder[Any], list[Backend]]:
    """The first of some backends that can be used here and gives the frames of this video, its
    decoder, and those that come after it.

    Raises: as the first one does where none does; what is wrong with the file itself, at once.
    """
    refusals: list[ReelmillError] = []
    for place, backend in enumerate(tried):
        try:
            return backend, backend.open(job), list(tried[place + 1 :])
        except ReelmillError as error:
            refusals.append(error)
    raise refusals[0]
