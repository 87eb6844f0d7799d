"""4 and 8 bits for the language half, through bitsandbytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from cogcache.settings import Language

Kind = Literal["nf4", "fp4", "int8", "none"]
BLOCK_SIZE = 64
"""Weights that share a scale; what bitsandbytes uses when it quantises while loading."""
ROWS_TOGETHER = 32
"""Rows that the 4-bit product on the CPU takes together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the decoder's linear layers are stored."""

    kind: Kind = "nf4"
    double_quant: bool = True
    compute_dtype: str = "bfloat16"
    head: Kind = "none"
    """How the output head is stored."""

    @classmethod
    def of(cls, language: Language) -> Self:
        """Return what the settings ask for."""
        return cls(
            kind=language.quantization,
            double_quant=language.double_quant,
            compute_dtype=language.compute_dtype,
            head=language.head_quantization,
        )

    @property
    def of_head(self) -> Quantization:
        """How the output head is stored, as if it were a layer."""
        return replace(self, kind=self.head, head="none")

    @property
    def bits(self) -> int:
        """Of a quantised weight, its scale apart."""
        return 8 if self.kind == "int8" else 4

    def fields(self) -> dict[str, str | bool]:
        """Return what a caption depends on, for its key.

        A head that is not quantised is not mentioned: older captions keep their keys.
        """
        fields = asdict(self)
        if self.head == "none":
            del fields["head"]
        return fields


def bnb_config(
    quantization: Quantization, meta: PreTrainedModel, *, some_wait: bool = False
) -> BitsAndBytesConfig:
    """Return the bitsandbytes settings that quantise the decoder's layers and nothing else.

    Args:
        quantization: what is asked for.
        meta: the whole model on meta, to find what must be left out.
        some_wait: leave layers that a device map puts on the disk as they are, for the time
            being; without it the library refuses such a map.
    """
    import torch
    from transformers import BitsAndBytesConfig

    import_bitsandbytes()
    if quantization.kind == "int8":
        return BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_skip_modules=left_out(meta),
            llm_int8_enable_fp32_cpu_offload=some_wait,
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        llm_int8_skip_modules=left_out(meta),
        llm_int8_enable_fp32_cpu_offload=some_wait,
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
        if id(module) not in inside or module is head or not fits_kernel(module)
    ]


def fits_kernel(layer: nn.Linear) -> bool:
    """Say whether the 4-bit product on the CPU takes a layer of this shape."""
    return not (layer.out_features % ROWS_TOGETHER or layer.in_features % BLOCK_SIZE)


def import_bitsandbytes() -> Any:
    """Import bitsandbytes without its advice to install a package that fetches code at run time.

    Nor with a line for each product of each int8 layer, that its inputs are cast to float16.
    """
    import logging

    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
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


def held_bytes(num_rows: int, num_columns: int, quantization: Quantization, *, on_cpu: bool) -> int:
    """Return what a quantised matrix takes while it is used.

    Laid out for the CPU, blocks of 4-bit weights have scales of two bytes, not nested.
    """
    if not on_cpu or quantization.kind == "int8":
        return quantized_bytes(num_rows, num_columns, quantization)
    num_weights = num_rows * num_columns
    return num_weights // 2 + 2 * (num_weights // BLOCK_SIZE) + 4 * 16


def dequantized(module: Any) -> Tensor:
    """Return a quantised layer's weight as the product sees it. Shape [out, in]."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense
    row_scaled: Tensor = int8_vectorwise_dequant(weight.data, weight.SCB)
    return row_scaled


def quantized_linear(
    weight: Tensor, bias: Tensor | None, quantization: Quantization, device: torch.device | str
) -> nn.Module:
    """Return a quantised layer, as bitsandbytes makes it of one while a half is loaded.

    Args:
        weight: of the layer, not quantised. [out, in].
        bias: of the layer. [out].
        quantization: how to store it.
        device: where; it is quantised there.
    """
    from torch import nn

    classes, rows, columns = import_bitsandbytes().nn, *weight.shape
    settings: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    if quantization.kind == "int8":
        layer = classes.Linear8bitLt(
            columns, rows, has_fp16_weights=False, threshold=6.0, **settings
        )
        # In main memory first, as the library does: the device never holds all of it.
        layer.weight = classes.Int8Params(weight.to("cpu"), requires_grad=False)
    else:
        settings |= _four_bits(quantization)
        layer = classes.Linear4bit(columns, rows, **settings)
        layer.weight = classes.Params4bit(weight.to(device), **vars(layer.weight))
    layer.weight = layer.weight.to(device)
    layer.bias = None if bias is None else nn.Parameter(bias.to(device), requires_grad=False)
    return layer.eval().requires_grad_(False)


def _four_bits(quantization: Quantization) -> dict[str, Any]:
    import torch

    return {
        "compute_dtype": getattr(torch, quantization.compute_dtype),
        "compress_statistics": quantization.double_quant,
        "quant_type": quantization.kind,
    }
