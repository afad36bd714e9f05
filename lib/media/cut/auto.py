"""Which clips can be copied and still be exact, and whether a copy may stand for an encode."""

from __future__ import annotations

import numpy as np

from reelmill.media.cut.copy import Copy, Track, audio_tracks
from reelmill.media.cut.output import Encoding
from reelmill.media.cut.picture import Picture
from reelmill.media.cut.plan import Index, Plan


def exact_copy(index: Index, plan: Plan) -> Copy | None:
    """The copy of exactly a plan's frames; None where one of its ends is no cut point."""
    video = plan.video
    points = video.cut_points
    begin = points[video.pts[points] == plan.start_pts]
    stop = points[video.pts[points] == plan.end_pts]
    if plan.last == len(video.shown):
        stop = np.array([len(video)])
    if not len(begin) or not len(stop) or video.hidden[begin[0] : stop[0]].any():
        return None
    track = Track(video, int(begin[0]), int(stop[0]), plan.start_pts)
    return Copy(plan, [track, *audio_tracks(index, plan)])


def is_alike(index: Index, picture: Picture, encoding: Encoding) -> bool:
    """Whether the source is what ``encoding`` would make of it, so that its copies and encodes can
    stand side by side: of the same codecs and pixel format, upright and even-sized."""
    return (
        index.codecs in ([encoding.video.format], [encoding.video.format, "aac"])
        and (picture.pix_fmt, picture.rotation) == (encoding.video.ffmpeg_pix_fmt, 0)
        and picture.width % 2 == picture.height % 2 == 0
    )
