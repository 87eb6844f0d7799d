"""The token probabilities of a language half at each place of a given caption.

Imported where models run; it needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cogcache.generation.requests import take_positions
from cogcache.models import Family, PromptRow, raised_products


@torch.inference_mode()
def log_probabilities(
    model: PreTrainedModel, family: Family, row: PromptRow, tokens: Sequence[int]
) -> Tensor:
    """Return the log probabilities of every token at each place of a caption, and behind it.

    Args:
        model: the language half.
        family: lays rows out.
        row: a clip with a prompt.
        tokens: the caption, without what ends it.

    Returns:
        float32 [len(tokens) + 1, V], on the CPU.
    """
    inputs = family.model_inputs([followed_by(row, tokens)], model)
    # The positions that `generate` and our own loop give these tokens: those of a longer prompt.
    positions = take_positions(inputs, model)
    with raised_products(model):
        output = model(
            **inputs, position_ids=positions, use_cache=False, logits_to_keep=len(tokens) + 1
        )
    return torch.log_softmax(output.logits[0].float(), dim=-1).cpu()


def followed_by(row: PromptRow, tokens: Sequence[int]) -> PromptRow:
    """Return a row with the tokens of a caption behind it."""
    sequences = {
        name: torch.cat((each, torch.tensor(tokens) if name == "input_ids" else _zeros(tokens)))
        for name, each in row.sequences.items()
    }
    return PromptRow(row.features, sequences)


def _zeros(tokens: Sequence[int]) -> Tensor:
    return torch.zeros(len(tokens), dtype=torch.long)
