"""Files that let other libraries load a view directly: an index or a description beside its tars.

Each is written from what the store knows of the tars; none of them is read for it. Equal versions
give equal bytes.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reelmill.loading.views.tars import View, Writer


class Format(enum.StrEnum):
    """Whom a view's files are for."""

    WIDS = "wids"
    ENERGON = "energon"
    HF = "hf"
    CROISSANT = "croissant"


def open_writer(kind: Format, view: View) -> Writer:
    """What writes a format's files into a view's folder, which is there."""
    match kind:
        case Format.WIDS:
            from reelmill.loading.views.wids import WidsWriter

            return WidsWriter(view)
        case Format.ENERGON:
            from reelmill.loading.views.energon import EnergonWriter

            return EnergonWriter(view)
        case Format.HF:
            from reelmill.loading.views.hub import HubWriter

            return HubWriter(view)
        case Format.CROISSANT:
            from reelmill.loading.views.croissant import CroissantWriter

            return CroissantWriter(view)
