"""Rows to tokens: the one place that calls `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cogcache.config import Generation
from cogcache.models.family import Family, Row

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

DRAWING = ("temperature", "top_p", "top_k")


def generate(
    model: PreTrainedModel, family: Family, rows: Sequence[Row], generation: Generation
) -> list[list[int]]:
    """Generate for a left-padded batch of rows.

    Args:
        model: the language half, or the whole model.
        family: lays the batch out.
        rows: clips with prompts, of any lengths.
        generation: how tokens are chosen.

    Returns:
        For each row its new tokens, up to and with the one that ends it; without an end there
        are `max_new_tokens` of them.
    """
    import torch

    if generation.do_sample:
        torch.manual_seed(generation.seed)
    inputs = family.model_inputs(rows, model)
    with torch.inference_mode():
        output = model.generate(**inputs, generation_config=generation_config(family, generation))
    new_tokens = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [_ended(tokens, family.stop_ids) for tokens in new_tokens]


def generation_config(family: Family, generation: Generation) -> GenerationConfig:
    """Return the settings as transformers takes them."""
    from transformers import GenerationConfig

    drawing: dict[str, Any] = {name: getattr(generation, name) for name in DRAWING}
    return GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        do_sample=generation.do_sample,
        num_beams=generation.num_beams,
        repetition_penalty=generation.repetition_penalty,
        eos_token_id=list(family.stop_ids),
        pad_token_id=family.pad_id,
        **(drawing if generation.do_sample else {}),
    )


def _ended(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    """Cut off what only fills the row up to the longest of its batch."""
    for position, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: position + 1]
    return tokens
