"""Settings of videos longer than a clip: how they are cut."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from cogcache.settings_base import NoneIfZero, Table


class Clips(Table):
    """How videos are cut into clips. Part of the feature key."""

    segment_s: Annotated[float | None, Field(gt=0), NoneIfZero] = None
    """Seconds a clip: longer videos are cut into clips of this length; 0 takes a video whole."""
    overlap_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that each clip of a cut video shares with the one before it."""

    @model_validator(mode="after")
    def _overlap_is_shorter_than_a_clip(self) -> Self:
        if self.overlap_s and self.overlap_s >= (self.segment_s or 0):
            raise ValueError(
                f"overlap_s = {self.overlap_s:g} needs segment_s to be longer than that: "
                "set segment_s, or leave overlap_s at 0"
            )
        return self
