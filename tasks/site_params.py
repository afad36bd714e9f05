"""What a recipe says of video sites, below ``sites`` of a download."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from reelmill.fetch.site_options import SiteOptions
from reelmill.tasks.contract import Params, Runtime
from reelmill.units import Bytes, Seconds

Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{2,8}(-[A-Za-z0-9]{1,8})*$")]
Browser = Annotated[str, Field(pattern=r"^[a-z]+(:[^\x00-\x1f]+)?$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/")]
Proxy = Annotated[str, Field(pattern=r"^(https?|socks[45]h?|socks4a)://[\x21-\x7e]+$")]


class SiteParams(Params):
    """What is taken of the videos that yt-dlp fetches, and how their sites are asked."""

    max_height: Annotated[int, Field(ge=1, le=16384)] | None = Field(
        None, description="the tallest picture that is taken, in pixels, where a site tells it"
    )
    codec: Literal["any", "h264", "vp9", "av1"] = Field(
        "any", description="the video codec that is preferred, where there is a choice"
    )
    audio: Literal["with", "only", "none"] = Field(
        "with", description="with: video and sound; only: the sound; none: the video"
    )
    subtitles: tuple[Language, ...] = Field(
        (), description="languages of subtitles, such as [en, de]; fields en.vtt, de.vtt"
    )
    automatic_captions: bool = Field(
        False, description="take recognised speech, as en.auto.vtt, where nobody wrote subtitles"
    )
    metadata: bool = Field(
        False, description="keep what the site says of the video: title, uploader, tags, chapters"
    )
    allowed_extractors: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="yt-dlp's extractors that may be used, such as [youtube]; without any, all"
    )
    processes: Annotated[int, Field(ge=1, le=64), Runtime] = Field(
        4, description="processes of yt-dlp for one shard"
    )
    per_site: Annotated[int, Field(ge=1, le=64), Runtime] = Field(
        2, description="videos in flight from one host for one shard"
    )
    cookies: Annotated[AbsolutePath | None, Runtime] = Field(
        None, description="absolute path, on every worker, of cookies in Netscape's format"
    )
    cookies_from_browser: Annotated[Browser | None, Runtime] = Field(
        None, description="a browser on every worker, such as firefox or firefox:profile"
    )
    rate_limit: Annotated[Annotated[Bytes, Field(gt=0)] | None, Runtime] = Field(
        None, description="bytes a second for one video, such as 2 MB"
    )
    proxies: Annotated[tuple[Proxy, ...], Runtime] = Field(
        (), description="proxies that take turns, each video always by the same one"
    )
    sleep: Annotated[Seconds, Runtime] = Field(
        Decimal(0), description="between two requests for one video"
    )
    archive: Annotated[AbsolutePath | None, Runtime] = Field(
        None, description="absolute path, on every worker, of a yt-dlp archive: videos not to take"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SiteParams:
        if self.automatic_captions and not self.subtitles:
            raise ValueError("automatic_captions needs subtitles, the languages to take")
        if len({language.lower() for language in self.subtitles}) < len(self.subtitles):
            raise ValueError("subtitles names a language twice")
        return self

    def effective(self) -> dict[str, Any]:
        return {"subtitles": tuple(sorted(self.subtitles))}

    def options(self) -> SiteOptions:
        """The same for the library."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "sleep"}
        return SiteOptions(**values, sleep_s=float(self.sleep))
