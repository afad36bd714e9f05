"""Lets video2dataset 1.3.0 be imported beside a torch of today.

It imports torchaudio for stages that are not measured, and torchaudio has no build for that torch.
"""

import importlib.machinery
import sys
import types


def _absent(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
    return module


_absent("torchaudio").functional = _absent("torchaudio.functional")  # type: ignore[attr-defined]
