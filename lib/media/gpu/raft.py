"""RAFT: a network that estimates optical flow, as torchvision has it.

Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow" (ECCV 2020,
arXiv:2003.12039).
"""

from __future__ import annotations

import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from reelmill.errors import Rejected, StageError
from reelmill.media.flow.dense import MIN_SIDE
from reelmill.media.flow.fields import Flow
from reelmill.media.gpu.modules import (
    first_lines,
    optical_flow_module,
    torch_module,
    torch_version,
    torchvision_version,
)
from reelmill.media.gpu.weights import Kind

HUB = {
    "large": "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    "small": "raft_small_C_T_V2-01064c6d.pth",
}
"""torchvision's default weights. The last eight digits are the first of their sha256."""

_URL = "https://download.pytorch.org/models/"

# It looks at an eighth of the size, and at that halved three times: all must be whole.
_MULTIPLE, _LEAST = 8, 128


def tools(preset: str, weights: Path | None) -> dict[str, str]:
    """What its flow depends on besides the pictures, without reading weights of the hub; raises as
    :meth:`~reelmill.media.gpu.weights.Kind.digest` does, and where a package is missing."""
    named = _kind(preset).digest(weights) if weights else f"hub:{HUB[preset]}"
    return {"raft": named, "torchvision": torchvision_version(), "torch": torch_version()}


def loaded(preset: str, weights: Path | None, device: str, at_once: int) -> Raft:
    """RAFT, ``large`` or ``small``, on a device of torch, with the weights of a file or those of
    PyTorch's hub. It is kept as long as they stay the same.

    Raises as :meth:`~reelmill.media.gpu.weights.Kind.fill` does, and
    :class:`~reelmill.errors.StageError` where there is no card, or the hub cannot be reached.
    """
    torch = torch_module()
    if device == "cuda" and not torch.cuda.is_available():
        raise StageError(
            f"method raft needs an NVIDIA GPU, and torch {torch.__version__} sees none on this "
            "host; check nvidia-smi and CUDA_VISIBLE_DEVICES, or say device: cpu"
        )
    path = weights or _from_hub(HUB[preset])
    return Raft(_network(preset, path, _kind(preset).digest(path), device), device, at_once)


def _kind(preset: str) -> Kind:
    return Kind(f"RAFT {preset}", "torchvision's")


def _from_hub(name: str) -> Path:
    """The file of weights of that name, fetched unless it was before, and with the digest that its
    name tells."""
    torch = torch_module()
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path, start = folder / name, Path(name).stem.rpartition("-")[2]
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(_URL + name, str(path), start, progress=False)
        except (urllib.error.URLError, RuntimeError, OSError) as error:
            raise StageError(
                f"the weights of RAFT cannot be had from {_URL}{name} ({first_lines(error)}); "
                "fetch them once and give their path as weights"
            ) from error
    if not Kind("RAFT", "torchvision's").digest(path).startswith(f"sha256:{start}"):
        raise StageError(f"{path} is not what PyTorch's hub has under that name: remove it")
    return path


@lru_cache(maxsize=2)
def _network(preset: str, weights: Path, _digest: str, device: str) -> Any:
    models = optical_flow_module()
    network = (models.raft_large if preset == "large" else models.raft_small)(weights=None)
    _kind(preset).fill(network, weights)
    return network.to(device).eval()


@dataclass(frozen=True, eq=False)
class Raft:
    """The network with its weights, an :class:`~reelmill.media.flow.Estimator` of RGB pictures.

    The same pairs give the same bits again on the same kind of device with the same packages; how
    many are looked at together makes the last digits differ, as another card does.
    """

    network: Any
    device: str
    at_once: int
    colour: bool = True

    def __call__(self, pairs: Sequence[tuple[Any, Any]]) -> list[Flow]:
        torch = torch_module()
        height, width = (int(side) for side in pairs[0][0].shape[:2])
        if min(width, height) < MIN_SIDE:
            raise Rejected("too_small", f"{width} x {height} pixels; flow needs {MIN_SIDE} a side")
        left, right = _margins(width)
        above, below = _margins(height)
        # The fastest kernels are not chosen by trying: another might win the next time.
        steady = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=True
        )
        with torch.inference_mode(), steady:
            both = [
                torch.nn.functional.pad(
                    self._tensor(torch, side), (left, right, above, below), mode="replicate"
                )
                for side in zip(*pairs, strict=True)
            ]
            found = self.network(*both)[-1]
            inside = found[:, :, above : above + height, left : left + width]
            fields = inside.permute(0, 2, 3, 1).float().contiguous().cpu().numpy()
        return list(fields)

    def _tensor(self, torch: Any, pictures: Sequence[Any]) -> Any:
        """float32 (N, 3, H, W) from -1 to 1, of uint8 RGB, on the device."""
        stacked = torch.stack([torch.as_tensor(picture) for picture in pictures])
        return stacked.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _margins(side: int) -> tuple[int, int]:
    """What is put on both sides, as the authors do it, to come to a size that the network takes."""
    missing = max(_LEAST, side + -side % _MULTIPLE) - side
    return missing // 2, missing - missing // 2
