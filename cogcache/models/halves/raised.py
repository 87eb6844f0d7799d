"""Products of bf16 raised to float32, where the processor multiplies no bf16.

Kernels for bf16 then turn every number into float32 on its way, again for each block of rows: they
are two to four times slower than float32 itself. Here a weight is turned once a product, some rows
of it at a time, so that in memory it stays bf16. Sums are those of float32, and what comes out is
rounded to bf16 as before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cogcache.models.quantization.int4 import wide_product
from cogcache.system import processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEWEST_ROWS = 32
"""Below this reading the weight takes most of the time, and in bf16 there is half as much of it."""
SCALES_TOGETHER = 256
"""Scales that bitsandbytes quantises together."""
FEWEST_ROWS_OF_INT4 = 128
"""Below this turning its codes into numbers takes longer than its own kernel does."""
WEIGHT_ROWS = 512
"""Rows of a weight that are float32 at once: 8 MiB for 4,096 columns, which caches hold."""


def raised_products(
    model: PreTrainedModel, num_rows: int = FEWEST_ROWS
) -> AbstractContextManager[Any]:
    """Return a context in which products of a model in bf16 are taken in float32.

    It does nothing off the CPU, on a processor that multiplies bf16, with few rows, or where blocks
    are compiled: their products are then no calls any more.

    Args:
        model: a half, or the whole model.
        num_rows: tokens of the pass, over all rows of a batch.
    """
    return Raised() if num_rows >= FEWEST_ROWS and _is_raised(model) else nullcontext()


def raised_features(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Return the same context for the vision half: there products of few rows are raised too.

    How many rows a product has follows from the frames that are encoded together. Were the few let
    be, a frame's features would depend on the frames beside it.
    """
    return Raised(fewest_rows=1) if _is_raised(model) else nullcontext()


def _is_raised(model: PreTrainedModel) -> bool:
    if model.device.type != "cpu" or processor().multiplies_bf16:
        return False
    return all(module._compiled_call_impl is None for module in model.modules())


class Raised(TorchFunctionMode):
    """Within it linear products of bf16 with enough rows are taken in float32.

    Attention is not: in float32 it was no faster on any processor it was measured on.
    """

    def __init__(self, fewest_rows: int = FEWEST_ROWS) -> None:
        super().__init__()
        self.fewest_rows = fewest_rows

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Take the calls that are meant, and let all others be."""
        kwargs = kwargs or {}
        product = _RAISED.get(func) or _RAISED.get(str(func))
        if product is not None and args and _has_rows(args[0], self.fewest_rows):
            return product(*args, **kwargs)
        return func(*args, **kwargs)


def _has_rows(matrix: Tensor, fewest: int) -> bool:
    is_bf16 = matrix.dtype == torch.bfloat16 and matrix.device.type == "cpu"
    return is_bf16 and matrix.numel() >= fewest * matrix.shape[-1]


def raised_training(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Return a context in which the products of a training step are taken in float32.

    Unlike `raised_products` it takes those of the gradients too: for some of them torch's kernel
    for bf16 is a plain loop.

    Args:
        model: what is trained.
    """
    return RaisedSteps() if _is_raised(model) else nullcontext()  # type: ignore[no-untyped-call]


class RaisedSteps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it products of bf16 are taken in float32, those that autograd makes among them."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Take the calls that are meant, and let all others be."""
        found = _IN_STEPS.get(func) or _IN_STEPS.get(str(func))
        if found is not None and not kwargs:
            product, place_of_rows = found
            if _has_rows(args[place_of_rows], FEWEST_ROWS):
                return product(*args)
        return func(*args, **(kwargs or {}))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply as `torch.nn.functional.linear` does, in float32.

    Args:
        input: bfloat16 [..., in]; named as torch names it.
        weight: bfloat16 [out, in].
        bias: bfloat16 [out].

    Returns:
        bfloat16 [..., out].
    """
    rows = input.reshape(-1, input.shape[-1]).float()
    num_rows = len(rows)
    if num_rows < FEWEST_ROWS:  # kernels for few rows add up in another order
        rows = functional.pad(rows, (0, 0, 0, FEWEST_ROWS - num_rows))
    product = torch.empty(len(rows), len(weight), dtype=torch.bfloat16)
    columns, parts = torch.split(product, WEIGHT_ROWS, dim=1), torch.split(weight, WEIGHT_ROWS)
    biases = [None] * len(parts) if bias is None else torch.split(bias, WEIGHT_ROWS)
    for column, part, addend in zip(columns, parts, biases, strict=True):
        raised = rows @ part.float().T
        column.copy_(raised if addend is None else raised.add_(addend))
    return product[:num_rows].view(*input.shape[:-1], len(weight))


def matrices(one: Tensor, other: Tensor, addend: Tensor | None = None) -> Tensor:
    """Multiply as `torch.mm` does, in float32; `other` is raised a part at a time.

    Args:
        one: bfloat16 [rows, inner].
        other: bfloat16 [inner, columns], or a view that is transposed.
        addend: bfloat16 [columns].

    Returns:
        bfloat16 [rows, columns].
    """
    if other.stride(0) < other.stride(1):  # its columns lie together
        return linear(one, other.T, addend)
    total = torch.zeros(len(one), other.shape[1])
    columns = torch.split(one, WEIGHT_ROWS, dim=1)
    for some, part in zip(columns, torch.split(other, WEIGHT_ROWS), strict=True):
        total.addmm_(some.float(), part.float())
    return (total if addend is None else total.add_(addend)).bfloat16()


def _added(addend: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return matrices(one, other, addend)


def _stacked(one: Tensor, other: Tensor) -> Tensor:
    return torch.bmm(one.float(), other.float()).bfloat16()


def four_bits(
    input: Tensor,
    codes: Tensor,
    shape: torch.Size,
    absmax: Tensor,
    *blocks: Any,
    bias: Tensor | None = None,
    **nested: Tensor,
) -> Tensor:
    """Multiply as `bitsandbytes::gemm_4bit` does, its dequantised weight raised.

    Args:
        input: bfloat16 [..., in].
        codes: two a byte.
        shape: of the weight, [out, in].
        absmax: scale of each block, or of each 256 scales where these are quantised too.
        blocks: how many weights share a scale, and `nf4` or `fp4`.
        bias: bfloat16 [out].
        nested: where scales are quantised, their codes `absmax_8bit`, the table `absmax_code`
            that these point into, and `absmax_offset`, what was taken off them.
    """
    operators = torch.ops.bitsandbytes
    if nested:
        places, table = nested["absmax_8bit"], nested["absmax_code"]
        scales = operators.dequantize_blockwise(
            places, absmax, table, SCALES_TOGETHER, torch.float32
        )
        absmax = scales + nested["absmax_offset"]
    weight = operators.dequantize_4bit(codes, absmax, *blocks, shape, input.dtype)
    return linear(input, weight, bias)


def _four_bits_by_place(*given: Any) -> Tensor:
    """Multiply as `four_bits` does; of a step all arguments come by their places."""
    first, (bias, *nested) = given[:6], (*given[6:], None)[:4]
    names = ("absmax_8bit", "absmax_code", "absmax_offset")
    there = {n: each for n, each in zip(names, nested, strict=False) if each is not None}
    return four_bits(*first, bias=bias, **there)


def int4(input: Tensor, packed: Tensor, group_size: int, scales_and_zeros: Tensor) -> Tensor:
    """Multiply as `_weight_int4pack_mm_for_cpu` does, its weight raised where rows are many."""
    found = None
    if len(input) >= FEWEST_ROWS_OF_INT4:
        found = wide_product(input, packed, group_size, scales_and_zeros)
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
    return kernel(input, packed, group_size, scales_and_zeros) if found is None else found


_RAISED: dict[Any, Callable[..., Tensor]] = {
    functional.linear: linear,
    # By its name: it is there only once bitsandbytes is imported.
    "bitsandbytes.gemm_4bit.default": four_bits,
    "aten._weight_int4pack_mm_for_cpu": int4,
}

_IN_STEPS: dict[Any, tuple[Callable[..., Tensor], int]] = {
    torch.ops.aten.mm.default: (matrices, 0),
    torch.ops.aten.addmm.default: (_added, 1),
    torch.ops.aten.bmm.default: (_stacked, 0),
    "bitsandbytes.gemm_4bit.default": (_four_bits_by_place, 0),
}
"""What a step of training calls, and the place of the rows among the arguments. Linear products
have become products of matrices there."""
