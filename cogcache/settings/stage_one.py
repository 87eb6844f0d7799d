"""Settings of clips: which frames are taken, how videos are cut into them and summed up again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cogcache.settings.fields import AtLeastOne, NoneIfZero, Positive, Table


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """How large frames are handed to the vision half; None: as the checkpoint says."""

    frame_min: int | None = None
    frame_max: int | None = None
    clip_max: int | None = None
    """Of all frames of a clip together."""


class Sampling(Table):
    """Which frames of a clip are encoded. Part of the feature key."""

    strategy: Literal["per_second", "uniform", "spread", "published"] = "per_second"
    """`per_second`: the frame nearest to each whole second, until max_frames; `uniform`: exactly
    max_frames frames, evenly spaced over window_s, some of them twice in a short clip; `spread`: as
    `per_second`, but max_frames spread over the whole clip where it has more seconds than that;
    `published`: what the model's own first release takes (docs/families.md), where it takes any."""
    max_frames: AtLeastOne = 24
    """Most frames taken of one clip (`uniform`: exactly so many); the published CogVLM2-Video runs
    use 24. With `published` it counts only where a release leaves the number to its user, and is
    exactly that number."""
    fps: Annotated[float | None, Field(gt=0), NoneIfZero] = None
    """Frames a second that `per_second` and `spread` take, up to max_frames; 0 for one a second.
    Qwen's own code takes 2."""
    window_s: Positive = 60.0
    """Seconds from the clip's start that `uniform` spreads its frames over; others do not use
    it."""
    max_pixels: Annotated[int | None, Field(ge=1), NoneIfZero] = None
    """Most pixels of one frame: larger ones are scaled down; 0 for what the checkpoint says. Only
    families that take frames at their own size have it, such as Qwen's."""
    min_pixels: Annotated[int | None, Field(ge=1), NoneIfZero] = None
    """Least pixels of one frame: smaller ones are scaled up; 0 for what the checkpoint says."""
    max_video_pixels: Annotated[int | None, Field(ge=1), NoneIfZero] = None
    """Most pixels of all frames of a clip together; 0 for any."""

    @property
    def pixels(self) -> PixelLimits | None:
        """The limits of pixels; None where the checkpoint's own hold."""
        limits = PixelLimits(self.min_pixels, self.max_pixels, self.max_video_pixels)
        return None if limits == PixelLimits() else limits

    def fields(self) -> dict[str, Any]:
        """Return what a feature key holds: as it always was, where nothing newer is made use of."""
        values = self.model_dump()
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _what_is_set_has_an_effect(self) -> Self:
        if self.fps is not None and self.strategy in ("uniform", "published"):
            raise ValueError(
                f"fps = {self.fps:g} has no effect with the strategy {self.strategy}, which has "
                "its own number of frames: set strategy to spread, or leave fps at 0"
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels = {self.min_pixels} is more than max_pixels = {self.max_pixels}"
            )
        return self


class Clips(Table):
    """How videos are cut into clips. Part of the feature key."""

    segment_s: Annotated[float | None, Field(gt=0), NoneIfZero] = None
    """Seconds a clip: longer videos are cut into clips of this length; 0 takes a video whole, or a
    scene."""
    overlap_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that each clip of a cut video shares with the one before it."""

    scenes: bool = False
    """Cut videos where scenes begin (needs PySceneDetect: the extra `scenes`); scenes
    longer than segment_s are cut further."""
    scene_detector: Literal["adaptive", "content"] = "adaptive"
    """How scenes are found; `adaptive`: where a frame differs from the one before more than its
    neighbours do, so that a moving camera is no cut; `content`: where it differs much."""
    scene_threshold: Annotated[float | None, Field(gt=0), NoneIfZero] = None
    """How much a frame has to differ; 0 takes what PySceneDetect recommends: 3 for `adaptive`,
    27 for `content`."""
    min_scene_s: Annotated[float, Field(ge=0)] = 2.0
    """Seconds: a scene shorter than that joins the one before it."""

    @property
    def cut(self) -> str:
        """What clips that are cut so are called: `whole`, `segment:24` or `scenes`.

        Settings that differ from the defaults follow: `segment:24,overlap:4`.
        """
        segment = f"segment:{self.segment_s:g}" if self.segment_s else ""
        overlap = f"overlap:{self.overlap_s:g}" if self.overlap_s else ""
        if not self.scenes:
            return ",".join(filter(None, (segment or "whole", overlap)))
        parts = [
            "scenes" if self.scene_detector == "adaptive" else f"scenes:{self.scene_detector}",
            f"threshold:{self.scene_threshold:g}" if self.scene_threshold else "",
            "" if self.min_scene_s == 2.0 else f"min:{self.min_scene_s:g}",
            segment,
            overlap,
        ]
        return ",".join(filter(None, parts))

    @model_validator(mode="after")
    def _overlap_is_shorter_than_a_clip(self) -> Self:
        if self.overlap_s and self.overlap_s >= (self.segment_s or 0):
            raise ValueError(
                f"overlap_s = {self.overlap_s:g} needs segment_s to be longer than that: "
                "set segment_s, or leave overlap_s at 0"
            )
        return self


class Vision(Table):
    """Stage one: how the vision half runs and how features are stored."""

    vision_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the vision half's weights and of the stored features. Part of the feature key."""
    cache_point: Literal["projected", "pooled"] = "projected"
    """Which output is cached; `projected`: after the projector, as the language half reads it;
    `pooled`: before it, at less than half the size, and the projector becomes a part of the
    language half (CogVLM2-Video only). Part of the feature key."""
    compile: bool = False
    """Compile vision blocks (torch.compile). Results differ slightly, so videos are encoded again.
    Part of the feature key."""
    compression: Literal["none", "zstd", "blosc2"] = "zstd"
    """Lossless compression of feature files; all of them are read alike."""
    frames_per_batch: AtLeastOne = 48
    """Most frames, over all clips, that one vision pass takes; halved when memory runs out."""
    decoder: Literal["auto", "pyav", "decord"] = "auto"
    """What reads videos; `auto`: PyAV, and decord where PyAV gives no picture of a file of a kind
    for which decord is proven; `pyav`, `decord`: that one alone."""
    decode_workers: AtLeastOne = 2
    """Processes that decode and preprocess videos; with several devices or Ray, for each worker."""
    decode_timeout_s: Positive = 120.0
    """Seconds after which the decoding of one clip is given up and listed as a failure."""
    decode_memory_gib: Annotated[float | None, Field(gt=0), NoneIfZero] = 6.0
    """GiB that one decode worker may take; a clip that takes more is listed as a failure
    (decode_memory); 0 for any."""
    recycle_clips: Annotated[int | None, Field(ge=1), NoneIfZero] = 1000
    """Clips after which a decode worker, as decoders leak, is replaced by a fresh one; 0: never."""
    recycle_growth_gib: Positive = 1.0
    """GiB by which a decode worker may grow from clip to clip before it is replaced."""
