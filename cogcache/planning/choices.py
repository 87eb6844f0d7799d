"""What fits into a given memory: the batch, the offload, and the reason for each choice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cogcache.models import ITEM_BYTES, HalfSizes, LanguageSizes
from cogcache.planning.estimates import frame_bytes, kv_bytes, logit_bytes, prefill_bytes
from cogcache.settings import Settings
from cogcache.units import MIB, format_bytes

MARGIN = 0.05
"""Share of the memory left free: fragments of the allocator, and what a plan cannot know."""
DEVICE_CONTEXT_BYTES = 400 * MIB
"""What a GPU's driver holds for a process before any tensor; not in the allocator's figures."""
FEWEST_FRAMES = 4
"""Below this a resident half does too little work a pass; blocks are offloaded instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageChoice:
    """How stage two runs in a given memory."""

    fits: bool
    resident_layers: int
    num_layers: int
    embedding_waits: bool
    """Whether the embedding is looked up in main memory, mapped from the checkpoint."""
    clips_per_batch: int
    plan: StagePlan
    smallest_bytes: int
    """Least that must be usable: one row, the embedding elsewhere, one block at a time."""
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
    sizes: HalfSizes,
    config: Mapping[str, Any],
    settings: Settings,
    usable: int,
    positions: int | None = None,
) -> VisionChoice:
    """Choose batch and offload for stage one.

    All resident with as many frames as fit, up to `frames_per_batch`; where not even a few
    frames fit beside the weights, blocks are offloaded and pass through one at a time.

    Args:
        sizes: of the vision half.
        config: the model's.
        settings: types and batches.
        usable: bytes to plan with.
        positions: patches of a frame, where they depend on its size; None: as the config says.
    """
    item_bytes = ITEM_BYTES[settings.vision.vision_dtype]
    per_frame = frame_bytes(config, settings, positions)
    layer, other = sizes.layer_parameters * item_bytes, sizes.other_parameters * item_bytes
    everything = other + sizes.num_layers * layer
    most = settings.vision.frames_per_batch

    def planned(frames: int, resident: int) -> StagePlan:
        passing = layer if resident < sizes.num_layers else 0
        return StagePlan(other + resident * layer + passing, frames * per_frame)

    smallest = min(planned(1, 0).peak_bytes, planned(1, sizes.num_layers).peak_bytes)
    frames, resident = min(most, (usable - everything) // per_frame), sizes.num_layers
    if frames >= min(most, FEWEST_FRAMES):
        reason = f"all weights ({format_bytes(everything)}) stay, up to {frames} frames a pass"
    else:
        frames = max(1, min(most, (usable - planned(0, 0).peak_bytes) // per_frame))
        resident = (usable - planned(frames, 0).peak_bytes) // layer if layer else 0
        resident = max(0, min(sizes.num_layers - 1, resident))
        reason = f"of {sizes.num_layers} blocks of {format_bytes(layer)}, {resident} stay; "
        reason += f"the others pass through one at a time, for {frames} frames a pass"
    if smallest > usable:
        reason = f"one block, the rest and one frame take {format_bytes(smallest)}"
    return VisionChoice(
        fits=smallest <= usable,
        resident_layers=resident,
        num_layers=sizes.num_layers,
        frames_per_batch=frames,
        plan=planned(frames, resident),
        smallest_bytes=smallest,
        reason=reason,
    )


def choose_language(
    sizes: LanguageSizes,
    config: Mapping[str, Any],
    settings: Settings,
    usable: int,
    row_tokens: int,
) -> LanguageChoice:
    """Choose batch and offload for stage two.

    All resident where as many rows fit as are wanted; else the embedding waits, which costs
    next to nothing; layers are offloaded last, and then for as many rows as fit, since each
    step fetches them once for all rows.
    """
    rows_plan = _RowsPlan.of(sizes, config, settings, row_tokens)
    most, layers = settings.language.clips_per_batch, sizes.num_layers
    waits = sizes.embedding_can_wait and rows_plan.most_rows(usable, layers, False) < most
    rows = min(most, rows_plan.most_rows(usable, layers, waits))
    smallest = min(
        rows_plan.planned(1, resident, sizes.embedding_can_wait).peak_bytes
        for resident in (0, layers)
    )
    resident = layers
    if rows < 1:
        rows = max(1, min(most, rows_plan.most_rows(usable, 0, waits)))
        spare = usable - rows_plan.planned(rows, 0, waits).peak_bytes
        resident = max(0, min(layers - 1, spare // sizes.layer_bytes if sizes.layer_bytes else 0))
    fits = smallest <= usable
    return LanguageChoice(
        fits=smallest <= usable,
        resident_layers=resident,
        num_layers=layers,
        embedding_waits=waits,
        clips_per_batch=rows,
        plan=rows_plan.planned(rows, resident, waits),
        smallest_bytes=smallest,
        reason=rows_plan.reason(resident, waits) if fits else rows_plan.least(smallest),
    )


def plan_language(
    choice: LanguageChoice,
    sizes: LanguageSizes,
    config: Mapping[str, Any],
    settings: Settings,
    row_tokens: int,
) -> StagePlan:
    """Plan a choice for rows of another length than it was made for."""
    rows_plan = _RowsPlan.of(sizes, config, settings, row_tokens)
    return rows_plan.planned(choice.clips_per_batch, choice.resident_layers, choice.embedding_waits)


@dataclass(frozen=True, slots=True)
class _RowsPlan:
    """What weights, a prefill and each row take."""

    sizes: LanguageSizes
    prefill: int
    cached: int
    logits: int

    @classmethod
    def of(
        cls, sizes: LanguageSizes, config: Mapping[str, Any], settings: Settings, row_tokens: int
    ) -> Self:
        # Where a matrix meets many rows it is multiplied in 16 bits, dequantised for the moment.
        prefill = prefill_bytes(config, settings, row_tokens) + 2 * sizes.largest_matrix
        cached = kv_bytes(config, settings, row_tokens)
        return cls(sizes, prefill, cached, logit_bytes(config))

    def planned(self, rows: int, resident: int, embedding_waits: bool) -> StagePlan:
        """Plan for some rows in hand and the video part of the clip that comes next."""
        sizes = self.sizes
        held = resident + (resident < sizes.num_layers)  # the one that passes through
        weights = held * sizes.layer_bytes + sizes.head_bytes + sizes.other_bytes
        weights += 0 if embedding_waits else sizes.embedding_bytes
        return StagePlan(
            weights, self.prefill, (rows + 1) * self.cached, logits_bytes=rows * self.logits
        )

    def most_rows(self, usable: int, resident: int, embedding_waits: bool) -> int:
        empty = self.planned(0, resident, embedding_waits).peak_bytes
        return (usable - empty) // (self.cached + self.logits)

    def reason(self, resident: int, embedding_waits: bool) -> str:
        sizes = self.sizes
        kept = f"all weights ({format_bytes(sizes.total_bytes)}) stay"
        if embedding_waits:
            kept = f"the embedding ({format_bytes(sizes.embedding_bytes)}) waits in main memory"
        if resident < sizes.num_layers:
            layer = format_bytes(sizes.layer_bytes)
            kept += f"; of {sizes.num_layers} layers of {layer}, {resident} stay and the others "
            kept += "are fetched at each step"
        row = f"{format_bytes(self.cached)} of keys and values a row"
        return f"{kept}; {row}, {format_bytes(self.prefill)} to prefill one"

    def least(self, smallest: int) -> str:
        return f"one layer, what stays beside it, and one row take {format_bytes(smallest)}"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a stage is expected to hold at its peak, in bytes, besides the bare process."""

    weights_bytes: int
    activations_bytes: int
    cache_bytes: int = 0
    """Keys and values of the rows in hand."""
    logits_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """Sum of the parts."""
        held = self.weights_bytes + self.cache_bytes
        return held + self.activations_bytes + self.logits_bytes
