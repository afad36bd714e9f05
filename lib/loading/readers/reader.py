"""The one reader: what was asked for is planned, decoded by a backend, and put in its places."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from reelmill.errors import ReelmillError, Rejected
from reelmill.loading.readers.base import Mode, OutputFormat, VideoReader
from reelmill.loading.readers.decoder import Decoder, UnsupportedError
from reelmill.loading.readers.plan import Indices, Plan, asked, planned
from reelmill.loading.readers.table import Backend, first_that_opens
from reelmill.loading.tensors import torch_module


class Reader(VideoReader):
    """A video that one backend decodes; :func:`~reelmill.loading.readers.open_video` makes it.

    Where it fails at a frame, and there are ``others`` to try, these read on. Threads may share it,
    and take turns; closing it waits for the one that reads. A copy in another process, forked or
    pickled, opens the file anew there.
    """

    def __init__(
        self,
        backend: Backend,
        decoder: Decoder[Any],
        mode: Mode,
        output_format: OutputFormat,
        others: Sequence[Backend] = (),
    ) -> None:
        job = decoder.job
        self.backend = backend.name
        self.device = job.device
        self.mode = mode
        self.output_format = output_format
        self.metadata = job.look.metadata
        self._source = backend
        self._others = list(others)
        self._job = job
        self._is_closed = False
        self._take(decoder)

    def _take(self, decoder: Decoder[Any] | None) -> None:
        self._decoder = decoder
        self._turn = threading.Lock()
        self._process = os.getpid()

    def read_frames(self, indices: Indices) -> Any:
        plan = planned(indices, len(self))
        with self._turn_taken():
            while True:
                try:
                    return self._read(plan)
                except (UnsupportedError, Rejected) as error:
                    self._fall_back(error)

    def _read(self, plan: Plan) -> Any:
        torch, decoder = torch_module(), self._opened()
        shape = (plan.count, *self._job.shape)
        if not plan.numbers:
            return torch.empty(shape, dtype=torch.uint8, device=self.device)
        is_sought = self.mode == "seek"
        whole = decoder.batch(plan.numbers) if plan.is_plain else None
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
        self._check_open()
        given = 0
        while given < len(self):
            try:
                for frame in self._following(given):
                    yield frame
                    given += 1
            except (UnsupportedError, Rejected) as error:
                with self._turn_taken():
                    self._fall_back(error)

    def _following(self, first: int) -> Iterator[Any]:
        """The frames from one on, by a decoder of their own."""
        torch = torch_module()
        with closing(self._source.open(self._job)) as decoder:
            for frame in _those(decoder.streamed, range(first, len(self))):
                out = torch.empty(self._job.shape, dtype=torch.uint8, device=self.device)
                decoder.write(frame, out)
                yield out

    def close(self) -> None:
        self._is_closed = True
        # What a process was forked with, whoever may be reading by it, belongs to its parent.
        if self._process != os.getpid():
            self._decoder = None
            return
        # A thread that is at it reads to its end: a decoder that is freed meanwhile would crash.
        with self._turn:
            decoder, self._decoder = self._decoder, None
            if decoder is not None:
                decoder.close()

    def __repr__(self) -> str:
        one = self.metadata
        return (
            f"<{self.backend} reader of {self._job.media.name}: {one.num_frames} frames of "
            f"{one.width}x{one.height}, {one.codec}, on {self.device}>"
        )

    @contextmanager
    def _turn_taken(self) -> Iterator[None]:
        """For one thread at a time, while the reader is open."""
        self._check_open()
        if self._process != os.getpid():
            self._job.media.check_shared()
            self._take(None)
        with self._turn:
            # Another thread may have closed it while this one waited.
            self._check_open()
            yield

    def _opened(self) -> Decoder[Any]:
        """The decoder of this process."""
        if self._decoder is None:
            self._decoder = self._source.open(self._job)
        return self._decoder

    def _fall_back(self, error: ReelmillError | Rejected) -> None:
        """Let the next backend read on that gives frames of this video; raises where none is."""
        if not self._others:
            raise error
        try:
            source, decoder, others = first_that_opens(self._others, self._job)
        except ReelmillError:
            raise error from None
        if self._decoder is not None:
            self._decoder.close()
        self.backend, self._source, self._others = source.name, source, others
        self._decoder = decoder

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
