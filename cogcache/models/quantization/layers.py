"""4 and 8 bits for the language half: through bitsandbytes, or int4 through torch itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from cogcache.errors import QuantizationError
from cogcache.settings import GROUP_SIZES

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import BitsAndBytesConfig, PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from cogcache.settings import Language

Kind = Literal["nf4", "fp4", "int8", "int4", "fp8", "none"]
KINDS_OF_LAYERS: tuple[Kind, ...] = ("nf4", "fp4", "int8", "int4", "none")
"""Kinds that `quantized_linear` makes; vLLM alone has the others."""
NESTED: frozenset[Kind] = frozenset({"nf4", "fp4"})
"""Kinds whose scales can be quantised too."""
BLOCK_SIZE = 64
"""Weights that share a scale; what bitsandbytes uses when it quantises while loading."""
ROWS_TOGETHER = 32
"""Rows that the 4-bit product on the CPU takes together."""
INT4_ROWS_TOGETHER = 16
"""Rows that the product of int4 takes together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the decoder's linear layers are stored."""

    kind: Kind = "nf4"
    double_quant: bool = True
    compute_dtype: str = "bfloat16"
    head: Kind = "none"
    """How the output head is stored."""
    group_size: int = 64
    """Columns that share a scale in int4."""

    @classmethod
    def of(cls, language: Language) -> Self:
        """Return what the settings ask for; `auto` that nothing has decided on is NF4."""
        return cls(
            kind="nf4" if language.quantization == "auto" else language.quantization,
            double_quant=language.double_quant,
            compute_dtype=language.compute_dtype,
            head=language.head_quantization,
            group_size=language.group_size,
        )

    @property
    def of_head(self) -> Quantization:
        """How the output head is stored, as if it were a layer."""
        return replace(self, kind=self.head, head="none")

    @property
    def bits(self) -> int:
        """Of a quantised weight, its scale apart."""
        return 8 if self.kind in ("int8", "fp8") else 4

    @property
    def has_int4(self) -> bool:
        """Whether layers or the output head are in int4."""
        return "int4" in (self.kind, self.head)

    def fields(self) -> dict[str, str | bool | int]:
        """Return what a caption depends on, for its key.

        A head that is not quantised is not mentioned, nor is the group size where nothing is in
        int4: older captions keep their keys.
        """
        fields, kinds = asdict(self), {self.kind, self.head}
        if self.head == "none":
            del fields["head"]
        if not self.has_int4:
            del fields["group_size"]
        elif kinds.isdisjoint(NESTED):
            del fields["double_quant"]
        return fields


def loading_config(
    quantization: Quantization, meta: PreTrainedModel, waiting: Sequence[str] = ()
) -> QuantizationConfigMixin:
    """Return the settings by which transformers quantises the decoder's layers and nothing else.

    Args:
        quantization: what is asked for.
        meta: the whole model on meta, to find what must be left out.
        waiting: paths of what a device map puts elsewhere, and is quantised later.
    """
    from cogcache.models.quantization.int4_loading import Int4Config

    if quantization.kind == "int4":
        stays = [*left_out(meta, quantization), *waiting]
        return Int4Config(quantization.group_size, stays)
    return _bnb_config(quantization, meta, some_wait=bool(waiting))


def _bnb_config(
    quantization: Quantization, meta: PreTrainedModel, *, some_wait: bool
) -> BitsAndBytesConfig:
    """Return the settings of bitsandbytes.

    With `some_wait` layers that a device map puts on the disk stay as they are, for the time
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


def left_out(model: PreTrainedModel, quantization: Quantization | None = None) -> list[str]:
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
        if id(module) not in inside or module is head or not fits_kernel(module, quantization)
    ]


def fits_kernel(layer: nn.Linear, quantization: Quantization | None = None) -> bool:
    """Say whether the 4-bit product on the CPU takes a layer of this shape; NF4's by default."""
    rows, columns = ROWS_TOGETHER, BLOCK_SIZE
    if quantization is not None and quantization.kind == "int4":
        rows, columns = INT4_ROWS_TOGETHER, quantization.group_size
    return not (layer.out_features % rows or layer.in_features % columns)


def check_int4(model: PreTrainedModel, quantization: Quantization, device: str) -> None:
    """See that int4 can be had, where it is asked for.

    Args:
        model: the whole model, on meta.
        quantization: what is asked for.
        device: where it is to run.

    Raises:
        QuantizationError: torch has no product for the device, products are not in bfloat16, or
            the group size does not divide the columns of a layer.
    """
    if not quantization.has_int4:
        return
    from cogcache.models.quantization.int4_products import check_operators

    check_operators(device)
    if quantization.compute_dtype != "bfloat16":
        problem = f"int4 multiplies in bfloat16, and compute_dtype is {quantization.compute_dtype}"
        raise QuantizationError(problem, "take --compute-dtype bfloat16, or --quantization nf4")
    _check_group_size(model, quantization)


def _check_group_size(model: PreTrainedModel, quantization: Quantization) -> None:
    """See that no layer is left out that a smaller group size would take."""
    wanted = _int4_layers(model, quantization)
    size = quantization.group_size
    missed = [path for path, layer in wanted if layer.in_features % size]
    if missed:
        columns = dict(wanted)[missed[0]].in_features
        more = f", nor those of {len(missed) - 1} layers more" if len(missed) > 1 else ""
        problem = f"groups of {size} do not divide the {columns} columns of {missed[0]}{more}"
        best = group_size_for(model, quantization)
        raise QuantizationError(problem, f"give --group-size {best}, or take --quantization nf4")


def group_size_for(model: PreTrainedModel, quantization: Quantization) -> int:
    """Return the largest group size, of those up to the one asked for, that leaves no layer out."""
    columns = [layer.in_features for _, layer in _int4_layers(model, quantization)]
    sizes = [size for size in GROUP_SIZES if size <= quantization.group_size]
    return max(size for size in sizes if not any(each % size for each in columns))


def _int4_layers(model: PreTrainedModel, quantization: Quantization) -> list[tuple[str, nn.Linear]]:
    """Return the layers that are to be in int4, but for those that no group size divides."""
    smallest = replace(quantization, kind="int4", group_size=GROUP_SIZES[0])
    excluded, head = set(left_out(model, smallest)), model.get_output_embeddings()
    return [
        (path, layer)
        for path, layer in linear_layers(model)
        if (quantization.kind == "int4" and path not in excluded)
        or (quantization.head == "int4" and layer is head and fits_kernel(layer, smallest))
    ]


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
    from cogcache.models.quantization.int4 import Int4Linear

    if isinstance(module, Int4Linear):
        return "int4"
    bitsandbytes = import_bitsandbytes()
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        kind: Kind = module.weight.quant_type
        return kind if module.weight.quant_state is not None else "none"
    return "int8" if isinstance(module, bitsandbytes.nn.Linear8bitLt) else "none"


def quantized_bytes(num_rows: int, num_columns: int, quantization: Quantization) -> int:
    """Return the bytes that one quantised matrix takes, with its scales and tables.

    A block of 64 weights has a float32 scale, and a layer a table of 16 float32. Double
    quantisation turns a scale into one byte and a float32 for 256 blocks, and adds a table of
    256 float32 and an offset. int8 and fp8 have a float32 scale a row, int4 a scale and a
    zero of two bytes each a group.
    """
    num_weights = num_rows * num_columns
    if quantization.kind == "int4":
        return num_weights // 2 + 4 * (num_weights // quantization.group_size)
    if quantization.kind in ("int8", "fp8"):
        return num_weights + 4 * num_rows
    blocks = -(-num_weights // BLOCK_SIZE)
    double = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4
    scales = double if quantization.double_quant else 4 * blocks
    return -(-num_weights // 2) + scales + 4 * 16


def held_bytes(num_rows: int, num_columns: int, quantization: Quantization, *, on_cpu: bool) -> int:
    """Return what a quantised matrix takes while it is used.

    Laid out for the CPU, blocks of 4-bit weights have scales of two bytes, not nested.
    """
    if not on_cpu or quantization.kind not in NESTED:
        return quantized_bytes(num_rows, num_columns, quantization)
    num_weights = num_rows * num_columns
    return num_weights // 2 + 2 * (num_weights // BLOCK_SIZE) + 4 * 16


def dequantized(module: Any) -> Tensor:
    """Return a quantised layer's weight as the product sees it. Shape [out, in]."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    weight = module.weight
    if kind_of(module) == "int4":
        in_groups: Tensor = module.dequantized()
        return in_groups
    if getattr(weight, "quant_state", None) is not None:
        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense
    row_scaled: Tensor = int8_vectorwise_dequant(weight.data, weight.SCB)
    return row_scaled


def quantized_linear(
    weight: Tensor, bias: Tensor | None, quantization: Quantization, device: torch.device | str
) -> nn.Module:
    """Return a quantised layer, as is made of one while a half is loaded.

    Args:
        weight: of the layer, not quantised. [out, in].
        bias: of the layer. [out].
        quantization: how to store it.
        device: where; it is quantised there.
    """
    from torch import nn

    if quantization.kind == "int4":
        from cogcache.models.quantization.int4 import Int4Linear

        return Int4Linear.of(weight.to(device), bias, quantization.group_size)
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
