"""Chooses the next token of each row, independently of the other rows.

Imported where rows are decoded; it needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cogcache.settings import Generation

if TYPE_CHECKING:
    from cogcache.generation.json_grammar import Grammar


class Chooser:
    """Chooses the tokens of one row; drawn ones come from random numbers of its own.

    Args:
        generation: how tokens are chosen.
        seed: of the random numbers.
        prompt_ids: the row's tokens so far. int64 [L].
        grammar: what the row has to follow.
    """

    def __init__(
        self, generation: Generation, seed: int, prompt_ids: Tensor, grammar: Grammar | None = None
    ) -> None:
        self.generation = generation
        self.prompt_ids = prompt_ids.cpu()
        # On the CPU, so that a seed gives the same caption whatever the device is.
        self.random = torch.Generator().manual_seed(seed)
        self.processors = _processors(generation)
        if grammar:  # before all others: the likeliest are to be chosen among what may come
            self.processors.insert(0, grammar.processor(len(prompt_ids)))

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether nothing but the logits decides."""
        return not self.processors and not self.generation.do_sample

    def choose(self, logits: Tensor, tokens: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: of the next token. float32 [V].
            tokens: those the row has made so far.
        """
        made = torch.tensor(tokens, dtype=torch.long)
        ids = torch.cat((self.prompt_ids, made))[None]
        scores = self.processors(ids, logits.cpu()[None])[0]
        if not self.generation.do_sample:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.random))


def choose_all(logits: Tensor, choosers: Sequence[Chooser], made: Sequence[list[int]]) -> list[int]:
    """Return the next token of each row. `logits` float [B, V]."""
    if all(chooser.takes_the_likeliest for chooser in choosers):
        likeliest: list[int] = logits.argmax(-1).tolist()
        return likeliest
    rows = zip(choosers, logits.float(), made, strict=True)
    return [chooser.choose(row, tokens) for chooser, row, tokens in rows]


def _processors(generation: Generation) -> LogitsProcessorList:
    """Return what transformers would put before the choice, in its order."""
    found = LogitsProcessorList()
    if generation.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(generation.repetition_penalty))
    if not generation.do_sample:
        return found
    if generation.temperature != 1:
        found.append(TemperatureLogitsWarper(generation.temperature))
    if generation.top_k:
        found.append(TopKLogitsWarper(generation.top_k))
    if generation.top_p < 1:
        found.append(TopPLogitsWarper(generation.top_p))
    return found
