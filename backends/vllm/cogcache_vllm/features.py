"""Reads a feature file and proves it: nothing is believed before its SHA-256 fits.

docs/format.md of cogcache specifies the file. This needs h5py, hdf5plugin and numpy alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  # its import lets HDF5 find the filters
import numpy as np
from h5py import h5d, h5l, h5pl, h5s, h5t

FORMAT = 1
BLOCK_BYTES = 2**20
FILTERS = ((), (2, 32015), (32026,))
"""Shuffle and zstd, or Blosc2."""
MAX_EXPANSION = 1024
"""No tensor takes more than this many times its bytes on the disk."""
MAX_NAMES = 4096


class DamagedFile(Exception):
    """A file whose bytes are not the sealed ones, or that is no feature file."""


@dataclass(frozen=True, slots=True)
class Bits:
    """A tensor's bytes as integers of its size, for numpy has no bfloat16."""

    dtype: str
    """The dtype's name in torch."""
    array: Any


def read(path: Path, key: str, names: Collection[str]) -> dict[str, Bits]:
    """Return tensors of a feature file, proven to be what was sealed.

    Args:
        path: the feature file.
        key: the feature key that the file must bear.
        names: which tensors to read.

    Raises:
        DamagedFile: it is damaged, of another key or format, or lacks a tensor.
        OSError: the disk or the system will not let it be read.

    Example:
        >>> read(Path("/cache/features/ab/abcd….h5"), "abcd…", ["features"])["features"].dtype
        'bfloat16'
    """
    while h5pl.size():  # no filter out of a folder
        h5pl.remove(0)
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _read(file, key, names)
    except OSError as error:
        if error.errno:
            raise
        raise DamagedFile(str(error)) from error
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedFile(str(error)) from error


def _read(file: h5py.File, key: str, names: Collection[str]) -> dict[str, Bits]:
    _expect(set(_hard_links(file)) <= {"tensors", "thumbnail"}, "it holds names of no such format")
    stored = {name: _attribute(file, name) for name in file.attrs}
    _expect(stored.pop("cogcache_format") == FORMAT, "it is of another format")
    _expect(stored.pop("cogcache_key") == key, "it bears another key")
    sealed = stored.pop("cogcache_sha256")
    group = file["tensors"]
    datasets = {name: _checked(group[name]) for name in _hard_links(group)}
    digests = {name: _attribute(each, "sha256") for name, each in datasets.items()}
    thumbnail = None
    if "thumbnail" in file:
        thumbnail = _sha256(_bits(_checked(file["thumbnail"])).array)
    whole = {"format": FORMAT, "key": key, "attributes": stored}
    whole |= {"tensors": digests, "thumbnail": thumbnail}
    _expect(_sha256(encode(whole)) == sealed, "its SHA-256 is not the sealed one")
    found = {}
    for name in names:
        _expect(name in datasets, f"it holds no tensor {name!r}")
        found[name] = _bits(datasets[name])
        same = digest_of(found[name]) == digests[name]
        _expect(same, f"the SHA-256 of tensor {name!r} is another")
    return found


def encode(value: Any) -> bytes:
    """Return the canonical encoding of what a digest is made of."""
    if isinstance(value, dict):
        names = sorted(value, key=str.encode)
        pairs = (part for name in names for part in (name, value[name]))
        tag, payload = b"M", b"".join(map(encode, pairs))
    elif isinstance(value, list | tuple):
        tag, payload = b"L", b"".join(map(encode, value))
    elif value is None:
        tag, payload = b"N", b""
    elif isinstance(value, bool):  # before int: True is one
        tag, payload = b"B", b"1" if value else b"0"
    elif isinstance(value, int):
        tag, payload = b"I", str(value).encode()
    elif isinstance(value, float):
        tag, payload = b"D", struct.pack(">d", value or 0.0)
    else:
        tag, payload = b"S", value.encode()
    return tag + struct.pack(">Q", len(payload)) + payload


def digest_of(bits: Bits) -> str:
    """Return the SHA-256 that stands for a tensor: over those of its blocks of 1 MiB."""
    hashes = [_sha256(np.ascontiguousarray(block)) for block in _blocks(bits.array)]
    shape = list(bits.array.shape)
    return _sha256(encode({"dtype": bits.dtype, "shape": shape, "blocks": hashes}))


def _blocks(array: Any) -> Iterator[Any]:
    if not array.ndim:
        yield array
        return
    rows = max(1, BLOCK_BYTES // max(1, math.prod(array.shape[1:]) * array.itemsize))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DamagedFile(otherwise)


def _hard_links(group: h5py.Group) -> list[str]:
    """Return the names in a group; a link that leads out of the file is refused."""
    names = list(group)
    _expect(len(names) <= MAX_NAMES, "it has too many names")
    for name in names:
        kind = group.id.links.get_info(name.encode()).type
        _expect(kind == h5l.TYPE_HARD, f"{name} is a link")
    return names


def _checked(dataset: Any) -> h5py.Dataset:
    """Return a dataset that lies in the file itself, packed as the format says.

    The layout is asked for before the shape: to tell that of a virtual dataset, HDF5 opens the
    files that it is made of.
    """
    _expect(isinstance(dataset, h5py.Dataset), "a tensor is not a dataset")
    how = dataset.id.get_create_plist()
    own = how.get_layout() in (h5d.CONTIGUOUS, h5d.CHUNKED) and not how.get_external_count()
    _expect(own, f"{dataset.name} does not lie in the file")
    filters = tuple(how.get_filter(number)[0] for number in range(how.get_nfilters()))
    _expect(filters in FILTERS, f"{dataset.name} is packed in another way")
    size_bytes = math.prod(dataset.shape) * dataset.id.get_type().get_size()
    there = dataset.id.get_storage_size()
    _expect(size_bytes <= MAX_EXPANSION * there or not size_bytes, f"{dataset.name} is too large")
    return dataset


def _attribute(owner: Any, name: str) -> Any:
    stored = owner.attrs[name]
    if not isinstance(stored, bytes):
        return stored.tolist()
    text = stored.decode()
    return json.loads(text.removeprefix("json:")) if text.startswith("json:") else text


def _dtype_of(dataset: h5py.Dataset) -> str:
    kind = dataset.id.get_type()
    if isinstance(kind, h5t.TypeFloatID) and kind.get_fields() == (15, 7, 8, 0, 7):
        return "bfloat16"
    return str(dataset.dtype.name)


def _bits(dataset: h5py.Dataset) -> Bits:
    kind = dataset.id.get_type()
    array = np.empty(dataset.shape, f"<i{kind.get_size()}")
    if array.size:  # the same type in memory as in the file: HDF5 would convert number by number
        dataset.id.read(h5s.ALL, h5s.ALL, array, mtype=kind)
    return Bits(_dtype_of(dataset), array)
