"""Loads a half to fit a given memory; if memory runs out all the same, loads it smaller."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cogcache.errors import CogcacheError, ConfigError
from cogcache.models import (
    ITEM_BYTES,
    Adapter,
    Family,
    LanguageSizes,
    LoadedHalf,
    Offload,
    Quantization,
    WholeModel,
    adapter_bytes,
    compile_blocks,
    half_sizes,
    language_sizes,
    load_half,
    put_on,
    settle,
)
from cogcache.planning.choices import (
    LanguageChoice,
    StagePlan,
    VisionChoice,
    choose_language,
    choose_vision,
    plan_language,
    usable_bytes,
    whole_bytes,
)
from cogcache.settings import Settings
from cogcache.system import (
    blocks_given_back,
    free_bytes,
    give_back,
    pick_device,
    running_out,
    sample,
)
from cogcache.units import MIB, format_bytes, parse_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LESS = 0.75
"""What a half is planned to take, as a share of the last plan, where memory ran out in spite of
it."""
Choice = TypeVar("Choice", VisionChoice, LanguageChoice)
logger = logging.getLogger(__name__)


class Loader(Protocol[Choice]):
    """Chooses how a half fits into memory, and loads it so."""

    def first(self) -> Choice:
        """Choose for the memory that there is."""

    def less(self, choice: Choice) -> Choice | None:
        """Choose for less memory than a choice takes; None where there is nothing less."""

    def load(self, choice: Choice) -> LoadedHalf:
        """Load the half."""


@dataclass
class VisionLoader:
    """Loads the vision half as a choice says.

    Args:
        family: of the checkpoint, at the cache point.
        settings: device, memory, precision, and the most frames a pass.
    """

    family: Family
    settings: Settings

    @cached_property
    def whole(self) -> WholeModel:
        """The model before any weight is read."""
        return WholeModel.of(self.family.checkpoint, **self.family.partition_settings())

    @cached_property
    def _choose(self) -> Callable[[int], VisionChoice]:
        sizes = half_sizes(self.whole.checkpoint, self.whole.partition, "vision")
        return partial(choose_vision, sizes, self.family.full_config(), self.settings)

    def first(self) -> VisionChoice:
        """Choose for the memory that there is.

        Raises:
            ConfigError: not even one block with one frame fits.
        """
        return _first(self._choose, self.settings, "one")

    def less(self, choice: VisionChoice) -> VisionChoice | None:
        """Choose for less memory than a choice takes; None where there is nothing less."""
        # Compiled blocks cannot wait elsewhere.
        return None if self.settings.vision.compile else less(self._choose, choice)

    def load(self, choice: VisionChoice) -> LoadedHalf:
        """Load the half, and have its blocks compiled where that is asked for."""
        loaded = load_half(
            self.whole,
            "vision",
            dtype=_dtype(self.settings.vision.vision_dtype),
            device=pick_device(self.settings.device),
            offload=Offload(_waiting_from(choice)),
        )
        if self.settings.vision.compile:
            compile_blocks(loaded.model)
        return loaded


@dataclass
class LanguageLoader:
    """Loads the language half as a choice says.

    Args:
        family: of the checkpoint, at the cache point.
        settings: device, memory, precision, and the most rows a batch.
        row_tokens: of the longest row before its caption.
    """

    family: Family
    settings: Settings
    row_tokens: int

    @cached_property
    def whole(self) -> WholeModel:
        """The model before any weight is read."""
        overrides = self.family.config_overrides(self.settings.language)
        return WholeModel.of(self.family.checkpoint, **overrides)

    @cached_property
    def _sizes(self) -> LanguageSizes:
        language = self.settings.language
        return language_sizes(
            self.whole.meta,
            self.whole.partition.modules,
            Quantization.of(language),
            ITEM_BYTES[language.compute_dtype],
            on_cpu=pick_device(self.settings.device) == "cpu",
            adapter_bytes=adapter_bytes(language.adapter),
        )

    def _choose(self, usable: int) -> LanguageChoice:
        config = self.family.full_config()
        return choose_language(self._sizes, config, self.settings, usable, self.row_tokens)

    def planned(self, choice: LanguageChoice) -> StagePlan:
        """Plan a choice for rows of `row_tokens` as it is now."""
        config = self.family.full_config()
        return plan_language(choice, self._sizes, config, self.settings, self.row_tokens)

    def first(self) -> LanguageChoice:
        """Choose for the memory that there is.

        Raises:
            ConfigError: not even one layer with one row fits.
        """
        return _first(self._choose, self.settings, "two")

    def less(self, choice: LanguageChoice) -> LanguageChoice | None:
        """Choose for less memory than a choice takes; None where there is nothing less."""
        return less(self._choose, choice)

    def load(self, choice: LanguageChoice) -> LoadedHalf:
        """Load the half."""
        language = self.settings.language
        if language.adapter is not None and _waiting_from(choice) is not None:
            problem = "an adapter needs all layers of the language half in memory: " + choice.reason
            hint = "give more --memory, or merge the adapter with `cogcache split --adapter`"
            raise ConfigError(problem, hint)
        loaded = load_half(
            self.whole,
            "language",
            dtype=_dtype(language.compute_dtype),
            device=pick_device(self.settings.device),
            quantization=Quantization.of(language),
            offload=Offload(_waiting_from(choice), choice.embedding_waits),
        )
        with blocks_given_back():
            settle(loaded.model)
        if language.adapter is not None:
            put_on(loaded.model, Adapter.open(language.adapter))
        return loaded


@dataclass(frozen=True)
class LoadNotes:
    """What is to be said of one attempt to load a half."""

    base_bytes: int
    """What the process held before any weight: the interpreter and its libraries."""
    load_s: float
    notes: tuple[str, ...]
    """What was chosen, and why."""
    planned: StagePlan | None = None
    """None where memory ran out before the half was loaded; so are the fields below."""
    bytes_by_shard: Mapping[str, int] | None = None
    quantization: str | None = None


class Fitted(Generic[Choice]):
    """A half in memory; with less of it there once memory has run out.

    Args:
        loader: chooses and loads.
        note: is called with the notes of each attempt to load.

    Raises:
        ConfigError: not even the smallest choice fits.
        CogcacheError: memory runs out while the smallest choice is loaded.
    """

    def __init__(self, loader: Loader[Choice], note: Callable[[LoadNotes], None]) -> None:
        self.loader: Loader[Choice] = loader
        self._note = note
        self.choice: Choice = loader.first()
        # By now the model's classes are imported: they are no part of what the weights take.
        self._base_bytes = sample().host_bytes
        self.loaded: LoadedHalf | None = None
        if not self._load() and not self.make_room():
            raise CogcacheError("memory runs out while weights load", "give the stage more memory")

    @property
    def model(self) -> PreTrainedModel:
        """The half."""
        assert self.loaded is not None
        return self.loaded.model

    def make_room(self) -> bool:
        """Load anew with more of it elsewhere; False where there is nothing less to load.

        Whoever has the model must have let go of it.
        """
        while less := self.loader.less(self.choice):
            logger.warning("out of memory: loading anew, %s", less.reason)
            self.choice, self.loaded = less, None
            give_back()
            if self._load("memory ran out: loaded anew, with more of it elsewhere"):
                return True
        return False

    def _load(self, *why: str) -> bool:
        started_s = time.perf_counter()
        try:
            with running_out():
                self.loaded = self.loader.load(self.choice)
        finally:
            self._note(self._notes(time.perf_counter() - started_s, why))
        return self.loaded is not None

    def _notes(self, load_s: float, why: tuple[str, ...]) -> LoadNotes:
        if self.loaded is None:
            return LoadNotes(self._base_bytes, load_s, why)
        quantization = self.loaded.quantization
        return LoadNotes(
            self._base_bytes,
            load_s,
            (*why, self.choice.reason),
            planned=self.choice.plan,
            bytes_by_shard=dict(self.loaded.bytes_by_shard),
            quantization=quantization.summary() if quantization is not None else None,
        )


def memory_for(settings: Settings, device: str) -> int:
    """Return the memory that a stage may fill from now on, in bytes.

    On the CPU a given size is that of the whole process, so what its libraries already hold is
    taken off; `auto` takes what is free.
    """
    if settings.memory == "auto":
        return free_bytes(device)
    given = parse_bytes(settings.memory)
    return given - sample().host_bytes if device == "cpu" else given


def _first(choose: Callable[[int], Choice], settings: Settings, stage: str) -> Choice:
    device = pick_device(settings.device)
    given, on_device = memory_for(settings, device), device != "cpu"
    choice = choose(usable_bytes(given, on_device=on_device))
    if not choice.fits:
        needed = whole_bytes(choice.smallest_bytes, on_device=on_device)
        raise _too_little(settings.memory, given, needed, f"stage {stage}", choice.reason)
    return choice


def _too_little(memory: str, given: int, needed: int, what: str, reason: str) -> ConfigError:
    """Say what would do, of the same memory that was given: of all, or of what is free."""
    if memory == "auto":
        problem = f"{what} does not fit the {format_bytes(given)} that are free: {reason}"
        return ConfigError(problem, f"free {format_bytes(needed)} or more")
    taken = parse_bytes(memory) - given
    held = f", of which the process itself holds {format_bytes(taken)}" if taken else ""
    enough = f"{-(-(needed + taken) // MIB)}MiB"  # as an option takes it, rounded up
    problem = f"{what} does not fit {memory}{held}: {reason}"
    return ConfigError(problem, f"give --memory {enough} or more")


def less(choose: Callable[[int], Choice], choice: Choice) -> Choice | None:
    """Choose for less memory than a choice takes; None where there is nothing less."""
    found = choose(max(choice.smallest_bytes, int(LESS * choice.plan.peak_bytes)))
    return found if found.plan.peak_bytes < choice.plan.peak_bytes else None


def _waiting_from(choice: VisionChoice | LanguageChoice) -> int | None:
    all_stay = choice.resident_layers == choice.num_layers
    return None if all_stay else choice.resident_layers


def _dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
