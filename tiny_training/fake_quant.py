"""Train with the weights as NF4 would round them, so that 4 bits cost `tiny` no answers."""

from __future__ import annotations

import torch
from bitsandbytes import functional as bnb
from torch import Tensor, nn
from torch.nn.utils import parametrize


class RoundToNF4(nn.Module):
    """While `active`, gives the NF4 rounding of a weight and passes its gradient straight on."""

    def __init__(self) -> None:
        super().__init__()
        self.active = False

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as the decoder is to see it."""
        if not self.active:
            return weight
        with torch.no_grad():
            packed, state = bnb.quantize_4bit(
                weight.detach().to(torch.bfloat16), quant_type="nf4", compress_statistics=True
            )
            error = bnb.dequantize_4bit(packed, state).to(weight.dtype) - weight
        return weight + error


def add_rounding(decoder: nn.Module) -> list[RoundToNF4]:
    """Give every linear of the decoder's layers a switch for NF4 rounding, and return them."""
    switches = []
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            switches.append(RoundToNF4())
            parametrize.register_parametrization(module, "weight", switches[-1])
    return switches


def remove_rounding(decoder: nn.Module) -> None:
    """Leave plain weights behind."""
    for module in decoder.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
