"""The plan that `cogcache plan` prints: the halves, disk, time, and what fits which memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cogcache.errors import ConfigError
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
    stored_method,
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
from cogcache.planning.hours import TWO_CORES, ClipWork, PlannedHours, planned_hours
from cogcache.planning.planned import (
    ClipTokens,
    LanguageParts,
    Plan,
    PlannedDisk,
    PlannedHalf,
    PlannedMemory,
)
from cogcache.planning.vllm_memory import VllmMemory
from cogcache.settings import Settings
from cogcache.system import free_bytes, pick_device, sample
from cogcache.units import GIB, format_bytes, parse_bytes

USUAL_GIB = (4, 6, 8, 12, 16, 24, 48)
"""Memories that cards are sold with."""
CAPTION_BYTES = 2000
"""What a caption takes in the catalog, its index for searching included."""
KINDS: tuple[Kind, ...] = ("none", "int8", "nf4", "int4")
VLLM_KINDS: tuple[Kind, ...] = ("none", "int8", "fp8")


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

    def choices(self, memory: _Memory) -> tuple[VisionChoice, LanguageChoice]:
        positions, tokens, usable = self.clip.frame_positions, self.clip.row_tokens, memory.usable
        vision = choose_vision(self.vision, self.config, self.settings, usable, positions)
        if not self.settings.inference.is_vllm:
            language = choose_language(self.asked, self.config, self.settings, usable, tokens)
            return vision, language
        there = VllmMemory(
            sizes=self.asked,
            config=self.config,
            settings=self.settings,
            row_tokens=tokens,
            on_device=memory.on_device,
        )
        return vision, there.choose(memory.size_bytes, usable)

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

    @property
    def margin_bytes(self) -> int:
        """Return what is left free."""
        return self.size_bytes - max(self.usable, 0)

    @property
    def margin_reason(self) -> str:
        """Say why it is left free."""
        held = f"{format_bytes(self.held_bytes)} of the process itself, and "
        driver = f"{format_bytes(DEVICE_CONTEXT_BYTES)} of the driver's own, and "
        reason = driver if self.on_device else held if self.held_bytes else ""
        return f"{reason}5% for fragments of the allocator"


def make_plan(settings: Settings, job: Job) -> Plan:
    """Plan both stages for the memory that `settings` give, or for the usual cards.

    Args:
        settings: model, precisions, batch sizes; `memory` other than `auto` plans for it alone.
        job: the clips that are planned for.

    Returns:
        The halves at every precision, the clip, the disk at each cache point, the hours, and what
        was chosen for each memory and why.

    Raises:
        CogcacheError: there is no such checkpoint, or it is a split of other precisions, or its
            weights are stored in AWQ or the like.
    """
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    if (stored := stored_method(family.checkpoint)) is not None:
        problem = f"`plan` does not know what weights take that are stored in {stored}"
        raise ConfigError(problem, "name the model that it was made of, with --quantization none")
    settings = _with_kind(settings, family)
    points = {point: _Model(family.at(point), settings, job) for point in family.cache_points}
    model = points[family.at(settings.vision.cache_point).cache_point]
    model.check_stored()
    return Plan(
        model=settings.model,
        whole_bytes=2 * (model.vision.num_parameters + model.language.num_parameters),
        halves=(*_vision_halves(model), *_language_halves(model)),
        clip=_clip(model),
        disk=tuple(_disk(each) for each in points.values()),
        hours=_hours(model),
        memories=tuple(
            _in_memory(name, memory, points, model.family.cache_point)
            for name, memory in _memories(model).items()
        ),
    )


def _hours(model: _Model) -> PlannedHours:
    hours = planned_hours(model.work, TWO_CORES, model.job.clips)
    if not model.settings.inference.is_vllm:
        return hours
    told = f"stage two as on transformers, for vLLM nothing is known beforehand: {hours.unit_costs}"
    return replace(hours, unit_costs=told)


def _with_kind(settings: Settings, family: Family) -> Settings:
    """Put a kind in place of `auto`: of cards NF4; int4 is planned for the device at hand."""
    chosen = _chosen_kind(settings, family)
    if Quantization.of(chosen.language).has_int4:
        return chosen.model_copy(update={"device": pick_device(settings.device)})
    return chosen


def _chosen_kind(settings: Settings, family: Family) -> Settings:
    if settings.language.quantization != "auto":
        return settings
    of_vllm = settings.inference.is_vllm
    if of_vllm or settings.device == "cpu" or isinstance(family.checkpoint, SplitCheckpoint):
        return choose_quantization(settings, family).settings
    kind = Quantization.of(settings.language).kind
    language = settings.language.model_copy(update={"quantization": kind})
    return settings.model_copy(update={"language": language})


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


def _in_memory(
    name: str, memory: _Memory, points: Mapping[str, _Model], asked: str
) -> PlannedMemory:
    """Choose for one memory: at the cache point asked for, told which one would suit best."""
    chosen = {point: each.choices(memory) for point, each in points.items()}
    (vision, language), (best, reason) = chosen[asked], _cache_point(asked, chosen)
    return PlannedMemory(
        name=name,
        memory_bytes=memory.size_bytes,
        margin_bytes=memory.margin_bytes,
        margin_reason=memory.margin_reason,
        vision=vision,
        language=language,
        least_bytes={
            "vision": memory.least(vision.smallest_bytes),
            "language": memory.least(language.smallest_bytes),
        },
        cache_point=best,
        cache_point_reason=reason,
    )


def _cache_point(
    asked: str, chosen: Mapping[str, tuple[VisionChoice, LanguageChoice]]
) -> tuple[str, str]:
    """Return the cache point that suits a memory best, and why."""

    def fit(point: str) -> tuple[bool, int]:
        vision, language = chosen[point]
        return vision.fits and language.fits, vision.resident_layers + language.resident_layers

    best = max(chosen, key=lambda point: (fit(point), point == asked))
    reason = "it is what the settings say, and no other keeps more in this memory"
    if len(chosen) == 1:
        reason = "the family has no other"
    elif best != asked:
        reason = f"more of the halves stays in this memory than with {asked}"
    return best, reason


def _vision_halves(model: _Model) -> Iterator[PlannedHalf]:
    for dtype, item_bytes in ITEM_BYTES.items():
        yield PlannedHalf(
            half="vision",
            precision=dtype,
            weights_bytes=model.vision.num_parameters * item_bytes,
            is_asked=dtype == model.settings.vision.vision_dtype,
        )


def _language_halves(model: _Model) -> Iterator[PlannedHalf]:
    language = model.settings.language
    for kind in VLLM_KINDS if model.settings.inference.is_vllm else KINDS:
        for dtype in ITEM_BYTES if kind == "none" else (language.compute_dtype,):
            asked = replace(Quantization.of(language), kind=kind)
            held = model.language_held(asked, dtype)
            plain = model.language_held(Quantization(kind="none"), dtype)
            parts = LanguageParts(
                embedding_bytes=held.embedding_bytes,
                head_bytes=held.head_bytes,
                not_quantised_bytes=held.plain_bytes,
                quantisation_bytes=held.scale_bytes,
                saved_bytes=plain.total_bytes - held.total_bytes,
            )
            yield PlannedHalf(
                half="language",
                precision=dtype if kind == "none" else kind,
                weights_bytes=held.total_bytes,
                is_asked=kind == language.quantization and dtype == language.compute_dtype,
                parts=parts,
            )


def _clip(model: _Model) -> ClipTokens:
    clip = model.clip
    return ClipTokens(
        frames=clip.frames,
        size=clip.size,
        prompts=model.job.prompts,
        row_tokens=clip.row_tokens,
        over_context=_over_context(model, clip.row_tokens),
    )


def _over_context(model: _Model, tokens: int) -> str | None:
    """Say where rows, with captions, are too long; None where they are not, or nobody knows."""
    context = (model.config.get("text_config") or model.config).get("max_position_embeddings")
    new = model.settings.generation.max_new_tokens
    if not context or tokens + new <= context:
        return None
    over = f"with {new:,} new ones that is more than the model's context of {context:,}"
    return f"{over}: take fewer frames, or fewer --max-new-tokens"


def _disk(model: _Model) -> PlannedDisk:
    job, clip = model.job, model.clip
    return PlannedDisk(
        cache_point=model.family.cache_point,
        clips=job.clips,
        clip_features_bytes=clip.features_bytes,
        captions_bytes=CAPTION_BYTES * job.prompts * job.clips,
        clip_prefix_bytes=prefix_bytes(model.config, model.settings, clip.row_tokens),
    )
