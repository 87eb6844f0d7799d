"""Weights in 8 bits for vLLM's linear layers, a scale a row: vLLM 0.32 has that for experts alone.

Activations stay as they are. A weight is quantised when all of it is loaded.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

METHOD: Final = "cogcache_int8"
LARGEST: Final = 127
FEW_ROWS: Final = 16
"""Up to this many rows the product with 8 bits is the faster one on CPUs."""


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfig):
    """What a view's `quantization_config` names."""

    @classmethod
    def get_name(cls) -> Any:
        """Return the name of the method."""
        return METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Return the types of activations."""
        return [torch.bfloat16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return the oldest kind of GPU: any, for the products are torch's."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no names: the view says it."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Int8Config:
        """Return it; there is nothing to choose."""
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Int8Linear | None:
        """Return what a linear layer of the decoder does; the head and the embedding stay."""
        return Int8Linear() if isinstance(layer, LinearBase) else None


class Int8Linear(UnquantizedLinearMethod):
    """Loads weights as they are, then holds them in 8 bits."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Quantise a layer's weight; how far off it is, is noted on the layer."""
        weight = layer.weight.data
        quantized, scales = quantize(weight)
        off = quantized.float() * scales[:, None] - weight.float()
        layer.cogcache_error = float(off.norm() / weight.float().norm().clamp(min=1e-12))
        layer.weight = nn.Parameter(quantized, requires_grad=False)
        layer.weight_scale = nn.Parameter(scales.to(weight.dtype), requires_grad=False)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply rows with a layer's weight."""
        rows = x.reshape(-1, x.shape[-1])
        if x.device.type == "cpu" and len(rows) <= FEW_ROWS:
            out = torch._weight_int8pack_mm(rows, layer.weight, layer.weight_scale)
        else:
            out = nn.functional.linear(rows, layer.weight.to(x.dtype)) * layer.weight_scale
        out = out.reshape(*x.shape[:-1], -1)
        return out if bias is None else out + bias


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round to 8 bits; return int8 [N, K] and a float32 scale a row [N]."""
    rows = weight.float()
    scales = (rows.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scales[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scales
