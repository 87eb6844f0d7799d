"""Checks the structure of a feature file before any link is followed or chunk decompressed.

A file may come from anybody. Its names are walked by what its links say of themselves, so that no
link leads away from it; then each dataset's layout, filters and shape are held against the format
and against the bytes on the disk, and each compressed chunk against the size that it must have.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5i, h5l, h5o, h5p, h5pl, h5t

from cogcache.errors import CorruptFeaturesError
from cogcache.store.chunk_heads import BLOSC2, HEAD_BYTES, SHUFFLE, ZSTD, check_head, check_options
from cogcache.store.format import MAX_EXPANSION, TYPES, block_rows, check_name

MAX_NAMES: Final = 4096
"""Most tensors, and most attributes, of a file: families have some ten and some forty."""
MAX_ATTRIBUTE_BYTES: Final = 2**26
"""Most bytes of one attribute."""
MAX_THUMBNAIL_BYTES: Final = 2**24
MAX_OTHER_BYTES: Final = 2**26
"""Most bytes of a file that no tensor takes: names, attributes, the thumbnail."""
MAX_EMPTY_AXES: Final = 2**30
"""Most numbers that an empty tensor would have, were its empty axes of length 1."""

_TENSORS: Final = "tensors"
_THUMBNAIL: Final = "thumbnail"


@dataclass(frozen=True, slots=True)
class Structure:
    """The datasets of a file whose structure is that of the format."""

    tensors: Mapping[str, h5py.Dataset]
    thumbnail: h5py.Dataset | None


def expect(holds: bool, otherwise: str) -> None:
    """Raise CorruptFeaturesError unless what the format says holds."""
    if not holds:
        raise CorruptFeaturesError(otherwise)


def load_no_plugins() -> None:
    """Have HDF5 load no filter from a folder: neither its own ones nor ``HDF5_PLUGIN_PATH``.

    The filters of the format come with hdf5plugin, which registers them itself.
    """
    while h5pl.size():
        h5pl.remove(0)


def structure_of(file: h5py.File) -> Structure:
    """Return the datasets of a file, each fit to be read.

    Raises:
        CorruptFeaturesError: the file holds what the format does not have.
    """
    expect(file.id.get_create_plist().get_userblock() == 0, "it does not begin with its own data")
    root = h5g.open(file.id, b"/")
    found = _kinds(root, "")
    expect(found.pop(_TENSORS, None) == h5o.TYPE_GROUP, f"it has no group {_TENSORS!r}")
    thumbnail = None
    if found.pop(_THUMBNAIL, h5o.TYPE_DATASET) == h5o.TYPE_DATASET and _has(root, _THUMBNAIL):
        thumbnail = _checked(root, _THUMBNAIL)
        small = thumbnail.ndim == 1 and thumbnail.size <= MAX_THUMBNAIL_BYTES
        expect(small and thumbnail.dtype == "u1", "its thumbnail is no picture")
    expect(not found, f"it holds {next(iter(found), '')!r}, which the format does not have")
    group = h5g.open(root, _TENSORS.encode())
    tensors: dict[str, h5py.Dataset] = {}
    for name, kind in _kinds(group, f"{_TENSORS}/").items():
        _check_name(name)
        expect(kind == h5o.TYPE_DATASET, f"{_TENSORS}/{name} is not a dataset")
        tensors[name] = _checked(group, name)
    _check_sum(file, tensors, thumbnail)
    return Structure(tensors, thumbnail)


def _has(group: h5g.GroupID, name: str) -> bool:
    return bool(group.links.exists(name.encode()))


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise CorruptFeaturesError(f"a tensor is named {name!r}") from error


def _kinds(group: h5g.GroupID, path: str) -> dict[str, int]:
    """Return the kind of each object in a group; none is reached but by a hard link."""
    names: list[bytes] = []

    def note(name: bytes) -> bool | None:
        names.append(name)
        return True if len(names) > MAX_NAMES else None

    expect(not _num_filters(group), f"{path or '/'} is a group that is packed")
    group.links.iterate(note)
    expect(len(names) <= MAX_NAMES, f"it has more than {MAX_NAMES} names")
    kinds = {}
    for name in names:
        shown = f"{path}{name.decode()}"
        expect(group.links.get_info(name).type == h5l.TYPE_HARD, f"{shown} is a link")
        about = h5o.get_info(group, name)
        expect(about.rc == 1, f"{shown} has another name as well")
        kinds[name.decode()] = about.type
    return kinds


def _num_filters(group: h5g.GroupID) -> int:
    """Return how many filters the names of a group pass through; h5py asks datasets alone."""
    how = group.get_create_plist()
    h5i.inc_ref(how)  # both objects let go of it
    count: int = h5p.PropDCID(how.id).get_nfilters()
    return count


def _checked(group: h5g.GroupID, name: str) -> h5py.Dataset:
    """Return a dataset whose layout, filters and shape are the format's.

    The layout is asked for before the shape: to tell the shape of a virtual dataset, HDF5 opens
    the files that it is made of.
    """
    dataset = h5py.Dataset(h5d.open(group, name.encode()))
    name, how, kind = dataset.name, dataset.id.get_create_plist(), dataset.id.get_type()
    layout = how.get_layout()
    own = layout in (h5d.CONTIGUOUS, h5d.CHUNKED)
    expect(own, f"{name} does not lie in the file as the format says")
    expect(how.get_external_count() == 0, f"{name} is too large: its bytes lie elsewhere")
    known = any(each == kind for each in TYPES.values())
    expect(known, f"{name} is of a type that the format does not have")
    if layout == h5d.CONTIGUOUS:
        expect(how.get_nfilters() == 0, f"{name} has filters that the format does not have")
        there = dataset.id.get_storage_size()
        fits = _num_bytes(dataset) == there <= dataset.file.id.get_filesize()
        expect(fits, f"{name} is too large")
    else:
        _check_filters(dataset, how)
    if not dataset.size:
        longest = math.prod(max(side, 1) for side in dataset.shape)
        expect(longest <= MAX_EMPTY_AXES, f"{name} is empty and of a boundless shape")
    return dataset


def _num_bytes(dataset: h5py.Dataset) -> int:
    count: int = math.prod(dataset.shape)
    return count * int(dataset.id.get_type().get_size())


def _check_filters(dataset: h5py.Dataset, how: Any) -> None:
    """Refuse chunks that are not blocks, or packed as the format does not say."""
    name, item = dataset.name, int(dataset.id.get_type().get_size())
    fits = _num_bytes(dataset) <= MAX_EXPANSION * dataset.id.get_storage_size()
    expect(fits, f"{name} is too large")
    expect(all(dataset.shape), f"{name} is empty and in chunks")
    chunk = _chunk(dataset)
    expect(how.get_chunk() == chunk, f"{name} is not cut into blocks")
    filters = _filters(how)
    numbers = [number for number, _ in filters]
    known = numbers in ([SHUFFLE, ZSTD], [BLOSC2])
    expect(known, f"{name} is packed with filters that the format does not have")
    check_options(numbers[-1], filters[-1][1], chunk, item)


def _chunk(dataset: h5py.Dataset) -> tuple[int, ...]:
    rows = block_rows(dataset.shape, int(dataset.id.get_type().get_size()))
    return (min(rows, dataset.shape[0]), *dataset.shape[1:])


def _filters(how: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Return the first filters of a dataset, one more than the format has: number and options."""
    found = (how.get_filter(number) for number in range(min(how.get_nfilters(), 3)))
    return [(number, values) for number, _, values, _ in found]


def check_chunks(dataset: h5py.Dataset) -> None:
    """Refuse a dataset one of whose chunks would become larger than a block.

    Raises:
        CorruptFeaturesError: one would, lacks, or was packed in another way.
    """
    how = dataset.id.get_create_plist()
    if how.get_layout() != h5d.CHUNKED:
        return
    import hdf5plugin  # noqa: F401  # its import lets HDF5 find the filters

    chunk, item = _chunk(dataset), int(dataset.id.get_type().get_size())
    number, chunk_bytes = _filters(how)[-1][0], math.prod(chunk) * item
    count = -(-dataset.shape[0] // chunk[0])
    heads = [*_heads(dataset, count)]
    expect(len(heads) == count, f"{dataset.name} lacks some of its chunks")
    for head, size in heads:
        check_head(number, head, size, chunk_bytes)


def _heads(dataset: h5py.Dataset, most: int) -> Iterator[tuple[bytes, int]]:
    """Yield the first bytes of each chunk as it lies on the disk, and how many it has."""
    found: list[Any] = []

    def note(chunk: Any) -> bool | None:
        found.append(chunk)
        return True if len(found) > most else None

    dataset.id.chunk_iter(note)
    name = dataset.name
    expect(len(found) <= most, f"{name} has too many chunks")
    size_bytes = dataset.file.id.get_filesize()
    descriptor = dataset.file.id.get_vfd_handle()
    for chunk in found:
        expect(chunk.filter_mask == 0, f"{name} has a chunk that is packed in another way")
        inside = chunk.byte_offset is not None and chunk.byte_offset + chunk.size <= size_bytes
        expect(inside, f"{name} has a chunk outside of the file")
        yield os.pread(descriptor, min(HEAD_BYTES, chunk.size), chunk.byte_offset), chunk.size


def _check_sum(
    file: h5py.File, tensors: Mapping[str, h5py.Dataset], thumbnail: h5py.Dataset | None
) -> None:
    """Hold all datasets against the file: no two may share bytes, and little may be left over."""
    stored = sum(each.id.get_storage_size() for each in tensors.values())
    stored += 0 if thumbnail is None else thumbnail.id.get_storage_size()
    size_bytes = file.id.get_filesize()
    expect(stored <= size_bytes, "its tensors are too large for it")
    expect(size_bytes - stored <= MAX_OTHER_BYTES, "most of it is of no tensor")


def attributes_of(of: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """Return the attributes of an object as h5py reads them; each is of a type of the format's.

    Raises:
        CorruptFeaturesError: one is of another type, or too large.
    """
    names: list[bytes] = []

    def note(name: bytes, *_: object) -> bool | None:
        names.append(name)
        return True if len(names) > MAX_NAMES else None

    h5a.iterate(of.id, note)
    expect(len(names) <= MAX_NAMES, f"it has more than {MAX_NAMES} attributes")
    return {name.decode(): _read_attribute(h5a.open(of.id, name), name.decode()) for name in names}


def _read_attribute(attribute: h5a.AttrID, name: str) -> Any:
    """Return what `attrs[name]` does, of an attribute that is open already.

    A file's `attrs` opens its root again for each: with a dozen names that was most of reading a
    small file.
    """
    kind, shape = attribute.get_type(), attribute.shape
    _check_attribute(kind, shape, name)
    value = np.zeros(shape, kind.dtype)
    attribute.read(value, mtype=kind)
    return value if value.ndim else value[()]


def _check_attribute(kind: h5t.TypeID, shape: tuple[int, ...], name: str) -> None:
    if isinstance(kind, h5t.TypeStringID):
        fits = not kind.is_variable_str() and shape == ()
    elif kind == h5t.IEEE_F64LE:
        fits = len(shape) <= 1
    else:
        fits = shape == () and (kind in (h5t.STD_I64LE, TYPES["bool"]))
    expect(fits, f"its attribute {name!r} is of a type that the format does not have")
    small = math.prod(shape) * kind.get_size() <= MAX_ATTRIBUTE_BYTES
    expect(small, f"its attribute {name!r} is too large")
