"""Reads a feature file and proves what it reads. docs/format.md specifies the file.

Nothing in a file is believed before its digest fits: shapes are held against the bytes on the
disk before memory is taken, and links, which lead elsewhere, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import h5py
import numpy as np
from h5py import h5d, h5l, h5s

from cogcache.errors import CacheError, CorruptFeaturesError
from cogcache.keys import Field
from cogcache.store.format import (
    FORMAT,
    MAX_EXPANSION,
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

if TYPE_CHECKING:
    import torch

_REMAKE: Final = "move it to quarantine and extract the clip again"


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
        tensors = {name: _read_tensor(file, name, head.digests[name], pool) for name in wanted}
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
        datasets = {name: _dataset(file, f"tensors/{name}") for name in head.digests}
        tensors = {
            name: torch.empty(each.shape, dtype=getattr(torch, _checked_dtype(each)), device="meta")
            for name, each in datasets.items()
        }
    return StoredFeatures(tensors, head.attributes, head.thumbnail)


def prove(path: Path, key: str) -> None:
    """Read every byte of a file that counts, and hold it against what was sealed.

    Raises:
        CorruptFeaturesError: the file is damaged, of another key or of another format.
        CacheError: the disk or the system will not let it be read.
    """
    with _opened(path) as file, hashing() as pool:
        for name, sealed in _read_head(file, key).digests.items():
            _read_tensor(file, name, sealed, pool)


def check(path: Path, key: str, tensors: Mapping[str, Bits]) -> None:
    """Read a file back and compare it with what it was made from.

    Raises:
        CorruptFeaturesError: it holds something else.
        CacheError: the disk or the system will not let it be read.
    """
    with _opened(path) as file:
        _expect(_read_head(file, key).digests.keys() == tensors.keys(), "other tensors")
        for name, bits in tensors.items():
            same = _equal(_dataset(file, f"tensors/{name}"), bits)
            _expect(same, f"tensor {name!r} is not what was written")


def check_same_seal(path: Path, other: Path) -> None:
    """Compare the digests over all that two files hold.

    Raises:
        CorruptFeaturesError: they differ.
    """
    with _opened(path) as file, _opened(other) as packed:
        seals = [each.attrs["cogcache_sha256"] for each in (file, packed)]
        _expect(seals[0] == seals[1], "packed anew it has another digest")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except CorruptFeaturesError as error:
        raise CorruptFeaturesError(f"{path} is damaged: {error.problem}", _REMAKE) from error
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            # The disk's or the system's word, not the file's bytes: they may be sound.
            problem = f"{path} cannot be read: {error}"
            raise CacheError(problem, "see that its disk is there and readable") from error
        raise CorruptFeaturesError(f"{path} is damaged: {error}", _REMAKE) from error


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CorruptFeaturesError(otherwise)


@dataclass(frozen=True, slots=True)
class _Head:
    """All but the tensors, whose digests it vouches for."""

    attributes: dict[str, Field]
    digests: dict[str, str]
    thumbnail: bytes | None


def _read_head(file: h5py.File, key: str) -> _Head:
    stored = {name: decode_attribute(value) for name, value in file.attrs.items()}
    attributes = {name: value for name, value in stored.items() if not name.startswith(OURS)}
    _expect(stored["cogcache_format"] == FORMAT, f"its format is {stored['cogcache_format']}")
    _expect(stored["cogcache_key"] == key, f"it bears the key {stored['cogcache_key']}")
    digests = {
        name: str(decode_attribute(_dataset(file, f"tensors/{name}").attrs["sha256"]))
        for name in file["tensors"]
    }
    thumbnail = None
    if "thumbnail" in file:
        thumbnail = _read_bits(_dataset(file, "thumbnail"), None)[0].array.tobytes()
    made = seal_digest(key, attributes, digests, thumbnail)
    _expect(stored["cogcache_sha256"] == made, "its SHA-256 is not the sealed one")
    return _Head(attributes, digests, thumbnail)


def _dataset(file: h5py.File, path: str) -> h5py.Dataset:
    # A soft or an external link would lead to bytes elsewhere, even in another file.
    for link in {path.partition("/")[0], path}:
        _expect(file.id.links.get_info(link.encode()).type == h5l.TYPE_HARD, f"{link} is a link")
    dataset = file[path]
    _expect(isinstance(dataset, h5py.Dataset), f"{path} is not a dataset")
    return dataset


def _read_tensor(file: h5py.File, name: str, sealed: str, pool: Executor) -> Bits:
    bits, hashes = _read_bits(_dataset(file, f"tensors/{name}"), pool)
    _expect(tensor_digest(bits, hashes) == sealed, f"the SHA-256 of tensor {name!r} is another")
    return bits


def _read_bits(dataset: h5py.Dataset, pool: Executor | None) -> tuple[Bits, list[Future[str]]]:
    """Read a tensor block by block; each is hashed in ``pool`` while the next one is read."""
    dtype, hashes = _checked_dtype(dataset), []
    bits = Bits(dtype, np.empty(dataset.shape, f"int{8 * TYPES[dtype].get_size()}"))
    for start, block in bits.blocks():
        _read_block(dataset, start, block)
        if pool is not None:
            hashes.append(pool.submit(hash_block, block))
    return bits, hashes


def _equal(dataset: h5py.Dataset, bits: Bits) -> bool:
    # Bit by bit with what is in memory: quicker than a second digest, and as strong.
    if _checked_dtype(dataset) != bits.dtype or dataset.shape != bits.array.shape:
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


def _checked_dtype(dataset: h5py.Dataset) -> str:
    kind = dataset.id.get_type()
    names = [name for name, known in TYPES.items() if known == kind]
    _expect(bool(names), f"{dataset.name} is of a type that the format does not have")
    _check_size(dataset, math.prod(dataset.shape) * kind.get_size())
    return names[0]


def _check_size(dataset: h5py.Dataset, nbytes: int) -> None:
    """Refuse a shape that the bytes on the disk cannot fill, before memory is taken for it."""
    how, stored = dataset.id.get_create_plist(), dataset.id.get_storage_size()
    if how.get_layout() == h5d.CHUNKED:
        import hdf5plugin  # noqa: F401  # its import lets HDF5 find the filters

        fits = nbytes <= MAX_EXPANSION * stored and all(
            np.less_equal(how.get_chunk(), dataset.shape)
        )
    else:
        own = how.get_layout() == h5d.CONTIGUOUS and how.get_external_count() == 0
        fits = own and nbytes == stored
    _expect(fits and stored <= dataset.file.id.get_filesize(), f"{dataset.name} is too large")
