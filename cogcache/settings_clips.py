"""Settings of clips: which frames are taken, how videos are cut into them and summed up again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cogcache.settings_base import AtLeastOne, NoneIfEmpty, NoneIfZero, Positive, PromptText, Table

SUMMARY: Final = "summary"
"""Name that summaries of whole videos are listed by."""
PART: Final = "summary-part"
"""Name that those of their parts are listed by."""
CAPTIONS: Final = "{captions}"
SUMMARY_PROMPT: Final = (
    "These are captions of the parts of one video in their order, each with its time: "
    f"{CAPTIONS} Describe the whole video in one paragraph."
)


def _holds_captions(text: str) -> str:
    if text.count(CAPTIONS) != 1:
        raise ValueError(f"the prompt must hold {CAPTIONS} once, where the captions go")
    return text


class Sampling(Table):
    """Which frames of a clip are encoded. Part of the feature key."""

    strategy: Literal["per_second", "uniform", "spread"] = "per_second"
    """`per_second`: the frame nearest to each whole second, until max_frames; `uniform`: max_frames
    frames, evenly spaced over window_s; `spread`: as `per_second`, but max_frames spread over the
    whole clip where it has more seconds than that."""
    max_frames: AtLeastOne = 24
    """Most frames taken of one clip; the published CogVLM2-Video runs use 24."""
    window_s: Positive = 60.0
    """Seconds from the clip's start that `uniform` spreads its frames over; others do not use
    it."""


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


class Summary(Table):
    """One caption of a whole video from the captions of its clips. Part of its caption key."""

    summarize: bool = False
    """Give each video that is cut one caption more, named `summary`, made from those of its clips
    by the language half alone."""
    summary_prompt: Annotated[PromptText, AfterValidator(_holds_captions)] = SUMMARY_PROMPT
    """What is asked for it; `{captions}` stands for the clips' captions, a line each, with their
    times."""
    summary_of: Annotated[str | None, NoneIfEmpty] = None
    """Name of the prompt whose captions are summed up; "" for the first."""
    summary_tokens: Annotated[int, Field(ge=64)] = 4096
    """Most tokens of what is asked at once, where the model's context has room for so many; more
    captions are summed up in groups, and what comes of that again."""

    def check(self, prompts: Collection[str]) -> None:
        """See that there are captions to sum up, and that nothing else bears their names.

        Raises:
            ValueError: it is not so.
        """
        if not self.summarize:
            return
        if self.summary_of and self.summary_of not in prompts:
            known = ", ".join(prompts)
            raise ValueError(f"summary_of names no prompt: {self.summary_of!r}; there is {known}")
        for name in (SUMMARY, PART):
            if name in prompts:
                raise ValueError(f"summaries are listed as {name!r}: give that prompt another name")
