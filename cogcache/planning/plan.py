"""The plan that `cogcache plan` prints: the halves, disk, time, and what fits which memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from cogcache.models import (
    ITEM_BYTES,
    Checkpoint,
    Family,
    HalfSizes,
    Kind,
    LanguageSizes,
    Quantization,
    SplitCheckpoint,
    WholeModel,
    adapter_bytes,
    check_int4,
    choose_quantization,
    family_of,
    half_sizes,
    is_stored,
    language_sizes,
)
from cogcache.planning.choices import (
    DEVICE_CONTEXT_BYTES,
    LanguageChoice,
    VisionChoice,
    choose_language,
    choose_vision,
    usable_bytes,
    whole_bytes,
)
from cogcache.planning.clip import DEFAULT_SIZE, PlannedClip, Size, planned_clip
from cogcache.planning.estimates import positions_of, prefix_bytes
from cogcache.planning.hours import TWO_CORES, ClipWork, hours_row
from cogcache.settings import Settings
from cogcache.system import free_bytes, pick_device, sample
from cogcache.units import GIB, format_bytes, parse_bytes

USUAL_GIB = (4, 6, 8, 12, 16, 24, 48)
"""Memories that cards are sold with."""
CAPTION_BYTES = 2000
"""What a caption takes in the catalog, its index for searching included."""
KINDS: tuple[Kind, ...] = ("none", "int8", "nf4", "int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is planned for."""

    frames: int = 24
    """Of a clip."""
    prompts: int = 1
    """Of each clip."""
    clips: int = 1000
    """For the disk and the time."""
    size: Size = DEFAULT_SIZE
    """Width and height of the videos' frames."""


@dataclass(frozen=True)
class _Model:
    """A model at one of its cache points, before anything of it is loaded."""

    family: Family
    settings: Settings
    job: Job

    @cached_property
    def clip(self) -> PlannedClip:
        return planned_clip(self.family, self.config, self.settings, self.job.frames, self.job.size)

    @cached_property
    def whole(self) -> WholeModel:
        overrides = self.family.config_overrides(self.settings.language)
        return WholeModel.of(self.family.checkpoint, **overrides)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return self.family.full_config()

    @cached_property
    def vision(self) -> HalfSizes:
        return half_sizes(self.whole.checkpoint, self.whole.partition, "vision")

    @cached_property
    def language(self) -> HalfSizes:
        return half_sizes(self.whole.checkpoint, self.whole.partition, "language")

    def language_held(self, quantization: Quantization, dtype: str) -> LanguageSizes:
        return language_sizes(
            self.whole.meta,
            self.whole.partition.modules,
            quantization,
            ITEM_BYTES[dtype],
            on_cpu=self.settings.device == "cpu",
            adapter_bytes=adapter_bytes(self.settings.language.adapter),
        )

    @cached_property
    def asked(self) -> LanguageSizes:
        language = self.settings.language
        return self.language_held(Quantization.of(language), language.compute_dtype)

    def check_stored(self) -> None:
        """Refuse a split of other precisions than those asked for, as the stages do."""
        names, language = self.whole.partition.names, self.settings.language
        is_stored(self.whole, names("vision"), self.settings.vision.vision_dtype)
        quantization = Quantization.of(language)
        check_int4(self.whole.meta, quantization, self.settings.device)
        is_stored(self.whole, names("language"), language.compute_dtype, quantization)

    def choices(self, usable: int) -> tuple[VisionChoice, LanguageChoice]:
        positions, tokens = self.clip.frame_positions, self.clip.row_tokens
        vision = choose_vision(self.vision, self.config, self.settings, usable, positions)
        return vision, choose_language(self.asked, self.config, self.settings, usable, tokens)

    @property
    def work(self) -> ClipWork:
        clip = self.clip
        positions = clip.frame_positions or positions_of(self.config.get("vision_config", {}))
        return ClipWork(
            vision_parameters=self.vision.num_parameters,
            language_parameters=self.language.num_parameters,
            patches=positions * clip.frames,
            row_tokens=clip.row_tokens,
            prompts=self.job.prompts,
        )


@dataclass(frozen=True, slots=True)
class _Memory:
    """A memory to plan for."""

    size_bytes: int
    on_device: bool = True
    held_bytes: int = 0
    """By the process before any weight, where it is the whole process' memory: on the CPU."""

    @property
    def usable(self) -> int:
        return usable_bytes(self.size_bytes - self.held_bytes, on_device=self.on_device)

    def least(self, usable: int) -> int:
        """Return the size at which `usable` may be planned with."""
        return whole_bytes(usable, on_device=self.on_device) + self.held_bytes

    def facts(self) -> dict[str, Any]:
        """Return the size, and what is left free of it and why."""
        held = f"{format_bytes(self.held_bytes)} of the process itself, and "
        driver = f"{format_bytes(DEVICE_CONTEXT_BYTES)} of the driver's own, and "
        reason = driver if self.on_device else held if self.held_bytes else ""
        return {
            "memory_bytes": self.size_bytes,
            "margin_bytes": self.size_bytes - max(self.usable, 0),
            "margin_reason": f"{reason}5% for fragments of the allocator",
        }


def make_plan(settings: Settings, job: Job) -> dict[str, Any]:
    """Plan both stages for the memory that `settings` give, or for the usual cards.

    Args:
        settings: model, precisions, batch sizes; `memory` other than `auto` plans for it alone.
        job: the clips that are planned for.

    Returns:
        `model`, `halves` (each at every precision), `clip`, `disk` (for each cache point),
        `hours`, and `memories`, what was chosen for each memory and why. Bytes are whole numbers.

    Raises:
        CogcacheError: there is no such checkpoint, or it is a split of other precisions.
    """
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    settings = _with_kind(settings, family)
    points = {point: _Model(family.at(point), settings, job) for point in family.cache_points}
    model = points[family.at(settings.vision.cache_point).cache_point]
    model.check_stored()
    rows = []
    for name, memory in _memories(model).items():
        chosen = {point: each.choices(memory.usable) for point, each in points.items()}
        vision, language = chosen[model.family.cache_point]
        rows.append(
            {
                "memory": name,
                **memory.facts(),
                "vision": _stage(vision, memory) | {"frames_per_batch": vision.frames_per_batch},
                "language": _stage(language, memory)
                | {
                    "clips_per_batch": language.clips_per_batch,
                    "embedding_waits": language.embedding_waits,
                    "logits_bytes": language.plan.logits_bytes,
                },
                **_cache_point(model.family.cache_point, chosen),
            }
        )
    return {
        "model": settings.model,
        "whole_bytes": 2 * (model.vision.num_parameters + model.language.num_parameters),
        "halves": _halves(model),
        "clip": _clip(model),
        "disk": [_disk(each) for each in points.values()],
        "hours": hours_row(model.work, TWO_CORES, job.clips),
        "memories": rows,
    }


def _with_kind(settings: Settings, family: Family) -> Settings:
    """Put a kind in place of `auto`: of cards NF4; int4 is planned for the CPU, where it runs."""
    language = settings.language
    is_known = settings.device == "cpu" or isinstance(family.checkpoint, SplitCheckpoint)
    if language.quantization == "auto" and is_known:
        return choose_quantization(settings, family).settings
    if language.quantization == "auto":
        known = language.model_copy(update={"quantization": Quantization.of(language).kind})
        return settings.model_copy(update={"language": known})
    if "int4" in (language.quantization, language.head_quantization):
        return settings.model_copy(update={"device": pick_device(settings.device)})
    return settings


def _memories(model: _Model) -> dict[str, _Memory]:
    """Return the memories to plan for: of cards, unless the device is said to be the CPU."""
    settings, on_device = model.settings, model.settings.device != "cpu"
    # A stage imports what the layout of the model does, and counts it as this process would.
    held = 0 if on_device or not model.whole else sample().host_bytes
    if settings.memory != "auto":
        return {settings.memory: _Memory(parse_bytes(settings.memory), on_device, held)}
    device = pick_device(settings.device)
    usual = {f"{gib} GiB": _Memory(gib * GIB, on_device, held) for gib in USUAL_GIB}
    return usual | {f"free here ({device})": _Memory(free_bytes(device), device != "cpu")}


def _stage(choice: VisionChoice | LanguageChoice, memory: _Memory) -> dict[str, Any]:
    """What was chosen for one stage, in bytes."""
    return {
        "fits": choice.fits,
        "resident_layers": choice.resident_layers,
        "num_layers": choice.num_layers,
        **asdict(choice.plan),
        "peak_bytes": choice.plan.peak_bytes,
        "smallest_bytes": memory.least(choice.smallest_bytes),
        "reason": choice.reason,
    }


def _cache_point(
    asked: str, chosen: Mapping[str, tuple[VisionChoice, LanguageChoice]]
) -> dict[str, Any]:
    """Say which cache point suits a memory, and why."""

    def fit(point: str) -> tuple[bool, int]:
        vision, language = chosen[point]
        return vision.fits and language.fits, vision.resident_layers + language.resident_layers

    best = max(chosen, key=lambda point: (fit(point), point == asked))
    reason = "it is what the settings say, and no other keeps more in this memory"
    if len(chosen) == 1:
        reason = "the family has no other"
    elif best != asked:
        reason = f"more of the halves stays in this memory than with {asked}"
    return {"cache_point": best, "cache_point_reason": reason}


def _halves(model: _Model) -> list[dict[str, Any]]:
    """Each half at each precision."""
    rows = [
        {
            "half": "vision",
            "precision": dtype,
            "weights_bytes": model.vision.num_parameters * item,
            "asked": dtype == model.settings.vision.vision_dtype,
        }
        for dtype, item in ITEM_BYTES.items()
    ]
    language = model.settings.language
    for kind in KINDS:
        for dtype in ITEM_BYTES if kind == "none" else (language.compute_dtype,):
            asked = replace(Quantization.of(language), kind=kind)
            held = model.language_held(asked, dtype)
            plain = model.language_held(Quantization(kind="none"), dtype)
            is_asked = kind == language.quantization and dtype == language.compute_dtype
            rows.append(
                {
                    "half": "language",
                    "precision": dtype if kind == "none" else kind,
                    "weights_bytes": held.total_bytes,
                    "of_it_embedding_bytes": held.embedding_bytes,
                    "of_it_head_bytes": held.head_bytes,
                    "of_it_not_quantised_bytes": held.plain_bytes,
                    "of_it_quantisation_bytes": held.scale_bytes,
                    "saved_bytes": plain.total_bytes - held.total_bytes,
                    "asked": is_asked,
                }
            )
    return rows


def _clip(model: _Model) -> dict[str, Any]:
    clip, prompts = model.clip, model.job.prompts
    tokens, number = clip.row_tokens, f"{prompts} prompts" if prompts > 1 else "1 prompt"
    size = f" of {clip.size[0]}x{clip.size[1]}" if clip.size else ""
    return {
        "frames": clip.frames,
        "frame_size": f"{clip.size[0]}x{clip.size[1]}" if clip.size else None,
        "prompts": prompts,
        "row_tokens": tokens,
        "reason": f"{clip.frames} frames{size}: {tokens:,} tokens a row; "
        f"the video part once for {number}",
        "over_context": _over_context(model, tokens),
    }


def _over_context(model: _Model, tokens: int) -> str | None:
    """Say where rows, with captions, are too long; None where they are not, or nobody knows."""
    context = (model.config.get("text_config") or model.config).get("max_position_embeddings")
    new = model.settings.generation.max_new_tokens
    if not context or tokens + new <= context:
        return None
    over = f"with {new:,} new ones that is more than the model's context of {context:,}"
    return f"{over}: take fewer frames, or fewer --max-new-tokens"


def _disk(model: _Model) -> dict[str, Any]:
    """What N clips take on the disk."""
    a_clip, clips = model.clip.features_bytes, model.job.clips
    prefix = prefix_bytes(model.config, model.settings, model.clip.row_tokens)
    return {
        "cache_point": model.family.cache_point,
        "clips": clips,
        "features_bytes_a_clip": a_clip,
        "features_bytes": None if a_clip is None else a_clip * clips,
        "captions_bytes": CAPTION_BYTES * model.job.prompts * clips,
        "keep_prefix_bytes_a_clip": prefix,
        "keep_prefix_bytes": prefix * clips,
    }
