"""Weights in 4 bits by group, multiplied by torch's own packed products.

torchao 0.18 has no format for CPUs any more, and those that it had stored weights as they were laid
out, which differs between processors: read on another one they would be wrong without a word. Here
weights are stored in order, and laid out for the device before they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn

from cogcache.models.quantization.int4_products import LARGEST, MIDDLE, lay_out, product, unpacked

ROUNDS = 6
"""Of fitting scales to codes. On Gaussian weights in groups of 64 they lower the relative error
from 0.090 to 0.084 (NF4: 0.092); six more, or a search of how much of a group's range is kept,
lower it by less than a hundredth of that."""
ROWS_AT_ONCE = 128
"""Rows that are quantised, or laid out, together: a multiple of the 64 that kernels take as one."""
WIDE_ROWS = 512
"""Rows of a weight that are float32 at once: a multiple of the blocks that codes lie in."""
_TINY = 1e-12


class Int4Linear(nn.Linear):
    """A linear layer whose weights are 4-bit codes, a scale and a zero for each group of columns.

    `weight` is uint8 [out, in / 2], two codes a byte, the even column in the lower half; after
    `lay_out` it is as many bytes in the device's own order. `scales_and_zeros` is bfloat16
    [in / group, out, 2].

    Args:
        in_features: columns, a multiple of the group size.
        out_features: rows, a multiple of 16.
        bias: whether there is one.
        group_size: columns that share a scale: 32, 64, 128 or 256.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, group_size: int) -> None:
        super().__init__(in_features, out_features, bias=bias, device="meta")
        self.group_size = group_size
        self.laid_out = False
        codes = torch.empty(out_features, in_features // 2, dtype=torch.uint8, device="meta")
        scales = torch.empty(
            in_features // group_size, out_features, 2, dtype=torch.bfloat16, device="meta"
        )
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales_and_zeros = nn.Parameter(scales, requires_grad=False)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, group_size: int) -> Int4Linear:
        """Return the layer of a weight [out, in] that is not quantised yet."""
        rows, columns = weight.shape
        layer = cls(columns, rows, bias is not None, group_size)
        codes, scales = quantize(weight, group_size)
        layer.weight = nn.Parameter(codes, requires_grad=False)
        layer.scales_and_zeros = nn.Parameter(scales, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer.eval()

    def lay_out(self) -> None:
        """Put the codes into the order that the device's product takes them in."""
        if self.laid_out:
            return
        self.weight.data = torch.cat([lay_out(part) for part in _split(self.weight.data)])
        self.laid_out = True

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply. Shapes: [..., in] to [..., out]; the arithmetic is that of bfloat16."""
        self.lay_out()
        rows = inputs.reshape(-1, self.in_features).bfloat16().contiguous()
        outputs = self._times(rows)
        if self.bias is not None:
            outputs += self.bias
        return outputs.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def _times(self, rows: Tensor) -> Tensor:
        return product(rows, self.weight, self.group_size, self.scales_and_zeros)

    def dequantized(self) -> Tensor:
        """Return the weight as the product sees it. Shape [out, in], float32.

        Of a layer that is laid out the product says it, column by column.
        """
        if self.laid_out:
            device = self.weight.device
            return self._times(
                torch.eye(self.in_features, dtype=torch.bfloat16, device=device)
            ).T.float()
        groups = unpacked(self.weight).float().view(self.out_features, -1, self.group_size)
        scales, zeros = self.scales_and_zeros.float().permute(2, 1, 0)[..., None]
        return ((groups - MIDDLE) * scales + zeros).flatten(1)


def wide_product(
    rows: Tensor, packed: Tensor, group_size: int, scales_and_zeros: Tensor
) -> Tensor | None:
    """Multiply many rows as `_weight_int4pack_mm_for_cpu` does, in float32 and some rows at a time.

    That kernel turns codes into numbers again for every few rows of its input. With many of them it
    costs less to do so once and to leave the rest to float32.

    Args:
        rows: bfloat16 [rows, in].
        packed: codes as they are laid out, uint8 [out, in / 2].
        group_size: columns that share a scale.
        scales_and_zeros: bfloat16 [in / group, out, 2].

    Returns:
        bfloat16 [rows, out]; None where it is not known how this processor lays codes out.
    """
    if (order := _order()) is None:
        return None
    wide = rows.float()
    product = torch.empty(len(rows), len(packed), dtype=torch.bfloat16)
    for start in range(0, len(packed), WIDE_ROWS):
        part = slice(start, start + WIDE_ROWS)
        codes = _columns_of(packed[part], *order).float()
        scales, zeros = scales_and_zeros[:, part].permute(2, 0, 1).float()
        groups = codes.view(len(zeros), group_size, -1)
        weight = torch.addcmul(zeros[:, None], groups, scales[:, None]).flatten(0, 1)
        product[:, part] = wide @ weight
    return product


def _columns_of(packed: Tensor, block: int, together: bool) -> Tensor:
    """Return laid out codes, less `MIDDLE`, in order again. Shape [out, in / 2] to [in, out].

    A block of rows lies column by column. In a byte are two rows of the block: neighbours, or, of
    a whole block where `together` is false, one of either half of it.
    """
    columns, whole = 2 * packed.shape[1], len(packed) // block * block
    codes = packed[:whole].reshape(-1, columns, block // 2).permute(1, 0, 2)
    both = (codes & LARGEST, codes >> 4)
    found = [torch.stack(both, -1).flatten(1) if together else torch.cat(both, -1).flatten(1)]
    if whole < len(packed):
        rest = packed[whole:].reshape(columns, -1)
        found.append(torch.stack((rest & LARGEST, rest >> 4), dim=-1).flatten(1))
    return torch.cat(found, dim=1).to(torch.int8).sub_(MIDDLE)


@cache
def _order() -> tuple[int, bool] | None:
    """Return how this processor lays codes out: what gives known codes back."""
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, LARGEST + 1, (144, 64), dtype=torch.uint8, generator=rng)
    packed = lay_out(codes[:, ::2] | codes[:, 1::2] << 4)
    wanted = (codes.T - MIDDLE).to(torch.int8)
    for order in ((32, False), (64, False), (32, True)):
        if torch.equal(_columns_of(packed, *order), wanted):
            return order
    return None


def quantize(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return codes, scales and zeros of a weight whose squared error is small.

    A group's scale and zero span its weights at first. Then they are fitted to the codes by least
    squares and the codes rounded anew, `ROUNDS` times, as Lloyd's algorithm does for free levels
    (S. Lloyd, Least squares quantization in PCM, 1982); here the levels stay evenly spaced.

    Args:
        weight: [out, in], of any floating type.
        group_size: columns that share a scale; divides them.

    Returns:
        uint8 [out, in / 2], two codes a byte, and bfloat16 [in / group, out, 2].

    Example:
        >>> codes, scales = quantize(torch.randn(16, 128), 64)
        >>> codes.shape, scales.shape
        (torch.Size([16, 64]), torch.Size([2, 16, 2]))
    """
    found = [_quantized(part.float(), group_size) for part in _split(weight)]
    codes, scales = zip(*found, strict=True)
    return torch.cat(codes), torch.cat(scales, dim=1)


def _split(matrix: Tensor) -> Iterator[Tensor]:
    yield from torch.split(matrix, ROWS_AT_ONCE)


def _quantized(rows: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    groups = rows.reshape(len(rows), -1, group_size)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / LARGEST).clamp_min_(_TINY)
    zero = low + MIDDLE * scale
    for _ in range(ROUNDS):
        scale, zero = _fitted(groups, _codes(groups, scale, zero))
    both = torch.cat((scale, zero), dim=-1).bfloat16()
    codes = _codes(groups, *torch.split(both.float(), 1, dim=-1)).add_(MIDDLE).flatten(1).byte()
    return codes[:, ::2] | codes[:, 1::2] << 4, both.transpose(0, 1).contiguous()


def _codes(groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return the nearest codes, less `MIDDLE`."""
    return (groups - zero).div_(scale).round_().clamp_(-MIDDLE, LARGEST - MIDDLE)


def _fitted(groups: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and zero with which codes are nearest to their weights, by least squares."""
    mean_code, mean = codes.mean(-1, keepdim=True), groups.mean(-1, keepdim=True)
    count = groups.shape[-1]
    spread = torch.linalg.vecdot(codes, codes)[..., None] / count - mean_code.square()
    common = torch.linalg.vecdot(codes, groups)[..., None] / count - mean_code * mean
    scale = (common / spread.clamp_min_(_TINY)).clamp_min_(_TINY)
    return scale, mean - scale * mean_code
