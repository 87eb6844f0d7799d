"""How long products take on this machine, one of each kind of weight."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import TYPE_CHECKING, get_args

from cogcache.models.quantization.layers import Kind, Quantization, quantized_linear

if TYPE_CHECKING:
    from torch import Tensor, nn

SIDE = 1024
"""Rows and columns of the weight: small enough that all kinds are timed in a second."""
REPEATS = 5


def product_times_s(
    kinds: Iterable[Kind] = get_args(Kind), *, num_rows: int = 1, side: int = SIDE
) -> dict[str, float]:
    """Return the seconds that a product takes with a square weight of each kind, on the CPU.

    Args:
        kinds: of weights; `none` stands for bfloat16.
        num_rows: of what the weight is multiplied with, bfloat16.
        side: of the weight.

    Returns:
        Medians by kind; a kind that torch has no product for is left out.

    Example:
        >>> sorted(product_times_s(["none", "nf4"]))
        ['nf4', 'none']
    """
    import torch

    from cogcache.models.quantization.int4 import has_operators

    inputs = torch.randn(num_rows, side, dtype=torch.bfloat16)
    weight = torch.randn(side, side, dtype=torch.bfloat16) / side**0.5
    found = {}
    with torch.inference_mode():
        for kind in kinds:
            if kind != "int4" or has_operators():
                layer = _layer(weight, kind)
                found[str(kind)] = _median_s(lambda layer=layer: layer(inputs))  # type: ignore[misc]
    return found


def _layer(weight: Tensor, kind: Kind) -> nn.Module:
    if kind != "none":
        return quantized_linear(weight, None, Quantization(kind=kind), "cpu")
    from torch import nn

    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _median_s(work: Callable[[], object]) -> float:
    work()  # the first one lays weights out
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return median(found)
