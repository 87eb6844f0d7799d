"""How far quantised weights are from the originals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cogcache.errors import QuantizationError
from cogcache.models.quantization.layers import dequantized, kind_of, linear_layers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from cogcache.models.checkpoints.checkpoint import Checkpoint

SAMPLED_LAYERS = 4
ROWS_COMPARED = 1024


def sampled_error(
    model: PreTrainedModel,
    paths: list[str],
    sources: Mapping[str, str],
    checkpoint: Checkpoint,
    some_must_be: bool,
) -> float:
    """Return the largest error of a sample of layers, the first to the last, and of the head.

    Layers cut from a fused tensor go first: at an even step all of the sample could be such.
    """
    head = _head_sources(model, sources)
    there = [path for path in paths if model.get_submodule(path).weight.numel()]
    candidates = comparable(model, there, sources, checkpoint)
    if not candidates and some_must_be:
        problem = f"none of {len(paths)} quantised layers can be compared with {checkpoint.model}"
        raise QuantizationError(problem, "use --quantization none, or report the model")
    ends = SAMPLED_LAYERS - 1
    chosen = {step * (len(candidates) - 1) // ends for step in range(SAMPLED_LAYERS)}
    sample = [candidates[index] for index in sorted(chosen)] if candidates else []
    return worst_error(model, [*sample, *head], {**sources, **head}, checkpoint)


def _head_sources(model: PreTrainedModel, sources: Mapping[str, str]) -> dict[str, str]:
    """Return the first part of a quantised head and what the checkpoint calls the whole of it."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    paths = {id(module): path for path, module in model.named_modules()}
    if head is None or not (parts := [m for _, m in linear_layers(head) if kind_of(m) != "none"]):
        return {}
    names = (f"{paths.get(id(end))}.weight" for end in (head, embedding))
    source = next((sources[name] for name in names if name in sources), None)
    return {f"{paths[id(parts[0])]}.weight": source} if source else {}


def comparable(
    model: nn.Module, paths: Sequence[str], sources: Mapping[str, str], checkpoint: Checkpoint
) -> list[str]:
    """Return the weights of those layers that are whole tensors on disk."""
    described = checkpoint.tensors(set(sources.values()))
    return [
        f"{path}.weight"
        for path, module in linear_layers(model)
        if path in paths
        and (source := sources.get(f"{path}.weight"))
        and described[source].shape == (module.out_features, module.in_features)
    ]


def worst_error(
    model: nn.Module, names: Sequence[str], sources: Mapping[str, str], checkpoint: Checkpoint
) -> float:
    """Return the largest relative (Frobenius) error of some weights against the originals."""
    errors = [0.0]
    for name in names:
        rows, original = checkpoint.originals(sources[name])
        stored = dequantized(model.get_submodule(name.removesuffix(".weight")))
        if not isinstance(rows, slice):
            rows = [row for row in rows if row < len(stored)]
        kept = stored[rows]
        # Of a head in parts the first is compared with as many rows.
        errors.append(_relative_error(kept, original[: len(kept)]))
    return max(errors)


def _relative_error(stored: Tensor, original: Tensor) -> float:
    """Compare two matrices, some rows at a time: in float32 they may be a GiB each."""
    difference = size = 0.0
    for first in range(0, len(stored), ROWS_COMPARED):
        expected = original[first : first + ROWS_COMPARED].float()
        found = stored[first : first + ROWS_COMPARED].cpu().float()
        difference += float((found - expected).square().sum())
        size += float(expected.square().sum())
    return math.sqrt(difference / size)
