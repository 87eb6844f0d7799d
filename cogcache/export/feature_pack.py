"""Packs the features of chosen clips into one HDF5 file for others: a copy, never in place.

It needs nothing but HDF5 to be read: gzip, no plugins. `docs/export.md` says how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
from h5py import h5d, h5p, h5s

from cogcache.catalog import Catalog, ClipRow, Selection
from cogcache.errors import ConfigError
from cogcache.export.items import select_items
from cogcache.export.target import check_free, whole_file
from cogcache.export.wording import Wording
from cogcache.store import (
    TYPES,
    Bits,
    FeatureStore,
    StoredFeatures,
    block_rows,
    encode_attribute,
    fixed_text,
)

FORMAT = 1
_SMALL_BYTES = 2**16


def pack(cache: Path, out: Path, selection: Selection, *, overwrite: bool = False) -> int:
    """Write the features of the clips whose captions pass ``selection``; of all without filters.

    Returns:
        How many clips were packed.

    Raises:
        CacheError: features are missing, or the disk is full.
        ConfigError: ``out`` may not be replaced, or no clip was chosen.
        CorruptFeaturesError: a feature file is damaged.
    """
    check_free(out, overwrite=overwrite)
    store, (clips, captions) = FeatureStore.open(cache), _chosen(cache, selection)
    with (
        whole_file(out, overwrite=overwrite) as path,
        h5py.File(path, "w", libver=("v110", "v110")) as file,
    ):
        file.attrs["cogcache_pack"] = FORMAT
        for clip in clips:
            key = clip["feature_key"]
            group = file.create_group(key)
            _write_clip(group, store.read(key))
            said = json.dumps(captions.get(key, []), ensure_ascii=False)
            group.create_dataset("captions", data=fixed_text(said), track_times=False)
    return len(clips)


def _chosen(
    cache: Path, selection: Selection
) -> tuple[list[ClipRow], Mapping[str, list[dict[str, str]]]]:
    captions: dict[str, list[dict[str, str]]] = {}
    for item in select_items(cache / "catalog.sqlite", selection, Wording()):
        names = ("prompt_name", "prompt", "model", "caption")
        said = {name: item.row[name] for name in names}
        captions.setdefault(item.row["feature_key"], []).append(said)
    with Catalog(cache / "catalog.sqlite") as catalog:
        clips = catalog.clips.rows(feature_keys=None if selection == Selection() else captions)
    if not clips:
        raise ConfigError("no clip was chosen", "see what there is: `cogcache ls clips`")
    return clips, captions


def _write_clip(group: h5py.Group, stored: StoredFeatures) -> None:
    for name, value in sorted(stored.attributes.items()):
        group.attrs[name] = encode_attribute(value)
    for name, tensor in sorted(stored.tensors.items()):
        _write_tensor(group, name, Bits.of(name, tensor))


def _write_tensor(group: h5py.Group, name: str, bits: Bits) -> None:
    how, array = h5p.create(h5p.DATASET_CREATE), bits.array
    how.set_obj_track_times(False)
    if array.nbytes >= _SMALL_BYTES:
        how.set_chunk((min(block_rows(array.shape, array.itemsize), len(array)), *array.shape[1:]))
        how.set_shuffle()
        how.set_deflate(1)
    kind, tensors = TYPES[bits.dtype], group.require_group("tensors")
    dataset = h5d.create(tensors.id, name.encode(), kind, h5s.create_simple(array.shape), how)
    if array.size:
        # The same type in memory as in the file: HDF5 would convert bfloat16 number by number.
        dataset.write(h5s.ALL, h5s.ALL, array, mtype=kind)
