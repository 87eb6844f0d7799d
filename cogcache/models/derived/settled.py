"""Rates and frame texts of a clip, made from its times.

What stage one stored of them may come from an earlier version, or from a processor that has
changed; times and grids stand in the feature file. A clip without times is returned as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cogcache.models.derived.features import EXTRA, FEATURES, nested, num_rows
from cogcache.models.derived.frame_texts import FRAME_TEXTS, Frames
from cogcache.models.derived.positions import GRID
from cogcache.models.derived.times import FrameTimes
from cogcache.models.family import ClipTensors

if TYPE_CHECKING:
    from cogcache.models.derived.processing import ClipProcessor


def with_rate(clip: ClipTensors, rate: str, config: Mapping[str, Any]) -> ClipTensors:
    """Return a clip's inputs or features with the seconds from one row of patches to the next.

    They are the frames of a row over the frames taken a second; see `FrameTimes.sampled_fps`.

    Args:
        clip: tensors and, in its facts, times.
        rate: name of the input that holds the seconds. float32 [1].
        config: of the whole model, defaults included.
    """
    times = FrameTimes.of_facts(clip.facts)
    names = {rate, f"{EXTRA}{rate}"} & clip.tensors.keys()
    if times is None or not names:
        return clip
    seconds = config["vision_config"]["temporal_patch_size"] / times.sampled_fps
    rates = {name: clip.tensors[name].new_full((1,), seconds) for name in names}
    return replace(clip, tensors={**clip.tensors, **rates})


def with_frame_text(clip: ClipTensors, processor: ClipProcessor) -> ClipTensors:
    """Return a clip's inputs or features with the text that stands in place of the video.

    Args:
        clip: tensors and, in its facts, times.
        processor: the checkpoint's; families share its class and with it the text.

    Raises:
        ValueError: the clip's grid is not that of its features.
    """
    times = FrameTimes.of_facts(clip.facts)
    text_of = FRAME_TEXTS.get(type(processor.processor).__name__)
    if times is None or text_of is None or not processor.takes_videos:
        return clip
    pictures, slots = len(times.timestamps_s), 0
    for name in {GRID, f"{EXTRA}{GRID}"} & clip.tensors.keys():
        pictures, height, width = (int(each) for each in clip.tensors[name].flatten())
        slots = height * width // processor.processor.video_processor.merge_size**2
        _check_room(clip, pictures * slots)
    text = text_of(Frames(times, pictures, slots, processor.processor))
    told = {"replacements": json.dumps([text], ensure_ascii=False)}
    return replace(clip, texts={**clip.texts, **told})


def _check_room(clip: ClipTensors, slots: int) -> None:
    """Refuse a grid with more slots than there are features, before a text is made for them."""
    features = nested(FEATURES, clip.tensors)
    if features is not None and slots > num_rows(features):
        raise ValueError(f"a grid of {slots} slots for {num_rows(features)} rows of features")
