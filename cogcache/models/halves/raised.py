"""Products of bf16 raised to float32, where the processor multiplies no bf16.

Kernels for bf16 then turn every number into float32 on its way, again for each block of rows: they
are two to four times slower than float32 itself. Here a weight is turned once a product, some rows
of it at a time, so that in memory it stays bf16. Sums are those of float32, and what comes out is
rounded to bf16 as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cogcache.system import processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEWEST_ROWS = 32
"""Below this reading the weight takes most of the time, and in bf16 there is half as much of it."""
SCALES_TOGETHER = 256
"""Scales that bitsandbytes quantises together."""
CLEARLY = 0.8
"""Share of the other's time that a way must take to be called faster."""
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
    if num_rows < FEWEST_ROWS or model.device.type != "cpu" or processor().multiplies_bf16:
        return nullcontext()
    is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return nullcontext() if is_compiled else Raised()


class Raised(TorchFunctionMode):
    """Within it linear products and attention of bf16 with enough rows are taken in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Take the calls that are meant, and let all others be."""
        kwargs = kwargs or {}
        way = _RAISED.get(func) or _RAISED.get(str(func))
        if way is not None and args and _is_meant(args[0]) and way.is_faster():
            return way.product(*args, **kwargs)
        return func(*args, **kwargs)


def _is_meant(first: Tensor) -> bool:
    is_bf16 = first.dtype == torch.bfloat16 and first.device.type == "cpu"
    return is_bf16 and first.numel() >= FEWEST_ROWS * first.shape[-1]


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
    product = torch.empty(len(rows), len(weight), dtype=torch.bfloat16)
    columns, parts = torch.split(product, WEIGHT_ROWS, dim=1), torch.split(weight, WEIGHT_ROWS)
    biases = [None] * len(parts) if bias is None else torch.split(bias, WEIGHT_ROWS)
    for column, part, addend in zip(columns, parts, biases, strict=True):
        raised = rows @ part.float().T
        column.copy_(raised if addend is None else raised.add_(addend))
    return product.view(*input.shape[:-1], len(weight))


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


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any
) -> Tensor:
    """Attend as `torch.nn.functional.scaled_dot_product_attention` does, in float32."""
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    raised = functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask, **settings
    )
    return raised.bfloat16()


@cache
def attention_is_faster() -> bool:
    """Say whether attention in float32 is the faster one here, from 256 tokens of 8 heads.

    Products of weights always are where this is asked. Some processors do attention in bf16 by
    instructions that the other products get no use of, so it is timed, in some hundredths of a
    second.
    """
    tokens = torch.ones(1, 8, 256, 64, dtype=torch.bfloat16)
    plain = partial(functional.scaled_dot_product_attention, tokens, tokens, tokens)
    raised = partial(attention, tokens, tokens, tokens)
    return min(map(_seconds, [raised] * 3)) < CLEARLY * min(map(_seconds, [plain] * 3))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@dataclass(frozen=True)
class _Way:
    product: Callable[..., Tensor]
    is_faster: Callable[[], bool]


_RAISED: dict[Any, _Way] = {
    functional.linear: _Way(linear, lambda: True),
    functional.scaled_dot_product_attention: _Way(attention, attention_is_faster),
    # By its name: it is there only once bitsandbytes is imported.
    "bitsandbytes.gemm_4bit.default": _Way(four_bits, lambda: True),
}
