"""Settings of videos longer than a clip: how they are cut."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cogcache.settings_base import NoneIfZero, Table


class Clips(Table):
    """How videos are cut into clips. Part of the feature key."""

    segment_s: Annotated[float | None, Field(gt=0), NoneIfZero] = None
    """Seconds a clip: longer videos are cut into clips of this length; 0 takes a video whole, or a
    scene."""
    overlap_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that each clip of a cut video shares with the one before it."""

    scenes: bool = False
    """Cut videos where scenes begin (needs PySceneDetect: `pip install 'cogcache[scenes]'`); scenes
    longer than segment_s are cut further."""
    scene_detector: Literal["adaptive", "content"] = "adaptive"
    """How scenes are found; `adaptive`: where a frame differs from the one before more than its
    neighbours do, so that a moving camera is no cut; `content`: where it differs much."""
    scene_threshold: Annotated[float | None, Field(gt=0), NoneIfZero] = None
    """How much a frame has to differ; 0 takes what PySceneDetect recommends: 3 for `adaptive`,
    27 for `content`."""
    min_scene_s: Annotated[float, Field(ge=0)] = 2.0
    """Seconds: a scene shorter than that joins the one before it."""

    @model_validator(mode="after")
    def _overlap_is_shorter_than_a_clip(self) -> Self:
        if self.overlap_s and self.overlap_s >= (self.segment_s or 0):
            raise ValueError(
                f"overlap_s = {self.overlap_s:g} needs segment_s to be longer than that: "
                "set segment_s, or leave overlap_s at 0"
            )
        return self
