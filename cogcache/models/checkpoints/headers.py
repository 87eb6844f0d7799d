"""Headers of safetensors files, read without torch, and single tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.errors import MissingShardError, TruncatedShardError

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 2**24
"""Bound of a shard's header: some 80,000 tensors. safetensors itself takes 100 MB, of which JSON
makes twenty times as much memory."""
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}
"""Bits of a number, by the types that safetensors has had from the beginning."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its shard's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def read_header(shard: Path) -> dict[str, TensorInfo]:
    """Read what a safetensors shard holds, without its tensors.

    Raises:
        MissingShardError: there is no such file.
        TruncatedShardError: the file is shorter than its header says, or has none.
    """
    hint = f"fetch {shard.name} anew"
    try:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, shard.stat().st_size - 8):
                raise TruncatedShardError(f"{shard} has no readable safetensors header", hint)
            entries: dict[str, Any] = json.loads(
                file.read(length), object_pairs_hook=_without_repeats
            )
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        described = {name: _tensor_info(name, entry) for name, entry in entries.items()}
    except FileNotFoundError as error:
        raise MissingShardError(f"{shard} is missing", hint) from error
    except (OSError, ValueError) as error:
        raise TruncatedShardError(f"{shard} cannot be read: {error}", hint) from error
    except RecursionError as error:
        raise TruncatedShardError(f"{shard} has a header that is nested too deep", hint) from error
    except (AttributeError, LookupError, TypeError) as error:  # JSON, but not of this kind
        raise TruncatedShardError(f"{shard} has no readable safetensors header", hint) from error
    if (there := shard.stat().st_size) != 8 + length + end:
        problem = f"{shard} has {there:,} bytes where its header says {8 + length + end:,}"
        raise TruncatedShardError(problem, hint)
    return described


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a mapping: of a name that is there twice, readers would take one or the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _tensor_info(name: str, entry: Mapping[str, Any]) -> TensorInfo:
    (start, end), dtype, shape = entry["data_offsets"], entry["dtype"], tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError(f"{name} has sizes that are no whole numbers")
    bits = _BITS.get(dtype)
    if end < start or (bits is not None and prod(shape) * bits != 8 * (end - start)):
        raise ValueError(f"{name} has {end - start:,} bytes, which are not those of its shape")
    if not isinstance(dtype, str):
        raise TypeError(f"{name} has no type")
    return TensorInfo(name, dtype, shape, end - start)


def read_tensor(path: Path, name: str) -> Tensor:
    """Read one tensor of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as shard:
        tensor: Tensor = shard.get_tensor(name)
        return tensor
