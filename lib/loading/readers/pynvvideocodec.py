"""Frames by NVDEC through PyNvVideoCodec, which PyAV gives the packets."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Any, Final

from reelmill.loading.readers.decoder import Decoder, Job
from reelmill.loading.readers.media import Form
from reelmill.loading.tensors import need_card, torch_module
from reelmill.media.gpu import devices
from reelmill.media.gpu.colour import Planes, rgb_of
from reelmill.media.gpu.modules import nvc_module
from reelmill.media.gpu.nvdec import Decoded, Nvdec, RefusedError, Take
from reelmill.media.shown import packets_at

_BATCH: Final = 8
"""Frames that are decoded ahead: each lies on the card while it waits."""


@dataclass(frozen=True, eq=False)
class _Frame:
    """One of the frames of a batch, as NVDEC gave it."""

    planes: Planes
    place: int


class PynvvideocodecDecoder(Decoder[_Frame]):
    """The card's decoder, with the colours of :func:`~reelmill.media.gpu.colour.rgb_of`.

    Each frame comes back with the number of its packet: what it is needs no guess. What the card
    cannot decode, it says when the video is opened.
    """

    def __init__(self, job: Job, takes: Collection[Form]) -> None:
        super().__init__(job, takes)
        self._source = job.media.source()
        if job.look.shown.packets is None:
            raise job.unsupported("NVDEC", "is given only video whose packets tell its frames")
        with _threads_kept():
            self._cards = _decoders(_ordinal(job.device))
            try:
                self._cards.header(self._source)
            except RefusedError as error:
                raise job.unsupported("NVDEC", f"cannot have it ({error})") from error

    def sought(self, numbers: Sequence[int]) -> Iterator[tuple[int, _Frame]]:
        return self._decoded(numbers, in_one_run=False)

    def streamed(self, numbers: Sequence[int]) -> Iterator[tuple[int, _Frame]]:
        return self._decoded(numbers, in_one_run=True)

    def _decoded(self, numbers: Sequence[int], in_one_run: bool) -> Iterator[tuple[int, _Frame]]:
        wanted, look = set(numbers), self.job.look

        def take(container: Any, stream: Any) -> Iterator[Iterator[Any]]:
            runs = packets_at(container, stream, look.shown, numbers, in_one_run=in_one_run)
            if look.key_before(numbers[0]) == 0:
                return runs
            # What is told of the stream as a whole may come with its first frame alone.
            first = packets_at(container, stream, look.shown, [0])
            return chain(first, runs)

        for batch in _ahead(self._batches(take)):
            for place, pts in enumerate(batch.pts.tolist()):
                number = look.number_of(pts)
                if number in wanted:
                    assert number is not None
                    yield number, _Frame(batch.planes, place)

    def _batches(self, take: Take) -> Iterator[Decoded]:
        with closing(self._cards.decode(self._source, _BATCH, take)) as decoded:
            while True:
                try:
                    with _threads_kept():
                        batch = next(decoded, None)
                except RefusedError as error:
                    raise self.job.unsupported("NVDEC", f"cannot have it ({error})") from error
                if batch is None:
                    return
                yield batch

    def write(self, frame: _Frame, target: Any) -> None:
        look, planes, at = self.job.look, frame.planes, slice(frame.place, frame.place + 1)
        one = replace(planes, y=planes.y[at], u=planes.u[at], v=planes.v[at])
        with _threads_kept():
            rgb = rgb_of(one, look.width, look.height)[0].rot90(look.turns, dims=(0, 1))
        target.copy_(rgb if self.job.channels_last else rgb.permute(2, 0, 1))


def check(device: str) -> None:
    """Raise StageError where there is no card, or no driver that decodes."""
    need_card(device)
    nvc_module()


@cache
def _decoders(ordinal: int) -> Nvdec:
    """The decoders of one card, which are kept from video to video."""
    return Nvdec(devices.capabilities(ordinal))


def _ordinal(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _ahead(batches: Iterator[Decoded]) -> Generator[Decoded, None, None]:
    """The same, each when the next one is there: so that whoever stops at the last frame has let
    the decoder come to its end, from where it can go on with another video."""
    held = next(batches, None)
    for batch in batches:
        assert held is not None
        yield held
        held = batch
    if held is not None:
        yield held


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Stages compute on one thread of the CPU, and set torch up so; a program that trains does not
    want that."""
    torch = torch_module()
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
