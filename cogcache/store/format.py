"""The parts of a feature file: types, blocks, digests, attributes.

docs/format.md specifies them; ``feature_file`` puts them together.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5t

from cogcache.errors import FeaturesError
from cogcache.keys import Field, Template, digest

if TYPE_CHECKING:
    import torch

FORMAT: Final = 1
MAX_EXPANSION: Final = 1024
"""No tensor in a file takes more than this many times its bytes on the disk."""
OURS: Final = "cogcache_"
"""What the names of the format's own attributes begin with."""

_BLOCK_BYTES: Final = 2**20
_SMALL_BYTES: Final = 2**18
"""A block below this is hashed before a thread for it would have started."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_JSON: Final = "json:"
_MAX_DEPTH: Final = 32
"""Of JSON in an attribute; what stage one writes is nested three deep."""

T = TypeVar("T")
Array: TypeAlias = npt.NDArray[np.signedinteger[Any]]


def _bfloat16() -> h5t.TypeID:
    kind = h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)  # sign, exponent and its bits, mantissa and its bits
    kind.set_ebias(127)
    return kind


TYPES: Final[dict[str, h5t.TypeID]] = {
    "bfloat16": _bfloat16(),
    "float16": h5t.IEEE_F16LE,
    "float32": h5t.IEEE_F32LE,
    "float64": h5t.IEEE_F64LE,
    "int8": h5t.STD_I8LE,
    "int16": h5t.STD_I16LE,
    "int32": h5t.STD_I32LE,
    "int64": h5t.STD_I64LE,
    "uint8": h5t.STD_U8LE,
    "uint16": h5t.STD_U16LE,
    "uint32": h5t.STD_U32LE,
    "uint64": h5t.STD_U64LE,
    "bool": h5t.py_create(np.dtype(bool)),
}
"""How each dtype of torch lies in a file."""


@dataclass(frozen=True, slots=True)
class Bits:
    """A tensor's bytes as integers of the same size, for numpy has no bfloat16."""

    dtype: str
    """The dtype's name in torch."""
    array: Array

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Bits:
        """Return the bytes of ``tensor`` on the CPU, without a copy where it can be.

        Raises:
            FeaturesError: a number is NaN or infinite.
            TypeError: the format has no such dtype.
        """
        import torch

        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in TYPES:
            raise TypeError(f"tensor {name!r} is {dtype}; a feature file holds {', '.join(TYPES)}")
        tensor = tensor.detach().cpu().contiguous()
        _check_finite(name, tensor)
        return cls(dtype, tensor.view(getattr(torch, f"int{8 * tensor.element_size()}")).numpy())

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Yield the blocks that are hashed, each with its first row; a scalar is one block."""
        if not self.array.ndim:
            yield 0, self.array
            return
        rows = block_rows(self.array.shape, self.array.itemsize)
        for start in range(0, len(self.array), rows):
            yield start, self.array[start : start + rows]

    def tensor(self) -> torch.Tensor:
        """Return the tensor that these are the bytes of; it shares their memory."""
        import torch

        tensor: torch.Tensor = torch.from_numpy(self.array)
        return tensor.view(getattr(torch, self.dtype))


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return
    # The extremes are NaN or infinite if any number is; isfinite() of all takes 20 times as long.
    low, high = torch.aminmax(tensor)
    if not (low.isfinite() and high.isfinite()):
        count = tensor.numel() - int(tensor.isfinite().sum())
        problem = f"{count} of the {tensor.numel()} numbers of {name!r} are NaN or infinite"
        raise FeaturesError("not_finite", problem, "encode this clip with vision_dtype float32")


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` can be that of a tensor or an attribute."""
    if not _NAME.fullmatch(name) or name.startswith(OURS):
        raise ValueError(f"{name!r} cannot be a name in a feature file")


def block_rows(shape: Sequence[int], itemsize: int) -> int:
    """Return how many rows of the first axis make a block: 1 MiB of them, or one."""
    return max(1, _BLOCK_BYTES // max(1, math.prod(shape[1:]) * itemsize))


class _Hashers(ThreadPoolExecutor):
    """Threads to hash blocks in; small blocks are hashed at once, before a thread would start."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if not args or getattr(args[0], "nbytes", _SMALL_BYTES) >= _SMALL_BYTES:
            return super().submit(fn, *args, **kwargs)
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def hashing() -> ThreadPoolExecutor:
    """Return threads to hash blocks in: hashlib lets go of the interpreter meanwhile."""
    return _Hashers(min(4, os.cpu_count() or 1))


def hash_block(block: Array) -> str:
    """Return the SHA-256 of the bytes of a block, 64 hexadecimal digits."""
    return hashlib.sha256(block).hexdigest()  # type: ignore[arg-type]


def tensor_digest(bits: Bits, hashes: Sequence[Future[str]]) -> str:
    """Return the digest of a tensor, given the hash of each of its blocks."""
    done = [block.result() for block in hashes]
    return _of_blocks(bits.dtype, bits.array.shape).digest({"blocks": done})


@lru_cache(maxsize=256)
def _of_blocks(dtype: str, shape: tuple[int, ...]) -> Template:
    return Template({"dtype": dtype, "shape": shape}, ("blocks",))


def seal_digest(
    key: str,
    attributes: Mapping[str, Field],
    tensors: Mapping[str, str],
    thumbnail: bytes | None,
) -> str:
    """Return the digest of all that a file holds, given the digest of each tensor."""
    seen = None if thumbnail is None else hashlib.sha256(thumbnail).hexdigest()
    fields: dict[str, Field] = {"format": FORMAT, "key": key, "attributes": attributes}
    return digest({**fields, "tensors": tensors, "thumbnail": seen})


def fixed_text(text: str) -> Any:
    """Return ``text`` as HDF5's text of fixed length.

    Texts of variable length lie in a heap that HDF5 keeps no checksum of.
    """
    data = text.encode()
    return np.array(data, dtype=h5py.string_dtype("utf-8", len(data)))


def encode_attribute(value: Field) -> Any:
    """Return what h5py shall store: numbers and texts as such, all else as JSON text."""
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, str) and value and "\0" not in value and not value.startswith(_JSON):
        return fixed_text(value)
    if isinstance(value, Sequence) and {type(item) for item in value} == {float}:
        return np.array(value, np.float64)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, default=dict)
    return fixed_text(_JSON + text)


def _parsed(text: str) -> Field:
    value: Field = json.loads(text)
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return value
    raise ValueError(f"an attribute is nested more than {_MAX_DEPTH} deep")


def decode_attribute(stored: Any) -> Field:
    """Return the value that ``encode_attribute`` was given.

    Raises:
        ValueError: ``stored`` cannot come from it.
    """
    if isinstance(stored, bytes):
        text = stored.decode()
        return _parsed(text.removeprefix(_JSON)) if text.startswith(_JSON) else text
    if isinstance(stored, (np.bool_, np.int64, np.float64, np.ndarray)):
        return stored.tolist()
    raise ValueError(f"an attribute is of type {type(stored).__name__}")
