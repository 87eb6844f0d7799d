"""What fits into a given memory: the batch, the offload, and the reason for each choice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogcache.config import Settings
from cogcache.models.sizes import HalfSizes
from cogcache.plan import (
    ITEM_BYTES,
    frame_bytes,
    kv_bytes,
    language_weight_bytes,
    logit_bytes,
    prefill_bytes,
)
from cogcache.runs import StagePlan
from cogcache.units import MIB, format_bytes

MARGIN = 0.05
"""Share of the memory left free: fragments of the allocator, and what a plan cannot know."""
DEVICE_CONTEXT_BYTES = 400 * MIB
"""What a GPU's driver holds for a process before any tensor; not in the allocator's figures."""
FEWEST_FRAMES = 4
"""Below this a resident half does too little work a pass; blocks are offloaded instead."""


@dataclass(frozen=True, slots=True)
class VisionChoice:
    """How stage one runs in a given memory."""

    fits: bool
    resident_layers: int
    num_layers: int
    frames_per_batch: int
    plan: StagePlan
    smallest_bytes: int
    """Least that must be usable: one frame a pass, one block at a time."""
    reason: str


@dataclass(frozen=True, slots=True)
class LanguageChoice:
    """How stage two runs in a given memory."""

    fits: bool
    clips_per_batch: int
    plan: StagePlan
    smallest_bytes: int
    reason: str


def usable_bytes(memory_bytes: int, *, on_device: bool) -> int:
    """Return what a stage may plan with."""
    context = DEVICE_CONTEXT_BYTES if on_device else 0
    return int(memory_bytes * (1 - MARGIN)) - context


def whole_bytes(usable: int, *, on_device: bool) -> int:
    """Return the memory of which `usable` may be planned with: the inverse of `usable_bytes`."""
    context = DEVICE_CONTEXT_BYTES if on_device else 0
    return math.ceil((usable + context + 1) / (1 - MARGIN))


def choose_vision(
    sizes: HalfSizes, config: Mapping[str, Any], settings: Settings, usable: int
) -> VisionChoice:
    """Choose batch and offload for stage one.

    All resident with as many frames as fit, up to `frames_per_batch`; where not even a few
    frames fit beside the weights, blocks are offloaded and pass through one at a time.
    """
    item_bytes = ITEM_BYTES[settings.vision.vision_dtype]
    per_frame = frame_bytes(config, settings)
    layer, other = sizes.layer_parameters * item_bytes, sizes.other_parameters * item_bytes
    everything = other + sizes.num_layers * layer
    most = settings.vision.frames_per_batch

    def planned(frames: int, resident: int) -> StagePlan:
        passing = layer if resident < sizes.num_layers else 0
        return StagePlan(other + resident * layer + passing, frames * per_frame)

    smallest = min(planned(1, 0).peak_bytes, planned(1, sizes.num_layers).peak_bytes)
    frames = min(most, (usable - everything) // per_frame)
    if frames >= min(most, FEWEST_FRAMES):
        reason = f"all weights ({format_bytes(everything)}) stay, up to {frames} frames a pass"
        plan = planned(frames, sizes.num_layers)
        return VisionChoice(
            True, sizes.num_layers, sizes.num_layers, frames, plan, smallest, reason
        )
    frames = max(1, min(most, (usable - planned(0, 0).peak_bytes) // per_frame))
    resident = (usable - planned(frames, 0).peak_bytes) // layer if layer else 0
    resident = max(0, min(sizes.num_layers - 1, resident))
    reason = f"of {sizes.num_layers} blocks of {format_bytes(layer)}, {resident} stay; "
    reason += f"the others pass through one at a time, for {frames} frames a pass"
    if smallest > usable:
        reason = f"one block, the rest and one frame take {format_bytes(smallest)}"
    fits = smallest <= usable
    plan = planned(frames, resident)
    return VisionChoice(fits, resident, sizes.num_layers, frames, plan, smallest, reason)


def choose_language(
    sizes: HalfSizes,
    config: Mapping[str, Any],
    settings: Settings,
    usable: int,
    row_tokens: int,
) -> LanguageChoice:
    """Choose the batch for stage two: as many rows as fit beside the weights."""
    weights = language_weight_bytes(sizes.num_parameters, config, settings)
    prefill = prefill_bytes(config, settings, row_tokens)
    cached, logits = kv_bytes(config, settings, row_tokens), logit_bytes(config)
    rows = min(settings.language.clips_per_batch, (usable - weights - prefill) // (cached + logits))
    fits, rows = rows >= 1, max(rows, 1)
    plan = StagePlan(weights, prefill + rows * logits, rows * cached)
    reason = f"{format_bytes(cached)} of keys and values a row, {format_bytes(prefill)} to prefill "
    reason += f"one, beside {format_bytes(weights)} of weights"
    return LanguageChoice(fits, rows, plan, weights + prefill + cached + logits, reason)
