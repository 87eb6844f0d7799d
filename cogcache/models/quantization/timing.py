"""How long products take on this machine, one of each kind of weight."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from cogcache.models.quantization.layers import (
    KINDS_OF_LAYERS,
    Kind,
    Quantization,
    quantized_linear,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

PRODUCT_SIDE = 1024
"""Rows and columns of the weight: small enough that all kinds are timed in a second."""
WIDE_PRODUCT_ROWS = 64
"""Rows of a product whose weight is read once for many of them, as in a prefill."""
REPEATS = 5


def product_times_s(
    kinds: Iterable[Kind] = KINDS_OF_LAYERS, *, num_rows: int = 1, side: int = PRODUCT_SIDE
) -> dict[str, float]:
    """Return the seconds that a product takes with a square weight of each kind, on the CPU.

    Args:
        kinds: of weights; `none` stands for bfloat16.
        num_rows: of what the weight is multiplied with, bfloat16.
        side: of the weight.

    Returns:
        The least of five by kind, bfloat16 named `bf16`; what torch has no product for is left out.

    Example:
        >>> sorted(product_times_s(["none", "nf4"]))
        ['bf16', 'nf4']
    """
    import torch

    from cogcache.models.quantization.int4_products import has_operators

    inputs = torch.randn(num_rows, side, dtype=torch.bfloat16)
    weight = torch.randn(side, side, dtype=torch.bfloat16) / side**0.5
    found: dict[str, float] = {}
    with torch.inference_mode():
        for kind in kinds:
            if kind != "int4" or has_operators():
                work = partial(_layer(weight, kind), inputs)
                found["bf16" if kind == "none" else kind] = _least_s(work)
    return found


def wide_product_times_s(side: int = PRODUCT_SIDE) -> dict[str, float]:
    """Return the seconds of products of many rows: in bf16, float32, and bf16 raised to float32."""
    import torch
    from torch.nn import functional

    from cogcache.models.halves import raised

    inputs = torch.randn(WIDE_PRODUCT_ROWS, side, dtype=torch.bfloat16)
    weight = torch.randn(side, side, dtype=torch.bfloat16) / side**0.5
    wide, wide_weight = inputs.float(), weight.float()
    with torch.inference_mode():
        return {
            "bf16": _least_s(lambda: functional.linear(inputs, weight)),
            "float32": _least_s(lambda: functional.linear(wide, wide_weight)),
            "bf16 raised": _least_s(lambda: raised.linear(inputs, weight)),
        }


def _layer(weight: Tensor, kind: Kind) -> nn.Module:
    if kind != "none":
        return quantized_linear(weight, None, Quantization(kind=kind), "cpu")
    from torch import nn

    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _least_s(work: Callable[[], object]) -> float:
    """Return the least of some times: on a busy machine a median may be a hundred times it."""
    work()  # the first one lays weights out
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)
