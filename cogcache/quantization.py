"""4 and 8 bits for the language half, through bitsandbytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

Kind = Literal["nf4", "fp4", "int8", "none"]
BLOCK_SIZE = 64
"""Weights that share a scale; what bitsandbytes uses when it quantises while loading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the decoder's linear layers are stored."""

    kind: Kind = "nf4"
    double_quant: bool = True
    compute_dtype: str = "bfloat16"

    def fields(self) -> dict[str, str | bool]:
        """Return what a caption depends on, for its key."""
        return asdict(self)


def bnb_config(quantization: Quantization, meta: PreTrainedModel) -> BitsAndBytesConfig:
    """Return the bitsandbytes settings that quantise the decoder's layers and nothing else.

    Args:
        quantization: what is asked for.
        meta: the whole model on meta, to find what must be left out.
    """
    import torch
    from transformers import BitsAndBytesConfig

    import_bitsandbytes()
    if quantization.kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left_out(meta))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        llm_int8_skip_modules=left_out(meta),
    )


def left_out(model: PreTrainedModel) -> list[str]:
    """Name the linear layers that are not quantised.

    Those are all outside the decoder (a list of our own replaces the library's, so the output
    head must be on it), and within it those whose shape the 4-bit product on the CPU cannot
    take: it fails at the first forward pass, after a clean load.
    """
    inside = {id(module) for module in model.get_decoder().modules()}
    head = model.get_output_embeddings()
    return [
        path
        for path, module in linear_layers(model)
        if id(module) not in inside
        or module is head
        or module.out_features % 32
        or module.in_features % BLOCK_SIZE
    ]


def import_bitsandbytes() -> Any:
    """Import bitsandbytes without its advice to install a package that fetches code at run time."""
    import logging

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def linear_layers(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """Return every linear layer with its path, quantised ones included."""
    from torch import nn

    return [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]


def kind_of(module: nn.Module) -> Kind:
    """Return how a linear layer's weight is stored in memory."""
    bitsandbytes = import_bitsandbytes()
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        kind: Kind = module.weight.quant_type
        return kind if module.weight.quant_state is not None else "none"
    return "int8" if isinstance(module, bitsandbytes.nn.Linear8bitLt) else "none"


def quantized_bytes(num_rows: int, num_columns: int, quantization: Quantization) -> int:
    """Return the bytes that one quantised matrix takes, with its scales and tables.

    A block of 64 weights has a float32 scale, and a layer a table of 16 float32. Double
    quantisation turns a scale into one byte and a float32 for 256 blocks, and adds a table of
    256 float32 and an offset. int8 has a float32 scale a row.
    """
    num_weights = num_rows * num_columns
    if quantization.kind == "int8":
        return num_weights + 4 * num_rows
    blocks = -(-num_weights // BLOCK_SIZE)
    double = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4
    scales = double if quantization.double_quant else 4 * blocks
    return -(-num_weights // 2) + scales + 4 * 16


def dequantized(module: Any) -> Tensor:
    """Return a quantised layer's weight as the product sees it. Shape [out, in]."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense
    row_scaled: Tensor = int8_vectorwise_dequant(weight.data, weight.SCB)
    return row_scaled


def quantized_linear(layer: nn.Linear, device: str) -> nn.Module:
    """Return a layer's NF4 twin, as the language half's layers are loaded."""
    import torch

    twin: nn.Module = import_bitsandbytes().nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=torch.bfloat16,
        compress_statistics=True,
        quant_type="nf4",
    )
    twin.load_state_dict(layer.state_dict())
    return twin.to(device)
