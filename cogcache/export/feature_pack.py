"""Copies the features of chosen clips into one HDF5 file for other programs.

Plain HDF5 can read it: gzip, no plugins. `docs/export.md` explains how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h5py
from h5py import h5d, h5p, h5s

from cogcache.catalog import Absent, Catalog, Look, PlacedRows, Placing, Selection, missing_videos
from cogcache.errors import NothingChosenError
from cogcache.export.items import select_items
from cogcache.export.lasting_file import LastingFile
from cogcache.export.target import check_free, whole_file
from cogcache.export.wording import Wording
from cogcache.keys import Field
from cogcache.store import TYPES, Bits, FeatureStore, block_rows, encode_attribute, fixed_text
from cogcache.system import CachePaths

if TYPE_CHECKING:
    import torch

FORMAT = 1
_SMALL_BYTES = 2**16


class Packed(NamedTuple):
    """What the file contains, and what was left out."""

    clips: int
    absent: list[Absent]
    """Videos whose bytes no file holds: their clips are left out."""


def pack(
    cache: Path,
    out: Path,
    selection: Selection,
    *,
    overwrite: bool = False,
    look: Look | None = None,
) -> Packed:
    """Write the features of the clips whose captions pass ``selection``; of all without filters.

    Raises:
        CacheError: features are missing, or the disk is full.
        ConfigError: ``out`` may not be replaced.
        CorruptFeaturesError: a feature file is damaged.
        MissingVideosError: no file holds any of the videos, or one of them and this is an error.
        NothingChosenError: no clip was chosen.
    """
    check_free(out, overwrite=overwrite)
    store = FeatureStore.open(cache)
    clips, captions = _chosen(CachePaths(cache).catalog, selection, look or Look())
    with (
        whole_file(out, overwrite=overwrite, cache=cache) as path,
        closing(LastingFile(path)) as lasting,
    ):
        with h5py.File(lasting, "w", libver=("v110", "v110")) as file:
            file.attrs["cogcache_pack"] = FORMAT
            for clip in clips.rows:
                key = clip["feature_key"]
                group = file.create_group(key)
                stored = store.read(key)
                _write_clip(group, stored.tensors, {**stored.attributes, "video": clip["video"]})
                said = json.dumps(captions.get(key, []), ensure_ascii=False)
                group.create_dataset("captions", data=fixed_text(said), track_times=False)
                if lasting.error:
                    break
        if lasting.error:
            raise lasting.error
    return Packed(len(clips.rows), clips.absent)


def _chosen(
    catalog: Path, selection: Selection, look: Look
) -> tuple[PlacedRows, Mapping[str, list[dict[str, str]]]]:
    """Return the clips to pack, and what their captions say."""
    captions: dict[str, list[dict[str, str]]] = {}
    found = select_items(catalog, selection, Wording(), look)
    for item in found.items:
        names = ("prompt_name", "prompt", "model", "caption")
        said = {name: item.row[name] for name in names}
        captions.setdefault(item.row["feature_key"], []).append(said)
    with Catalog(catalog) as opened:
        wanted = None if selection == Selection() else captions
        clips = {clip["feature_key"]: clip for clip in opened.clips.rows(feature_keys=wanted)}
        holders = opened.holders(check=look.check, ask_stores=True)
        placed = Placing(holders, look, selection.folders).one([*clips.values()])
    absent = placed.absent if wanted is None else found.absent
    if not placed.rows and absent:
        raise missing_videos(absent)
    if not placed.rows:
        raise NothingChosenError("no clip was chosen", "see what there is: `cogcache ls clips`")
    return PlacedRows(placed.rows, absent), captions


def _write_clip(
    group: h5py.Group, tensors: Mapping[str, torch.Tensor], attributes: Mapping[str, Field]
) -> None:
    for name, value in sorted(attributes.items()):
        group.attrs[name] = encode_attribute(value)
    for name, tensor in sorted(tensors.items()):
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
