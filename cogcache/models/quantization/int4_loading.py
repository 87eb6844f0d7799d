"""Has transformers quantise layers to int4 while it loads a model, or read stored ones as they are.

The path is the one that bitsandbytes takes there: layers are exchanged before any weight is read,
and each weight is quantised as soon as it is there, so that one of them is in memory unquantised.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from cogcache.models.quantization.int4 import Int4Linear, quantize

METHOD = "cogcache_int4"


@register_quantization_config(METHOD)
class Int4Config(QuantizationConfigMixin):  # type: ignore[misc]
    """What of a model is in int4.

    Args:
        group_size: columns that share a scale.
        left_out: paths of the linear layers that stay as they are, and of what is loaded later.
    """

    def __init__(self, group_size: int = 64, left_out: list[str] | None = None, **_: Any) -> None:
        self.quant_method = METHOD
        self.group_size = group_size
        self.left_out = left_out or []


class _Quantize(ConversionOps):  # type: ignore[misc]
    def __init__(self, hf_quantizer: HfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self, input_dict: dict[str, Any], model: PreTrainedModel | None = None, **_: Any
    ) -> dict[str, torch.Tensor]:
        group_size = self.hf_quantizer.quantization_config.group_size
        found = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            scales = f"{name.removesuffix('weight')}scales_and_zeros"
            found[name], found[scales] = quantize(weight, group_size)
        return found


@register_quantizer(METHOD)
class Int4Quantizer(HfQuantizer):  # type: ignore[misc]
    """Exchanges linear layers and fills them."""

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """Say whether a tensor of the checkpoint is quantised when it is there."""
        path, _dot, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(path), Int4Linear)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        settings = self.quantization_config
        left_out = settings.left_out
        for path, module in list(model.named_modules()):
            stays = any(path == other or path.startswith(f"{other}.") for other in left_out)
            if type(module) is torch.nn.Linear and not stays:
                columns, rows, has_bias = module.in_features, module.out_features, module.bias
                layer = Int4Linear(columns, rows, has_bias is not None, settings.group_size)
                layer.requires_grad_(False)
                model.set_submodule(path, layer)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        for module in model.modules():
            if isinstance(module, Int4Linear):
                module.requires_grad_(False)

    def get_quantize_ops(self) -> ConversionOps:
        """Return what quantises a weight."""
        return _Quantize(self)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Return the names of a published checkpoint; a stored half bears those in memory."""
        return [] if self.pre_quantized else weight_conversions

    def is_serializable(self) -> bool:
        """Say that layers can be stored."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that the layers cannot be trained: their product has no gradient."""
        return False
