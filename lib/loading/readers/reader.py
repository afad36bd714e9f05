"""The one reader: what was asked for is planned, decoded by a backend, and put in its places."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from reelmill.errors import ReelmillError, Rejected
from reelmill.loading.readers.backends import Backend
from reelmill.loading.readers.base import Mode, OutputFormat, VideoReader
from reelmill.loading.readers.decoder import Decoder
from reelmill.loading.readers.plan import Indices, asked, planned
from reelmill.loading.tensors import torch_module


class Reader(VideoReader):
    """A video that one backend decodes; :func:`~reelmill.loading.readers.open_video` makes it.

    Threads may share it, and take turns. A copy in another process, forked or pickled, opens the
    file anew there.
    """

    def __init__(
        self,
        backend: Backend,
        decoder: Decoder[Any],
        mode: Mode,
        output_format: OutputFormat,
    ) -> None:
        job = decoder.job
        self.backend = backend.name
        self.device = job.device
        self.mode = mode
        self.output_format = output_format
        self.metadata = job.look.metadata
        self._source = backend
        self._job = job
        self._is_closed = False
        self._take(decoder)

    def _take(self, decoder: Decoder[Any] | None) -> None:
        self._decoder = decoder
        self._turn = threading.Lock()
        self._process = os.getpid()

    def read_frames(self, indices: Indices) -> Any:
        torch = torch_module()
        plan = planned(indices, len(self))
        shape = (plan.count, *self._job.shape)
        with self._decoding() as decoder:
            if not plan.numbers:
                return torch.empty(shape, dtype=torch.uint8, device=self.device)
            is_sought = self.mode == "seek"
            whole = decoder.batch(plan.numbers) if is_sought and plan.is_plain else None
            if whole is not None:
                return whole
            out = torch.empty(shape, dtype=torch.uint8, device=self.device)
            frames = _those(decoder.sought if is_sought else decoder.streamed, plan.numbers)
            for frame, (first, *others) in zip(frames, plan.places, strict=True):
                decoder.write(frame, out[first])
                for place in others:
                    out[place] = out[first]
        return out

    def read_frames_at(self, seconds: Sequence[float]) -> Any:
        return self.read_frames(self.indices_at(seconds))

    def times(self, indices: Indices) -> tuple[Any, Any]:
        torch = torch_module()
        begin, duration = self._job.look.times(asked(indices, len(self)))
        return torch.from_numpy(begin), torch.from_numpy(duration)

    def indices_at(self, seconds: Sequence[float]) -> list[int]:
        return [self._job.look.number_at(float(one)) for one in seconds]

    def __iter__(self) -> Iterator[Any]:
        """Each frame in turn, all of them decoded once. What is read meanwhile does no harm."""
        torch = torch_module()
        self._check_open()
        with closing(self._source.open(self._job)) as decoder:
            for frame in _those(decoder.streamed, range(len(self))):
                out = torch.empty(self._job.shape, dtype=torch.uint8, device=self.device)
                decoder.write(frame, out)
                yield out

    def close(self) -> None:
        self._is_closed = True
        decoder, self._decoder = self._decoder, None
        # What a process was forked with belongs to its parent.
        if decoder is not None and self._process == os.getpid():
            decoder.close()

    def __repr__(self) -> str:
        one = self.metadata
        return (
            f"<{self.backend} reader of {self._job.media.name}: {one.num_frames} frames of "
            f"{one.width}x{one.height}, {one.codec}, on {self.device}>"
        )

    @contextmanager
    def _decoding(self) -> Iterator[Decoder[Any]]:
        """The decoder of this process, for one thread at a time."""
        self._check_open()
        if self._process != os.getpid():
            self._job.media.check_shared()
            self._take(None)
        with self._turn:
            # Another thread may have closed it while this one waited.
            self._check_open()
            if self._decoder is None:
                self._decoder = self._source.open(self._job)
            yield self._decoder

    def _check_open(self) -> None:
        if self._is_closed:
            raise ReelmillError(f"the reader of {self._job.media.name} is closed: open it again")

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_decoder", "_turn", "_process")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._take(None)


def _those(
    decode: Callable[[Sequence[int]], Iterator[tuple[int, Any]]], numbers: Sequence[int]
) -> Iterator[Any]:
    """Of the frames that ``decode`` gives, exactly those with these numbers."""
    waiting = iter(numbers)
    wanted = next(waiting)
    for number, frame in decode(numbers):
        if number > wanted:
            break
        if number == wanted:
            yield frame
            following = next(waiting, None)
            if following is None:
                return
            wanted = following
    raise Rejected("undecodable", f"frame {wanted} cannot be decoded")
