"""The packed products of int4 weights that torch has: one for CPUs, one for NVIDIA GPUs.

Both take codes of 0 to 15 with `(code - 8) × scale + zero` as the weight, and lay them out first.
Those for GPUs are the operators behind torchao's format `tile_packed_to_4d`, called here without
it: so the codes are the same on every device. They have not been run on a GPU yet; hence
`check_product`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cogcache.errors import QuantizationError

OPERATORS = {
    "cpu": ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu"),
    "cuda": ("_convert_weight_to_int4pack", "_weight_int4pack_mm"),
}
"""By kind of device: what lays codes out, and what multiplies."""
MIDDLE = 8
"""The code that stands for a group's zero: a weight is (code - 8) × scale + zero."""
LARGEST = 15
LEAST_CAPABILITY = (8, 0)
"""Of a GPU: the product multiplies bfloat16 in tensor cores, which begin with Ampere."""
MOST_APART = 0.02
"""Relative difference from the product in float32. bfloat16 rounds to 2⁻⁹ = 0.002; codes in another
order differ by more than 1."""
_INNER_TILES = 1
"""Of no effect on CPUs."""
_TILE_COLUMNS = 16
"""Columns of a tile on GPUs; 2, 4 or 8 tiles lie together."""


def device_kind(device: str | torch.device) -> str:
    """Return `cpu` or `cuda`, whose operators are to be used, for the name of a device."""
    return str(device).partition(":")[0]


def lay_out(codes: Tensor) -> Tensor:
    """Return codes in the order in which the device's product takes them.

    Args:
        codes: uint8 [out, in / 2], two a byte, the even column in the lower half.

    Returns:
        On CPUs uint8 [out, in / 2]; on GPUs int32 [out / 8, in / (16 tiles), 32, tiles / 2].
    """
    if codes.device.type == "cpu":
        convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        return torch.as_tensor(convert(unpacked(codes).int(), _INNER_TILES))
    tiles = next(n for n in (8, 4, 2) if codes.shape[1] * 2 % (n * _TILE_COLUMNS) == 0)
    # On GPUs the even column is in the upper half.
    turned = (codes << 4) | (codes >> 4)
    return torch.as_tensor(torch.ops.aten._convert_weight_to_int4pack(turned, tiles))


def product(rows: Tensor, laid_out: Tensor, group_size: int, scales_and_zeros: Tensor) -> Tensor:
    """Multiply. Shapes: [rows, in] to [rows, out], bfloat16."""
    name = OPERATORS[rows.device.type][1]
    multiply = getattr(torch.ops.aten, name)
    return torch.as_tensor(multiply(rows, laid_out, group_size, scales_and_zeros))


def unpacked(codes: Tensor) -> Tensor:
    """Return the codes of packed ones, one a byte. Shape [out, in / 2] to [out, in]."""
    return torch.stack((codes & LARGEST, codes >> 4), dim=-1).flatten(1)


def has_operators(kind: str = "cpu") -> bool:
    """Say whether this torch has the operators for a kind of device."""
    return all(hasattr(torch.ops.aten, name) for name in OPERATORS[kind])


def check_operators(device: str = "cpu") -> None:
    """See that torch has the operators for a device.

    Raises:
        QuantizationError: it has not.
    """
    kind = device_kind(device)
    if kind not in OPERATORS:
        problem = f"int4 has products for CPUs and NVIDIA GPUs, and the device is {device}"
        raise QuantizationError(problem, "take --quantization nf4, or --device cpu")
    if not has_operators(kind):
        where = {"cpu": "CPUs", "cuda": "GPUs"}[kind]
        problem = f"torch {torch.__version__} has no product of int4 weights for {where}"
        raise QuantizationError(problem, "install torch 2.9 or later, or take --quantization nf4")


@cache
def check_product(device: str, group_size: int) -> None:
    """Multiply a small weight on a device and compare it with what its codes say.

    A GPU or a torch that takes codes in another order would give captions of wrong weights, and
    nothing else would tell.

    Raises:
        QuantizationError: the device cannot multiply, or the product is another.
    """
    hint = "take --quantization nf4"
    if device_kind(device) == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            problem = f"int4 needs a GPU of compute capability 8.0, and {device} has {capability}"
            raise QuantizationError(problem, hint)
    apart = _apart(device, group_size)
    if not apart <= MOST_APART:
        problem = f"the int4 product of {device} is {apart:.0%} off what its weights give"
        raise QuantizationError(problem, hint)


def _apart(device: str, group_size: int) -> float:
    """Return how far a device's product is from that in float32, of random numbers."""
    rng, out = torch.Generator().manual_seed(0), 32
    rows = torch.randn(4, 512, generator=rng).bfloat16()
    codes = torch.randint(0, 256, (out, 256), dtype=torch.uint8, generator=rng)
    scales = torch.rand(512 // group_size, out, 2, generator=rng).bfloat16()
    scale, zero = scales.float().permute(2, 1, 0)[..., None]
    groups = unpacked(codes).float().view(out, -1, group_size)
    wanted = rows.float() @ ((groups - MIDDLE) * scale + zero).flatten(1).T
    rows, codes, scales = (each.to(device) for each in (rows, codes, scales))
    found = product(rows, lay_out(codes), group_size, scales).float().cpu()
    return float((found - wanted).norm() / wanted.norm())
