"""What vLLM's worker takes: weights, one pass over many tokens, and blocks of keys and values.

On a GPU vLLM fills a share of the memory: what weights and a pass leave of it becomes blocks. On a
CPU the blocks are as large as the settings say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

from cogcache.models import (
    ITEM_BYTES,
    Family,
    LanguageSizes,
    Quantization,
    WholeModel,
    language_sizes,
)
from cogcache.planning.choices import LanguageChoice, StagePlan, usable_bytes, whole_bytes
from cogcache.planning.estimates import kv_bytes_a_token, logit_bytes, prefill_bytes
from cogcache.settings import Settings
from cogcache.units import GIB, format_bytes

BLOCK_TOKENS: Final = {"cpu": 32, "gpu": 16}
"""Tokens whose keys and values share a block."""
PASS_TOKENS: Final = {"cpu": 4096, "gpu": 8192}
"""Most tokens of one pass: what vLLM 0.32 takes where nobody says otherwise."""


@dataclass(frozen=True, kw_only=True)
class VllmMemory:
    """A language half in vLLM's worker.

    Args:
        sizes: of the language half as it is held.
        config: the model's.
        settings: rows, new tokens, and what vLLM may fill.
        row_tokens: of the longest prompt.
        on_device: whether it runs on a GPU.
    """

    sizes: LanguageSizes
    config: Mapping[str, Any]
    settings: Settings
    row_tokens: int
    on_device: bool

    @classmethod
    def of(cls, family: Family, settings: Settings, row_tokens: int, *, on_device: bool) -> Self:
        """Add up the language half of a checkpoint; nothing of it is loaded."""
        language = settings.language
        whole = WholeModel.of(family.checkpoint, **family.config_overrides(language))
        sizes = language_sizes(
            whole.meta,
            whole.partition.modules,
            Quantization.of(language),
            ITEM_BYTES[language.compute_dtype],
            on_cpu=not on_device,
        )
        return cls(
            sizes=sizes,
            config=family.full_config(),
            settings=settings,
            row_tokens=row_tokens,
            on_device=on_device,
        )

    def choose(self, memory_bytes: int, usable: int) -> LanguageChoice:
        """Say what fits into a memory.

        Args:
            memory_bytes: all of it; on a GPU vLLM takes its share of that.
            usable: what may be planned with.
        """
        budget = self._budget(memory_bytes, usable)
        blocks = self._blocks(budget)
        rows = min(self.settings.language.clips_per_batch, blocks // self._row_blocks)
        fits = rows >= 1 and self._without_blocks + blocks * self._block_bytes <= budget
        return LanguageChoice(
            fits=fits,
            resident_layers=self.sizes.num_layers,
            num_layers=self.sizes.num_layers,
            embedding_waits=False,
            clips_per_batch=max(1, rows),
            plan=self.plan(blocks),
            smallest_bytes=self._smallest(),
            reason=self._reason(blocks),
        )

    def plan_for(self, tokens: int) -> StagePlan:
        """Return what blocks for so many tokens and all beside them take."""
        return self.plan(tokens // BLOCK_TOKENS[self._kind])

    def plan(self, blocks: int) -> StagePlan:
        """Return what so many blocks and all beside them take."""
        return StagePlan(
            self.sizes.total_bytes,
            self._pass_bytes,
            blocks * self._block_bytes,
            logits_bytes=self._logits_bytes,
        )

    @property
    def blocks_on_cpu(self) -> int:
        """How many blocks there are where the settings say their bytes."""
        return int(self.settings.inference.kv_cache_gib * GIB) // self._block_bytes

    @cached_property
    def _kind(self) -> str:
        return "gpu" if self.on_device else "cpu"

    @cached_property
    def _block_bytes(self) -> int:
        return BLOCK_TOKENS[self._kind] * kv_bytes_a_token(self.config, self.settings)

    @cached_property
    def _row_blocks(self) -> int:
        tokens = self.row_tokens + self.settings.generation.max_new_tokens
        return math.ceil(tokens / BLOCK_TOKENS[self._kind])

    @cached_property
    def _pass_bytes(self) -> int:
        """Return what the largest pass takes: rows that are prefilled together."""
        rows = self.settings.language.clips_per_batch * self.row_tokens
        tokens = PASS_TOKENS[self._kind] if self.on_device else min(PASS_TOKENS[self._kind], rows)
        return prefill_bytes(self.config, self.settings, tokens)

    @property
    def _logits_bytes(self) -> int:
        return self.settings.language.clips_per_batch * logit_bytes(self.config)

    @property
    def _without_blocks(self) -> int:
        return self.plan(0).peak_bytes

    def _budget(self, memory_bytes: int, usable: int) -> int:
        if not self.on_device:
            return usable
        share = self.settings.inference.gpu_memory_share
        return usable_bytes(int(memory_bytes * share), on_device=True)

    def _blocks(self, budget: int) -> int:
        if not self.on_device:
            return self.blocks_on_cpu
        return max(0, budget - self._without_blocks) // self._block_bytes

    def _smallest(self) -> int:
        """Return the least that must be usable: with all blocks on a CPU, with a row's on a GPU."""
        if not self.on_device:
            return self._without_blocks + self.blocks_on_cpu * self._block_bytes
        needed = self._without_blocks + self._row_blocks * self._block_bytes
        share = self.settings.inference.gpu_memory_share
        return usable_bytes(math.ceil(whole_bytes(needed, on_device=True) / share), on_device=True)

    def _reason(self, blocks: int) -> str:
        inference = self.settings.inference
        per_block = BLOCK_TOKENS[self._kind]
        said = f"--kv-cache-gib {inference.kv_cache_gib:g}"
        if self.on_device:
            said = f"what --gpu-memory-share {inference.gpu_memory_share:g} leaves"
        return (
            f"vLLM: weights {format_bytes(self.sizes.total_bytes)}; {blocks:,} blocks of "
            f"{per_block} tokens ({format_bytes(self._block_bytes)} each), {said}; a row takes "
            f"{self._row_blocks:,} of them, its video part is shared by the clip's prompts"
        )
