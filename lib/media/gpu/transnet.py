"""TransNetV2: a network that says of each frame how likely a shot ends there.

Written from Souček and Lokoč, "TransNet V2: An effective deep network architecture for fast shot
transition detection" (2020, arXiv:2008.04838). Modules are named so that the state dictionary that
the authors publish for PyTorch loads as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelmill.media.gpu.modules import torch_module
from reelmill.media.gpu.weights import Kind

WIDTH, HEIGHT = 48, 27
"""Size of the pictures that the network looks at, in pixels."""

WINDOW = 100
"""Frames that the network looks at together."""

STRIDE = 50
"""Frames from one window to the next: the middle of each window counts."""

MARGIN = (WINDOW - STRIDE) // 2
LAG = WINDOW - MARGIN - 1

_FILTERS = 16
_BLOCKS = 3
_CELLS = 2
_DILATIONS = (1, 2, 4, 8)
_LOOKUP = 101
_SIMILARITY = 128
_HIDDEN = 1024
_BATCH_NORM_EPSILON = 1e-3
_BINS = 512


WEIGHTS = Kind("TransNetV2", "the authors'")
weights_digest, read_weights = WEIGHTS.digest, WEIGHTS.read


def loaded(weights: Path, device: str) -> TransNetV2:
    """The network, kept for the videos that follow as long as its weights stay the same."""
    return _loaded(weights, weights_digest(weights), device)


@lru_cache(maxsize=2)
def _loaded(weights: Path, _digest: str, device: str) -> TransNetV2:
    return TransNetV2(weights, device)


class TransNetV2:
    """The network with the weights of a file, on a device of torch (``cpu``, ``cuda``).

    ``weights`` is the state dictionary that the authors publish, saved by PyTorch or as
    safetensors; it is read as numbers alone, so that a stranger's file runs no code. Raises
    :class:`~reelmill.errors.StageError` where it is no such file, or
    :class:`~reelmill.errors.MissingDependencyError` where torch is missing.
    """

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        self._torch = torch_module()
        self._device = self._torch.device(device)
        network = build_network()
        WEIGHTS.fill(network, weights)
        self._network = network.to(self._device).eval()

    def start(self) -> Windows:
        """Begin with a video."""
        return Windows(self)

    def scores(self, pictures: Iterable[Any]) -> NDArray[np.float32]:
        """The scores of a whole video, from batches as :meth:`Windows.feed` takes them."""
        windows = self.start()
        return np.concatenate([*map(windows.feed, pictures), windows.finish()])

    def tensor(self, pictures: Any) -> Any:
        """``pictures`` on the network's device. Raises ``ValueError`` where they do not fit it."""
        tensor = self._torch.as_tensor(pictures, device=self._device)
        if tensor.dtype != self._torch.uint8 or tensor.shape[1:] != (HEIGHT, WIDTH, 3):
            raise ValueError(f"TransNetV2 takes uint8 pictures of {WIDTH}x{HEIGHT}, RGB")
        return tensor

    def middle(self, window: Any) -> NDArray[np.float32]:
        """The scores of the ``STRIDE`` frames in the middle of a window."""
        with self._torch.inference_mode():
            logits = self._network(window[None])[0, MARGIN : MARGIN + STRIDE]
            scores: NDArray[np.float32] = self._torch.sigmoid(logits).cpu().numpy()
        return scores


class Windows:
    """One video on its way through the network, in overlapping windows.

    The first and the last frame stand for what is before and after the video.
    """

    def __init__(self, network: TransNetV2) -> None:
        self._network = network
        self._torch = torch_module()
        self._held: Any = None
        self._owed = 0

    def feed(self, pictures: Any) -> NDArray[np.float32]:
        """Take the next frames, uint8 RGB of shape ``(N, HEIGHT, WIDTH, 3)``, an array or a tensor;
        return the scores, 0 to 1, that are now known, of the oldest frames first. A frame's score
        waits for up to ``LAG`` further frames."""
        batch = self._network.tensor(pictures)
        if len(batch):
            self._owed += len(batch)
            before = batch[:1].expand(MARGIN, -1, -1, -1) if self._held is None else self._held
            self._held = self._torch.cat([before, batch])
        return self._known(lambda: len(self._held) >= WINDOW)

    def finish(self) -> NDArray[np.float32]:
        """The scores still owed, when no more frames come."""
        if self._owed:
            last = self._held[-1:].expand(WINDOW, -1, -1, -1)
            self._held = self._torch.cat([self._held, last])
        return self._known(lambda: self._owed > 0)

    def _known(self, more: Callable[[], bool]) -> NDArray[np.float32]:
        found = [np.empty(0, np.float32)]
        while self._held is not None and more():
            scores = self._network.middle(self._held[:WINDOW])[: self._owed]
            found.append(scores)
            self._owed -= len(scores)
            self._held = self._held[STRIDE:]
        return np.concatenate(found)


def build_network() -> Any:
    """The network without weights, as a ``torch.nn.Module``: uint8 RGB windows of shape
    ``(B, T, HEIGHT, WIDTH, 3)`` become logits of shape ``(B, T)``."""
    torch = torch_module()
    nn, functional = torch.nn, torch.nn.functional

    class Dilated(nn.Module):  # type: ignore[misc,name-defined]
        """A convolution in space, then one in time that skips ``dilation - 1`` frames."""

        def __init__(self, inputs: int, filters: int, dilation: int) -> None:
            super().__init__()
            space = nn.Conv3d(inputs, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
            time = nn.Conv3d(
                2 * filters,
                filters,
                (3, 1, 1),
                dilation=(dilation, 1, 1),
                padding=(dilation, 0, 0),
                bias=False,
            )
            self.layers = nn.Sequential(space, time)

        def forward(self, x: Any) -> Any:
            return self.layers(x)

    class Cell(nn.Module):  # type: ignore[misc,name-defined]
        """One convolution for each dilation, side by side, and a batch normalisation."""

        def __init__(self, inputs: int, filters: int) -> None:
            super().__init__()
            for dilation in _DILATIONS:
                setattr(self, f"Conv3D_{dilation}", Dilated(inputs, filters, dilation))
            self.bn = nn.BatchNorm3d(len(_DILATIONS) * filters, eps=_BATCH_NORM_EPSILON)

        def forward(self, x: Any) -> Any:
            branches = [getattr(self, f"Conv3D_{dilation}")(x) for dilation in _DILATIONS]
            return self.bn(torch.cat(branches, dim=1))

    class Block(nn.Module):  # type: ignore[misc,name-defined]
        """Cells one after the other, a shortcut around all but the first, and a pooling."""

        def __init__(self, inputs: int, filters: int) -> None:
            super().__init__()
            width = len(_DILATIONS) * filters
            self.DDCNN = nn.ModuleList(
                Cell(width if number else inputs, filters) for number in range(_CELLS)
            )

        def forward(self, x: Any) -> Any:
            first, *others = self.DDCNN
            shortcut = x = functional.relu(first(x))
            for cell in others:
                x = functional.relu(cell(x))
            return functional.avg_pool3d(x + shortcut, (1, 2, 2))

    class Neighbours(nn.Module):  # type: ignore[misc,name-defined]
        """How alike each frame is to those within ``_LOOKUP // 2`` frames, and what to make of it.

        Likeness is the cosine between two frames' vectors; beyond the window it is 0.
        """

        def __init__(self, features: int | None) -> None:
            super().__init__()
            if features is not None:
                self.projection = nn.Linear(features, _SIMILARITY)
            self.fc = nn.Linear(_LOOKUP, _SIMILARITY)

        def forward(self, vectors: Any) -> Any:
            if hasattr(self, "projection"):
                vectors = self.projection(vectors)
            vectors = functional.normalize(vectors, dim=2)
            alike = vectors @ vectors.transpose(1, 2)
            frames = alike.shape[1]
            # A frame's row, so that its own place comes to the middle of the look-up.
            padded = functional.pad(alike, (_LOOKUP // 2, _LOOKUP // 2))
            places = torch.arange(_LOOKUP, device=alike.device)
            places = places + torch.arange(frames, device=alike.device)[:, None]
            near = padded.gather(2, places.expand(len(alike), -1, -1))
            return functional.relu(self.fc(near))

    class Network(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            widths = [len(_DILATIONS) * _FILTERS << number for number in range(_BLOCKS)]
            self.SDDCNN = nn.ModuleList(
                Block(inputs, width // len(_DILATIONS))
                for inputs, width in zip([3, *widths], widths, strict=False)
            )
            self.frame_sim_layer = Neighbours(sum(widths))
            self.color_hist_layer = Neighbours(None)
            cells = (HEIGHT >> _BLOCKS) * (WIDTH >> _BLOCKS)
            self.fc1 = nn.Linear(widths[-1] * cells + 2 * _SIMILARITY, _HIDDEN)
            self.cls_layer1 = nn.Linear(_HIDDEN, 1)
            # Marks all frames of a transition; only training has a use for it.
            self.cls_layer2 = nn.Linear(_HIDDEN, 1)

        def forward(self, pictures: Any) -> Any:
            x = pictures.permute(0, 4, 1, 2, 3).float() / 255
            means = []
            for block in self.SDDCNN:
                x = block(x)
                means.append(x.mean(dim=(3, 4)))
            looks = self.frame_sim_layer(torch.cat(means, dim=1).transpose(1, 2))
            colours = self.color_hist_layer(_histograms(torch, pictures))
            flat = x.permute(0, 2, 3, 4, 1).flatten(2)
            hidden = functional.relu(self.fc1(torch.cat([colours, looks, flat], dim=2)))
            return self.cls_layer1(hidden)[..., 0]

    return Network()


def _histograms(torch: Any, pictures: Any) -> Any:
    """Counts of colours, with 3 bits for each of R, G and B: float ``(B, T, _BINS)``."""
    high = pictures.long() >> 5
    bins = ((high[..., 0] << 6) + (high[..., 1] << 3) + high[..., 2]).flatten(2)
    counts = torch.zeros((*bins.shape[:2], _BINS), device=pictures.device)
    return counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=counts.dtype))
