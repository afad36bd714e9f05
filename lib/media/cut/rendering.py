"""What the clips of one source become: an encoding, and what it depends on in the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from reelmill.media.cut import tone
from reelmill.media.cut.output import Audio, Encoding
from reelmill.media.cut.picture import Picture, picture_of
from reelmill.media.cut.plan import Clip, CutFailure, Plan, average_rate, made
from reelmill.media.probe import VideoInfo, open_media, video_stream
from reelmill.media.subtitles import Track, tracks_of, webvtt


@dataclass(frozen=True)
class Texts:
    """A file of subtitles of a clip, on the clip's clock, and its language if that is known."""

    path: Path
    language: str | None


@dataclass(frozen=True)
class Rendering:
    """``encoding`` for a source with such a ``picture`` and the subtitles ``tracks``, which are
    empty unless they are kept."""

    encoding: Encoding
    picture: Picture
    tracks: Sequence[Track] = ()

    @classmethod
    def of(cls, source: Path, encoding: Encoding) -> Rendering:
        """Raises :class:`~reelmill.errors.Rejected` where the source cannot be used."""
        with open_media(source) as container:
            picture = picture_of(container, video_stream(container))
        return cls(encoding, picture, tracks_of(source) if encoding.subtitles else ())

    @property
    def toned(self) -> bool:
        """Whether any output of the source is tone mapped."""
        outputs = self.encoding.outputs.values()
        return self.picture.is_hdr and any(video.to_sdr for video, _ in outputs)

    @property
    def pixels(self) -> int:
        """Of a frame in all outputs together: what encoders' memory goes by."""
        fits = (video.fit(self.picture) for video, _ in self.encoding.outputs.values())
        return sum(fit.padded[0] * fit.padded[1] for fit in fits)

    @contextmanager
    def files(self, plans: Sequence[Plan]) -> Iterator[Mapping[int, Sequence[Texts]]]:
        """Has what ffmpeg reads beside the source in the plans' folder meanwhile: a table of tones,
        called as the first plan's, and the subtitles of each, given by the plans' numbers."""
        written: list[Path] = []
        try:
            if self.toned:
                written.append(tone.table_of(plans[0]))
                written[0].write_bytes(tone.table(self.picture))
            texts = {plan.number: list(self._texts(plan)) for plan in plans}
            written += [text.path for one in texts.values() for text in one]
            yield texts
        finally:
            for path in written:
                path.unlink(missing_ok=True)

    def _texts(self, plan: Plan) -> Iterator[Texts]:
        """Tracks that say something in the clip; the others are left out of it."""
        for number, track in enumerate(self.tracks):
            cues = track.script.cut(plan.start, plan.end)
            if cues:
                path = plan.file(f"{number}.vtt")
                path.write_bytes(webvtt(cues))
                yield Texts(path, track.language)

    def whole(self, plan: Plan, clip: Clip | CutFailure) -> Clip | CutFailure:
        """The clip with its other files; nothing of it where the pictures of one are missing."""
        if isinstance(clip, CutFailure):
            return clip
        variants: dict[str, VideoInfo] = {}
        others: dict[str, Path] = {}
        for ending, (video, audio) in self.encoding.outputs.items():
            if ending == clip.ending:
                clip = replace(clip, fps=Fraction(video.fps or clip.fps))
                frames = clip.frames
            else:
                others[ending] = plan.file(ending)
                info = made(others[ending], check=False)
                if info is None:
                    return plan.failure("undecodable", "a variant of the clip has no frame")
                rate = average_rate(info.frames or 0, clip.end - clip.start, info.fps)
                info = replace(info, fps=Fraction(video.fps or rate))
                variants[ending.partition(".")[0]] = info
                frames = info.frames or 0
            if video.frames is not None and frames != video.frames:
                text = f"{frames} frames came of it, and {video.frames} are asked"
                return plan.failure("undecodable", text)
            sound = sound_ending(ending, audio)
            if sound is not None and plan.file(sound).is_file():
                others[sound] = plan.file(sound)
        return replace(clip, others=others, variants=variants)


def sound_ending(ending: str, audio: Audio) -> str | None:
    """The end of the name of an output's extracted sound, if it is: ``wav`` beside ``mp4``,
    ``small.wav`` beside ``small.mp4``."""
    if audio.extract is None:
        return None
    name, dot, _ = ending.rpartition(".")
    return f"{name}{dot}{audio.extract}"
