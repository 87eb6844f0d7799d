"""One clip's features as the bytes of an HDF5 file. docs/format.md specifies them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5z

from cogcache.keys import Field
from cogcache.store.format import (
    FORMAT,
    MAX_EXPANSION,
    TYPES,
    Bits,
    block_rows,
    check_name,
    encode_attribute,
    fixed_text,
    hash_block,
    hashing,
    seal_digest,
    tensor_digest,
)

Compression: TypeAlias = Literal["none", "zstd", "blosc2"]

Filters: TypeAlias = list[tuple[int, tuple[int, ...]]]
"""Filters of a dataset by number, with their options."""
COMPRESSIONS: Final[tuple[Compression, ...]] = get_args(Compression)
_SMALL_BYTES: Final = 2**16


def encode(
    key: str,
    tensors: Mapping[str, Bits],
    attributes: Mapping[str, Field],
    thumbnail: bytes | None,
    compression: Compression,
) -> bytes:
    """Return the bytes of a whole feature file; equal features make equal bytes.

    They are made in memory: a full disk then fails one plain write, not the HDF5 library.

    Raises:
        ConfigError: a text among the attributes holds bytes that are not UTF-8.
        TypeError: an attribute is of a type that a key cannot have.
        ValueError: a name is not allowed, or a number among the attributes is not finite.
    """
    with (
        hashing() as pool,
        h5py.File(key, "w", driver="core", backing_store=False, libver=("v110", "v110")) as file,
    ):
        group, digests = file.create_group("tensors"), {}
        for name, bits in sorted(tensors.items(), key=itemgetter(0)):
            check_name(name)
            hashes = [pool.submit(hash_block, block) for _, block in bits.blocks()]
            dataset = _write_array(group, name, bits, compression)
            digests[name] = tensor_digest(bits, hashes)
            dataset.attrs["sha256"] = fixed_text(digests[name])
        if thumbnail is not None:
            _write_array(file, "thumbnail", _as_bits(thumbnail), "none")
        file.attrs["cogcache_sha256"] = fixed_text(seal_digest(key, attributes, digests, thumbnail))
        file.attrs["cogcache_format"] = FORMAT
        file.attrs["cogcache_key"] = fixed_text(key)
        for name, value in sorted(attributes.items(), key=itemgetter(0)):
            check_name(name)
            file.attrs[name] = encode_attribute(value)
        file.flush()
        image: bytes = file.id.get_file_image()
        return image


def _as_bits(thumbnail: bytes) -> Bits:
    return Bits("uint8", np.frombuffer(thumbnail, np.int8))


def _write_array(
    group: h5py.Group, name: str, bits: Bits, compression: Compression
) -> h5py.Dataset:
    nbytes = bits.array.nbytes
    if compression == "none" or nbytes < _SMALL_BYTES:
        return _create(group, name, bits, h5p.create(h5p.DATASET_CREATE))
    dataset = _create(group, name, bits, _compressed(bits, compression))
    dataset.flush()  # until then its size on the disk is unknown
    if nbytes <= MAX_EXPANSION * dataset.id.get_storage_size():
        return dataset
    del group[name]  # mere zeros: a reader would take them for a bomb
    return _create(group, name, bits, h5p.create(h5p.DATASET_CREATE))


def _create(group: h5py.Group, name: str, bits: Bits, how: h5p.PropDCID) -> h5py.Dataset:
    how.set_fill_time(h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)
    kind, array = TYPES[bits.dtype], bits.array
    dataset = h5d.create(group.id, name.encode(), kind, h5s.create_simple(array.shape), how)
    if array.size:
        # The same type in memory as in the file: HDF5 would convert bfloat16 number by number.
        dataset.write(h5s.ALL, h5s.ALL, array, mtype=kind)
    return h5py.Dataset(dataset)


def _compressed(bits: Bits, compression: Compression) -> h5p.PropDCID:
    import hdf5plugin  # here: readers of uncompressed files need not pay for it

    shape = bits.array.shape
    how = h5p.create(h5p.DATASET_CREATE)
    how.set_chunk((min(block_rows(shape, bits.array.itemsize), shape[0]), *shape[1:]))
    if compression == "zstd":
        how.set_shuffle()
        options = hdf5plugin.Zstd(clevel=1)
    else:
        options = hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=hdf5plugin.Blosc2.SHUFFLE)
    how.set_filter(options["compression"], h5z.FLAG_MANDATORY, options["compression_opts"])
    return how


def packings(path: Path) -> set[Compression]:
    """Return how the tensors of a sealed file are packed; small ones never are."""
    with h5py.File(path, "r", locking=False) as file:
        return {_packing(each) for each in file["tensors"].values() if _is_large(each)}


def _is_large(dataset: h5py.Dataset) -> bool:
    return bool(math.prod(dataset.shape) * dataset.id.get_type().get_size() >= _SMALL_BYTES)


def _packing(dataset: h5py.Dataset) -> Compression:
    found = _filters(dataset.id.get_create_plist())
    bits = Bits("", np.empty(dataset.shape, f"V{dataset.id.get_type().get_size()}"))
    fitting = (each for each in COMPRESSIONS[1:] if _fits(found, _filters(_compressed(bits, each))))
    return next(fitting, "none") if found else "none"


def _fits(found: Filters, wanted: Filters) -> bool:
    """Say whether a dataset has these filters. HDF5 fills in what they leave at 0: block sizes."""
    return [number for number, _ in found] == [number for number, _ in wanted] and all(
        not asked or had == asked
        for (_, has), (_, asks) in zip(found, wanted, strict=True)
        for had, asked in zip(has, asks, strict=False)
    )


def _filters(how: h5p.PropDCID) -> Filters:
    found = (how.get_filter(number) for number in range(how.get_nfilters()))
    return [(number, values) for number, _, values, _ in found]
