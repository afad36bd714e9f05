"""Clips of every sample that comes along: what ``dataset.map`` calls."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from reelmill.loading.samplers import sampling
from reelmill.loading.samplers.sampling import Kind
from reelmill.loading.samplers.sources import fields_of, video_field

_OWN_SEED = frozenset({"source", "seed", "generator", "opening"})


@dataclass(frozen=True)
class SampleClips:
    """What :func:`sample_clips` gives: call it with a sample. It can be sent to worker processes,
    unless ``epoch`` is a function that cannot."""

    kind: Kind
    params: Mapping[str, Any]
    seed: int | None = None
    epoch: int | Callable[[], int] = 0
    into: str = "clips"
    opening: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, sample: Any) -> dict[str, Any]:
        fields = fields_of(sample)
        if not fields:
            raise ValueError(f"a sample is a mapping of fields, not a {type(sample).__name__}")
        name = video_field(fields)
        seeding: dict[str, Any] = {}
        if self.seed is not None and self.kind.startswith("random"):
            seeding = {"seed": clip_seed(self.seed, self._epoch(fields), str(fields["__key__"]))}
        sampler = getattr(sampling, f"clips_at_{self.kind}")
        clips = sampler(fields[name], **self.params, **seeding, **self.opening)
        rest = {other: value for other, value in fields.items() if other != name}
        return {**rest, self.into: clips}

    def _epoch(self, fields: Mapping[str, Any]) -> int:
        if "__epoch__" in fields:
            return int(fields["__epoch__"])
        return self.epoch() if callable(self.epoch) else self.epoch


def sample_clips(
    kind: Kind,
    *,
    seed: int | None = None,
    epoch: int | Callable[[], int] = 0,
    into: str = "clips",
    opening: Mapping[str, Any] | None = None,
    **params: Any,
) -> SampleClips:
    """A function for ``dataset.map`` that puts clips of a sample's video in the video's place.

    >>> dataset.map(sample_clips("random_indices", num_clips=2, num_frames_per_clip=8, seed=0))

    The field ``clips`` comes for it, a :class:`~reelmill.loading.FrameBatch`; ``collate`` makes one
    of those of a batch of samples.

    Args:
        kind: ``random_indices``, ``regular_indices``, ``random_timestamps`` or
            ``regular_timestamps``.
        seed: with it, the clips of a sample depend on this, the epoch and the sample's key alone:
            not on how many workers there are, nor on which of them it comes to. Without it they are
            drawn from torch's own state, which is another in every worker.
        epoch: which epoch it is, or a function that tells. A sample's own ``__epoch__`` goes first.
        into: what the field is called.
        opening: keywords of ``open_video``: ``backend``, ``device``, ``mode``, ``output_format``.
        params: those of the sampler ``clips_at_{kind}``.

    Raises:
        ValueError: there is no such kind, or it lacks a parameter or has no such.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"no way to sample '{kind}': there are {', '.join(get_args(Kind))}")
    sampler = getattr(sampling, f"clips_at_{kind}")
    known = inspect.signature(sampler).parameters.keys() - _OWN_SEED
    if unknown := sorted(params.keys() - known):
        raise ValueError(
            f"clips_at_{kind} takes no {', '.join(unknown)}: there are {', '.join(sorted(known))}"
        )
    required = "seconds_between_clip_starts"
    if required in known and required not in params:
        raise ValueError(f"clips_at_{kind} needs {required}")
    return SampleClips(kind, params, seed, epoch, into, dict(opening or {}))


def clip_seed(seed: int, epoch: int, key: str) -> int:
    """The seed of one sample in one epoch: 63 bits, the same on every machine."""
    told = f"{seed}/{epoch}/{key}".encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:8], "big") >> 1
