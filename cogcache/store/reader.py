"""Reads a feature file and checks its SHA-256. docs/format.md specifies the file.

Nothing in a file is believed before its digest fits. ``structure`` looks first at what the
file is made of, so that nothing is followed out of it and no memory is taken for mere claims.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import h5py
import numpy as np
from h5py import h5s

from cogcache.errors import CacheError, ConfigError, CorruptFeaturesError
from cogcache.keys import Field
from cogcache.store.format import (
    FORMAT,
    OURS,
    TYPES,
    Array,
    Bits,
    decode_attribute,
    hash_block,
    hashing,
    seal_digest,
    tensor_digest,
)
from cogcache.store.structure import (
    Structure,
    attributes_of,
    check_chunks,
    expect,
    load_no_plugins,
    structure_of,
)

if TYPE_CHECKING:
    import torch

_REMAKE: Final = "move it to quarantine and extract the clip again"
_BLOCKS_IN_HAND: Final = 8
"""Of a tensor that is proven and not kept: each has 1 MiB, or is one row."""


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """What a feature file holds."""

    tensors: dict[str, torch.Tensor]
    attributes: dict[str, Field]
    thumbnail: bytes | None
    """A JPEG, if the clip has one."""


def read(path: Path, key: str, names: Collection[str] | None = None) -> StoredFeatures:
    """Return the features in a file, proven to be what was sealed.

    Args:
        path: the feature file.
        key: the feature key that the file must bear.
        names: which tensors to read; None: all.

    Raises:
        CorruptFeaturesError: the file is damaged, of another key or of another format.
        KeyError: the file is sound and has no tensor of such a name.
        CacheError: the disk or the system will not let it be read.
    """
    with _opened(path) as file, hashing() as pool:
        head = _read_head(file, key)
        wanted = head.digests if names is None else head.digests.keys() & set(names)
        tensors = {name: _read_tensor(head, name, pool) for name in wanted}
    for name in names or ():
        if name not in tensors:
            raise KeyError(f"{path} holds no tensor {name!r}")
    ready = {name: bits.tensor() for name, bits in tensors.items()}
    return StoredFeatures(ready, head.attributes, head.thumbnail)


def describe(path: Path, key: str) -> dict[str, Field]:
    """Return the attributes in a file, proven to be what was sealed; reads no tensor.

    Raises:
        CorruptFeaturesError: the file is damaged, of another key or of another format.
        CacheError: the disk or the system will not let it be read.
    """
    with _opened(path) as file:
        return _read_head(file, key).attributes


def outline(path: Path, key: str) -> StoredFeatures:
    """Return what is in a file with tensors on meta: their shapes and types, and no number.

    Raises:
        CorruptFeaturesError: the file is damaged, of another key or of another format.
        CacheError: the disk or the system will not let it be read.
    """
    import torch

    with _opened(path) as file:
        head = _read_head(file, key)
        tensors = {
            name: torch.empty(each.shape, dtype=getattr(torch, _dtype_of(each)), device="meta")
            for name, each in head.tensors.items()
        }
    return StoredFeatures(tensors, head.attributes, head.thumbnail)


def prove(path: Path, key: str) -> None:
    """Read a whole file and compare it with its checksums.

    Raises:
        CorruptFeaturesError: the file is damaged, of another key or of another format.
        CacheError: the disk or the system will not let it be read.
    """
    with _opened(path) as file, hashing() as pool:
        head = _read_head(file, key)
        for name in head.digests:
            _prove_tensor(head, name, pool)


def check(path: Path, key: str, tensors: Mapping[str, Bits]) -> None:
    """Read a file back and compare it with what it was made from.

    Raises:
        CorruptFeaturesError: it holds something else.
        CacheError: the disk or the system will not let it be read.
    """
    with _opened(path) as file:
        head = _read_head(file, key)
        expect(head.digests.keys() == tensors.keys(), "other tensors")
        for name, bits in tensors.items():
            same = _equal(head.tensors[name], bits)
            expect(same, f"tensor {name!r} is not what was written")


def check_same_seal(path: Path, other: Path) -> None:
    """Compare the digests over all that two files hold.

    Raises:
        CorruptFeaturesError: they differ.
    """
    with _opened(path) as file, _opened(other) as packed:
        seals = [attributes_of(each)["cogcache_sha256"] for each in (file, packed)]
        expect(seals[0] == seals[1], "packed anew it has another digest")


_ODD: Final = (
    AttributeError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,  # RecursionError, too
    TypeError,
    ValueError,
)
"""What h5py and the standard library raise at a file that is not as the format says."""


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    load_no_plugins()
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (ConfigError, CorruptFeaturesError) as error:
        raise CorruptFeaturesError(f"{path} is damaged: {error.problem}", _REMAKE) from error
    except _ODD as error:
        if isinstance(error, OSError) and error.errno:
            # The disk or the system failed; the bytes of the file may be sound.
            problem = f"{path} cannot be read: {error}"
            raise CacheError(problem, "see that its disk is there and readable") from error
        raise CorruptFeaturesError(f"{path} is damaged: {error}", _REMAKE) from error


@dataclass(frozen=True, slots=True)
class _Head:
    """All of a file but its tensors; it holds their digests, and its own digest was checked."""

    attributes: dict[str, Field]
    tensors: Mapping[str, h5py.Dataset]
    digests: dict[str, str]
    thumbnail: bytes | None


def _read_head(file: h5py.File, key: str) -> _Head:
    structure = structure_of(file)
    stored = {name: decode_attribute(value) for name, value in attributes_of(file).items()}
    attributes = {name: value for name, value in stored.items() if not name.startswith(OURS)}
    expect(stored["cogcache_format"] == FORMAT, f"its format is {stored['cogcache_format']}")
    expect(stored["cogcache_key"] == key, f"it bears the key {stored['cogcache_key']}")
    digests = {
        name: str(decode_attribute(attributes_of(dataset)["sha256"]))
        for name, dataset in structure.tensors.items()
    }
    thumbnail = _read_thumbnail(structure)
    made = seal_digest(key, attributes, digests, thumbnail)
    expect(stored["cogcache_sha256"] == made, "its SHA-256 is not the sealed one")
    return _Head(attributes, structure.tensors, digests, thumbnail)


def _read_thumbnail(structure: Structure) -> bytes | None:
    if structure.thumbnail is None:
        return None
    return _read_bits(structure.thumbnail, None)[0].array.tobytes()


def _read_tensor(head: _Head, name: str, pool: Executor) -> Bits:
    bits, hashes = _read_bits(head.tensors[name], pool)
    _check_digest(head, name, tensor_digest(bits, hashes))
    return bits


def _check_digest(head: _Head, name: str, digest: str) -> None:
    expect(digest == head.digests[name], f"the SHA-256 of tensor {name!r} is another")


def _prove_tensor(head: _Head, name: str, pool: Executor) -> None:
    """Hash a tensor block by block, with no more than a few blocks in memory."""
    dataset = head.tensors[name]
    check_chunks(dataset)
    # A view of one number that stands for all: it has the shape, and takes no memory.
    item = np.zeros((), _integers(dataset))
    shape = Bits(_dtype_of(dataset), np.broadcast_to(item, dataset.shape))
    hashes: list[Future[str]] = []
    for start, like in shape.blocks():
        block = np.empty(like.shape, like.dtype)
        _read_block(dataset, start, block)
        hashes.append(pool.submit(hash_block, block))
        if len(hashes) > _BLOCKS_IN_HAND:
            hashes[-_BLOCKS_IN_HAND].result()
    _check_digest(head, name, tensor_digest(shape, hashes))


def _read_bits(dataset: h5py.Dataset, pool: Executor | None) -> tuple[Bits, list[Future[str]]]:
    """Read a tensor block by block; each is hashed in ``pool`` while the next one is read."""
    check_chunks(dataset)
    hashes: list[Future[str]] = []
    bits = Bits(_dtype_of(dataset), np.empty(dataset.shape, _integers(dataset)))
    for start, block in bits.blocks():
        _read_block(dataset, start, block)
        if pool is not None:
            hashes.append(pool.submit(hash_block, block))
    return bits, hashes


def _equal(dataset: h5py.Dataset, bits: Bits) -> bool:
    # Bit by bit with what is in memory: quicker than a second digest, and as strong.
    check_chunks(dataset)
    if _dtype_of(dataset) != bits.dtype or dataset.shape != bits.array.shape:
        return False
    for start, block in bits.blocks():
        stored = np.empty_like(block)
        _read_block(dataset, start, stored)
        if not np.array_equal(stored, block):
            return False
    return True


def _read_block(dataset: h5py.Dataset, start: int, block: Array) -> None:
    space = dataset.id.get_space()
    if block.ndim:
        space.select_hyperslab((start, *[0] * (block.ndim - 1)), block.shape)
    if block.size:
        # The same type in memory as in the file: HDF5 would convert bfloat16 number by number.
        kind = dataset.id.get_type()
        dataset.id.read(h5s.create_simple(block.shape), space, block, mtype=kind)


def _dtype_of(dataset: h5py.Dataset) -> str:
    kind = dataset.id.get_type()
    return next(name for name, known in TYPES.items() if known == kind)


def _integers(dataset: h5py.Dataset) -> str:
    return f"int{8 * dataset.id.get_type().get_size()}"
