"""Readers: the frames of one video by number or by time, whatever decodes them."""

from __future__ import annotations

from reelmill.loading.readers.base import VideoMetadata, VideoReader

__all__ = ["VideoMetadata", "VideoReader"]
