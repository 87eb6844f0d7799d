"""An output head in 8 or 4 bits, which bitsandbytes leaves as it is while it loads a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cogcache.errors import QuantizationError
from cogcache.models.quantization.layers import Quantization, fits_kernel, quantized_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PART_ROWS = 16_384
"""Rows of a part, a multiple of those that the 4-bit product on the CPU takes together."""


class HeadInParts(nn.Module):
    """A quantised output head whose rows lie in several layers.

    In one it would take ten times its size for a moment: bitsandbytes lays 4-bit weights out
    for the CPU by way of some seven bytes a weight, 3.4 GiB for a vocabulary of 128,256.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states [..., hidden]. Shape [..., vocabulary]."""
        return torch.cat([part(hidden) for part in self.parts], dim=-1)


def quantize_head(
    model: PreTrainedModel, weight: Tensor, quantization: Quantization, device: str
) -> None:
    """Put a quantised output head in the place of a model's own.

    Args:
        model: the language half.
        weight: of its head, not quantised, wherever it is. [vocabulary, hidden].
        quantization: what is asked for; its `head` counts.
        device: where the model runs.

    Raises:
        QuantizationError: there is no head, or none of this kind can be quantised.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or not fits_kernel(head, quantization.of_head):
        problem = (
            f"the output head of {type(model).__name__} cannot be stored in {quantization.head}"
        )
        raise QuantizationError(problem, "set head_quantization to none")
    biases = [None] if head.bias is None else torch.split(head.bias, PART_ROWS)
    rows = torch.split(weight, PART_ROWS)
    parts = [
        quantized_linear(part, biases[min(number, len(biases) - 1)], quantization.of_head, device)
        for number, part in enumerate(rows)
    ]
    path = next(path for path, module in model.named_modules() if module is head)
    model.set_submodule(path, HeadInParts(parts).eval())
