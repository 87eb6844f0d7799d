"""Feature files as a stranger may make them: sealed with true digests, and made to do harm.

Each function takes the path of a feature file and changes it. `seal_anew` gives the result the
digest that a reader asks for, so that nothing but what the file is made of gives it away.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from cogcache.store.format import decode_attribute, fixed_text, seal_digest

Change = Callable[[Path], None]
KEY = "ab" * 32
MIB = 2**20


def seal_anew(path: Path) -> None:
    """Put the digest over what the file holds now into it, as far as there is one."""
    with h5py.File(path, "r+") as file:
        attributes = {
            name: decode_attribute(value)
            for name, value in file.attrs.items()
            if not name.startswith("cogcache_")
        }
        digests = {
            name: str(decode_attribute(file[f"tensors/{name}"].attrs["sha256"]))
            for name in file["tensors"]
        }
        made = seal_digest(
            str(decode_attribute(file.attrs["cogcache_key"])), attributes, digests, None
        )
        file.attrs["cogcache_sha256"] = fixed_text(made)


def _replaced(path: Path, **how: Any) -> None:
    """Make the tensor `x` anew, as a dataset that h5py makes of `how`; its digest stays."""
    with h5py.File(path, "r+") as file:
        digest = file["tensors/x"].attrs["sha256"]
        del file["tensors/x"]
        dataset = file["tensors"].create_dataset("x", **how)
        dataset.attrs["sha256"] = fixed_text(digest.decode())


def nested_gzip(path: Path) -> None:
    """Put 32 MiB of zeros into a chunk of 1 MiB."""
    packed = bytes(32 * MIB)
    _replaced(path, shape=(MIB,), dtype="u1", chunks=(MIB,), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["tensors/x"].id.write_direct_chunk((0,), zlib.compress(packed, 9))


def gzip_filters(path: Path) -> None:
    """Let a chunk pass through gzip twice."""
    with h5py.File(path, "r+") as file:
        digest = file["tensors/x"].attrs["sha256"]
        del file["tensors/x"]
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk((MIB,))
        how.set_deflate(9)
        how.set_filter(1, 0, (9,))
        space, kind = h5py.h5s.create_simple((MIB,)), h5py.h5t.STD_U8LE
        number = h5py.h5d.create(file["tensors"].id, b"x", kind, space, how)
        number.write_direct_chunk((0,), zlib.compress(zlib.compress(bytes(32 * MIB), 9), 9))
        h5py.Dataset(number).attrs["sha256"] = fixed_text(digest.decode())


def zstd_bomb(path: Path) -> None:
    """Put a chunk that becomes 384 MiB in place of one that becomes 1 MiB."""
    _bomb(path, hdf5plugin.Zstd(clevel=1), shuffle=True)


def blosc2_bomb(path: Path) -> None:
    """Do the same with Blosc2."""
    _bomb(path, hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=1), shuffle=False)


def _bomb(path: Path, packing: Any, *, shuffle: bool) -> None:
    large = path.with_name("large.h5")
    with h5py.File(large, "w") as file:
        zeros = np.zeros(384 * MIB, np.uint8)
        zeros[: MIB // 16] = np.random.default_rng(0).integers(0, 256, MIB // 16)
        made = file.create_dataset("x", data=zeros, chunks=zeros.shape, shuffle=shuffle, **packing)
        _, chunk = made.id.read_direct_chunk((0,))
    large.unlink()
    noise = np.random.default_rng(0).integers(0, 256, MIB, np.uint8)
    _replaced(path, data=noise, chunks=(MIB,), shuffle=shuffle, **packing)
    with h5py.File(path, "r+") as file:
        file["tensors/x"].id.write_direct_chunk((0,), chunk)


def packed_with(packing: Any) -> Change:
    """Return a change that packs a tensor with a filter that the format does not have."""

    def change(path: Path) -> None:
        noise = np.random.default_rng(0).normal(size=(4, 256, 256)).astype("f4")
        _replaced(path, data=noise, chunks=noise.shape, **packing)

    return change


def many_small_chunks(path: Path) -> None:
    """Declare 2^30 chunks of a byte, of which a few are there."""
    _replaced(path, shape=(2**30,), dtype="u1", chunks=(1,), **hdf5plugin.Zstd())


def boundless_and_empty(path: Path) -> None:
    """Declare a tensor of 2^45 rows of no numbers."""
    _replaced(path, shape=(2**45, 0), dtype="u1")


def boundless(path: Path) -> None:
    """Declare a tensor of 2^40 numbers."""
    _replaced(path, shape=(2**40,), dtype="u1")


def external_link_to_a_pipe(name: str) -> Change:
    """Return a change that makes a name a link to a file that never ends to open."""

    def change(path: Path) -> None:
        pipe = path.with_name("pipe")
        if not pipe.exists():
            os.mkfifo(pipe)
        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]
            file[name] = h5py.ExternalLink(str(pipe), "/x")

    return change


def virtual_of_a_pipe(path: Path) -> None:
    """Make a tensor of one in another file, of a length that only that file tells."""
    pipe = path.with_name("pipe")
    if not pipe.exists():
        os.mkfifo(pipe)
    layout = h5py.VirtualLayout((4,), "u1", maxshape=(None,))
    source = h5py.VirtualSource(str(pipe), "x", (4,), "u1", maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    with h5py.File(path, "r+") as file:
        digest = file["tensors/x"].attrs["sha256"]
        del file["tensors/x"]
        file.create_virtual_dataset("tensors/x", layout)
        file["tensors/x"].attrs["sha256"] = fixed_text(digest.decode())


def external_storage(path: Path) -> None:
    """Let a tensor's bytes lie in another file."""
    path.with_name("other").write_bytes(bytes(4096))
    other = str(path.with_name("other"))
    _replaced(path, shape=(4096,), dtype="u1", external=[(other, 0, 4096)])


def soft_link(path: Path) -> None:
    """Lead from a tensor's name to the same tensor elsewhere."""
    with h5py.File(path, "r+") as file:
        file.move("tensors/x", "elsewhere")
        file["tensors/x"] = h5py.SoftLink("/elsewhere")


def one_tensor_under_many_names(path: Path) -> None:
    """Give a tensor 300 names more, so that it is read 301 times."""
    with h5py.File(path, "r+") as file:
        for number in range(300):
            file[f"tensors/y{number}"] = file["tensors/x"]


def group_of_itself(path: Path) -> None:
    """Hang the group of tensors below itself."""
    with h5py.File(path, "r+") as file:
        file["tensors/again"] = file["tensors"]


def tensors_are_a_dataset(path: Path) -> None:
    """Put a dataset where the group of tensors should be."""
    with h5py.File(path, "r+") as file:
        del file["tensors"]
        file["tensors"] = np.zeros(4)


def named_datatype(path: Path) -> None:
    """Put a datatype where a tensor should be."""
    with h5py.File(path, "r+") as file:
        file["tensors/kind"] = np.dtype("f8")


def packed_group(path: Path) -> None:
    """Let the names of the tensors pass through gzip."""
    with h5py.File(path, "r+", libver="latest") as file:
        del file["tensors"]
        how = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        h5py.h5i.inc_ref(how)
        h5py.h5p.PropDCID(how.id).set_deflate(9)
        group = h5py.h5g.create(file.id, b"tensors", None, how)
        for number in range(50):
            h5py.Group(group)[f"x{number}"] = np.zeros(4)


def mostly_a_hole(path: Path) -> None:
    """Make the file a terabyte long, none of which takes any space."""
    os.truncate(path, 2**40)


def text_of_variable_length(path: Path) -> None:
    """Write an attribute as a text that lies elsewhere in the file."""
    with h5py.File(path, "r+") as file:
        file.attrs["family"] = "tiny"


CHANGES: dict[str, Change] = {
    "nested_gzip": nested_gzip,
    "gzip_filters": gzip_filters,
    "zstd_bomb": zstd_bomb,
    "blosc2_bomb": blosc2_bomb,
    "zfp": packed_with(hdf5plugin.Zfp(rate=8)),
    "bzip2": packed_with(hdf5plugin.BZip2()),
    "bitshuffle": packed_with(hdf5plugin.Bitshuffle()),
    "sz3": packed_with(hdf5plugin.SZ3()),
    "lz4": packed_with(hdf5plugin.LZ4()),
    "blosc": packed_with(hdf5plugin.Blosc()),
    "blosc2_of_lz4": packed_with(hdf5plugin.Blosc2(cname="lz4")),
    "fletcher32": packed_with({"fletcher32": True}),
    "scale_offset": packed_with({"scaleoffset": 2}),
    "szip_or_lzf": packed_with({"compression": "lzf"}),
    "many_small_chunks": many_small_chunks,
    "boundless_and_empty": boundless_and_empty,
    "boundless": boundless,
    "pipe_as_thumbnail": external_link_to_a_pipe("thumbnail"),
    "pipe_as_tensors": external_link_to_a_pipe("tensors"),
    "pipe_as_tensor": external_link_to_a_pipe("tensors/x"),
    "pipe_beside": external_link_to_a_pipe("other"),
    "virtual": virtual_of_a_pipe,
    "external_storage": external_storage,
    "soft_link": soft_link,
    "many_names": one_tensor_under_many_names,
    "group_of_itself": group_of_itself,
    "tensors_are_a_dataset": tensors_are_a_dataset,
    "named_datatype": named_datatype,
    "packed_group": packed_group,
    "mostly_a_hole": mostly_a_hole,
    "variable_text": text_of_variable_length,
}
"""By name: what is done to a sealed file whose one tensor is `x`."""
