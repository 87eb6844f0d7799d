"""The plan a user asks for: halves, disk, and what fits into which memory."""

from __future__ import annotations

from typing import Any

from cogcache.budget import (
    LanguageChoice,
    VisionChoice,
    choose_language,
    choose_vision,
    usable_bytes,
    whole_bytes,
)
from cogcache.checkpoint import Checkpoint
from cogcache.config import Settings
from cogcache.devices import free_bytes, pick_device
from cogcache.models.halves import WholeModel
from cogcache.models.partition import Half
from cogcache.models.registry import family_of
from cogcache.models.sizes import HalfSizes, half_sizes
from cogcache.plan import ITEM_BYTES, feature_bytes, language_weight_bytes, prefix_bytes, row_tokens
from cogcache.units import GIB, format_bytes, parse_bytes

HALVES: tuple[Half, Half] = ("vision", "language")
USUAL_GIB = (4, 6, 8, 12, 16, 24, 48)
"""Memories that cards are sold with."""


def make_plan(settings: Settings, frames: int, clips: int) -> dict[str, Any]:
    """Plan both stages for the memory that `settings` give, or for the usual cards.

    Args:
        settings: model, precisions, batch sizes; `memory` other than `auto` plans for it alone.
        frames: frames of a clip.
        clips: how many clips the disk is planned for.

    Returns:
        `facts`, lines about the model, and `memories`, a row for each memory.
    """
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    family = family.at(settings.vision.cache_point)
    whole = WholeModel.of(family.checkpoint, **family.partition_settings())
    sizes = {half: half_sizes(whole.checkpoint, whole.partition, half) for half in HALVES}
    config = family.full_config()
    memories = {f"{gib} GiB": gib * GIB for gib in USUAL_GIB}
    device = pick_device(settings.device)
    if settings.memory != "auto":
        memories = {settings.memory: parse_bytes(settings.memory)}
    else:
        memories[f"free here ({device})"] = free_bytes(device)
    tokens = row_tokens(config, frames)
    rows = []
    for name, memory_bytes in memories.items():
        usable = usable_bytes(memory_bytes, on_device=True)
        vision = choose_vision(sizes["vision"], config, settings, usable)
        language = choose_language(sizes["language"], config, settings, usable, tokens)
        rows.append(_row(name, vision, language))
    return {"facts": _facts(sizes, config, settings, frames, clips), "memories": rows}


def _row(name: str, vision: VisionChoice, language: LanguageChoice) -> dict[str, Any]:
    """One memory with what was chosen for both stages, in words and in bytes."""
    resident, total = vision.resident_layers, vision.num_layers
    placed = "resident" if resident == total else f"{resident} of {total} blocks resident"
    too_small = [
        f"stage {number} needs {format_bytes(_needed(choice))} or more"
        for number, choice in (("one", vision), ("two", language))
        if not choice.fits
    ]
    return {
        "memory": name,
        "vision": placed if vision.fits else "does not fit",
        "frames_per_batch": vision.frames_per_batch if vision.fits else None,
        "vision_peak": format_bytes(vision.plan.peak_bytes) if vision.fits else None,
        "language": f"{language.clips_per_batch} rows" if language.fits else "does not fit",
        "language_peak": format_bytes(language.plan.peak_bytes) if language.fits else None,
        "vision_peak_bytes": vision.plan.peak_bytes,
        "vision_smallest_bytes": _needed(vision),
        "vision_reason": vision.reason,
        "language_peak_bytes": language.plan.peak_bytes,
        "language_smallest_bytes": _needed(language),
        "language_reason": language.reason,
        "reason": "; ".join(too_small),
    }


def _needed(choice: VisionChoice | LanguageChoice) -> int:
    return whole_bytes(choice.smallest_bytes, on_device=True)


def _facts(
    sizes: dict[Half, HalfSizes], config: Any, settings: Settings, frames: int, clips: int
) -> list[str]:
    vision_bytes = sizes["vision"].num_parameters * ITEM_BYTES[settings.vision.vision_dtype]
    language = language_weight_bytes(sizes["language"].num_parameters, config, settings)
    whole = sum(half.num_parameters for half in sizes.values()) * 2
    per_clip = feature_bytes(config, settings, frames)
    dtype, kind = settings.vision.vision_dtype, settings.language.quantization
    lines = [
        f"{settings.model}: the whole model in bf16 is {format_bytes(whole)}",
        f"  vision half, {dtype}: {format_bytes(vision_bytes)}",
        f"  language half, {kind}: {format_bytes(language)}",
    ]
    if per_clip:
        total = format_bytes(per_clip * clips)
        lines.append(
            f"  features of a clip of {frames} frames: {format_bytes(per_clip)} before "
            f"compression; of {clips:,} clips: {total}"
        )
    prefix = prefix_bytes(config, settings, frames)
    lines.append(
        f"  with --keep-prefix, {format_bytes(prefix)} a clip on the disk besides; of {clips:,} "
        f"clips: {format_bytes(prefix * clips)}"
    )
    return lines
