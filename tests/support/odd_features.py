"""More feature files as a stranger may make them: types, attributes and heads that are not ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Change = Callable[[Path], None]


def tensor(name: str = "x", **how: Any) -> Change:
    """Return a change that makes a tensor of another kind, its digest kept."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            digest = file["tensors/x"].attrs["sha256"]
            if name in file["tensors"]:
                del file["tensors"][name]
            made = file["tensors"].create_dataset(name, **how)
            made.attrs.create("sha256", digest, dtype=np.dtype("S64"))

    return change


def attribute(name: str, value: Any, dtype: Any = None, *, of: str = "/") -> Change:
    """Return a change that gives the file, or what is in it, another attribute."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            target = file[of]
            target.attrs.create(name, value, dtype=dtype)

    return change


def reference(path: Path) -> None:
    """Put a reference to the root into a tensor's place."""
    with h5py.File(path, "r+") as file:
        del file["tensors/x"]
        made = file["tensors"].create_dataset("x", (4,), dtype=h5py.ref_dtype)
        made[0] = file.ref


def reference_attribute(path: Path) -> None:
    """Let an attribute lead to the root."""
    with h5py.File(path, "r+") as file:
        file.attrs.create("a", file.ref, dtype=h5py.ref_dtype)


def links_in_a_ring(path: Path) -> None:
    """Let two soft links lead to each other."""
    with h5py.File(path, "r+") as file:
        file["tensors/a"] = h5py.SoftLink("/tensors/b")
        file["tensors/b"] = h5py.SoftLink("/tensors/a")


def many_attributes(path: Path) -> None:
    """Give the file 5,000 attributes."""
    with h5py.File(path, "r+", libver="latest") as file:
        for number in range(5000):
            file.attrs[f"a{number}"] = number


def cut(size: int) -> Change:
    """Return a change that cuts a file off."""

    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:size])

    return change


def user_block(path: Path) -> None:
    """Put 512 bytes before the file's own."""
    path.write_bytes(b"#!/bin/sh\n".ljust(512, b"\0") + path.read_bytes())


def flags_of_a_writer(path: Path) -> None:
    """Have the head say that somebody writes to the file just now."""
    content = path.read_bytes()
    with h5py.File(path, "w", libver="latest") as file:
        file.create_group("tensors")
        file.flush()
        file.swmr_mode = True
        told = path.read_bytes()
    path.write_bytes(told)
    assert content != told


def head(at: int, *values: int) -> Change:
    """Return a change of bytes of the head."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at : at + len(values)] = bytes(values)
        path.write_bytes(content)

    return change


CHANGES: dict[str, Change] = {
    "compound": tensor(shape=(4,), dtype=np.dtype([("a", "f4"), ("b", "i8")])),
    "opaque": tensor(shape=(4,), dtype=h5py.opaque_dtype(np.dtype("V7"))),
    "enumeration": tensor(shape=(4,), dtype=h5py.enum_dtype({"a": 1, "b": 2}, "i1")),
    "variable_text": tensor(shape=(4,), dtype=h5py.string_dtype()),
    "variable_rows": tensor(shape=(4,), dtype=h5py.vlen_dtype("f4")),
    "array_type": tensor(shape=(4,), dtype=np.dtype(("f4", (3, 3)))),
    "big_endian": tensor(shape=(4,), dtype=">f4"),
    "complex": tensor(shape=(4,), dtype="c8"),
    "float128": tensor(shape=(4,), dtype="g"),
    "text_of_a_gigabyte": tensor(shape=(1,), dtype="S1073741824"),
    "references": reference,
    "scalar_in_place_of_a_row": tensor(shape=(), dtype="f4"),
    "nothing": tensor(data=h5py.Empty("f4")),
    "chunks_of_one": tensor(shape=(5000,), dtype="f4", chunks=(1,)),
    "grows": tensor(shape=(4,), dtype="f4", chunks=(4,), maxshape=(None,)),
    "filled_with_minus_one": tensor(shape=(2**20,), dtype="f4", chunks=(2**18,), fillvalue=-1),
    "compact_and_filled": tensor(shape=(4,), dtype="f4", fillvalue=float("nan")),
    "of_32_axes": tensor(shape=(1,) * 32, dtype="f4", chunks=(1,) * 32),
    "name_with_a_dot": tensor(".x", shape=(4,), dtype="f4"),
    "name_of_a_megabyte": tensor("n" * 60_000, shape=(4,), dtype="f4"),
    "name_of_odd_letters": tensor("\u202e\n\x1b[31m", shape=(4,), dtype="f4"),
    "links_in_a_ring": links_in_a_ring,
    "many_attributes": many_attributes,
    "attribute_is_a_reference": reference_attribute,
    "attribute_is_compound": attribute("a", np.zeros((), [("a", "f4")])),
    "attribute_is_empty": attribute("a", h5py.Empty("f8")),
    "attribute_has_axes": attribute("a", np.zeros((2, 3))),
    "attribute_is_unsigned": attribute("a", np.uint64(2**64 - 1)),
    "attribute_is_no_utf8": attribute("family", np.bytes_(b"\xff\xfe")),
    "attribute_is_no_json": attribute("more", np.bytes_(b"json:{")),
    "attribute_is_deep": attribute("more", np.bytes_(b"json:" + b"[" * 30_000 + b"]" * 30_000)),
    "digest_is_a_number": attribute("sha256", 7, of="/tensors/x"),
    "digest_is_short": attribute("sha256", np.bytes_(b"ab"), of="/tensors/x"),
    "key_is_a_number": attribute("cogcache_key", 7),
    "format_is_a_text": attribute("cogcache_format", np.bytes_(b"one")),
    "format_of_the_future": attribute("cogcache_format", 99),
    "cut_in_the_head": cut(40),
    "cut_after_the_head": cut(200),
    "cut_by_half": lambda path: cut(path.stat().st_size // 2)(path),
    "empty": cut(0),
    "user_block": user_block,
    "somebody_writes": flags_of_a_writer,
    "version_of_the_head": head(8, 0xFF),
    "offsets_of_one_byte": head(13, 1, 1),
    "end_of_file_elsewhere": head(40, *[0xFF] * 8),
}  # fmt: skip
"""By name: what is done to a sealed file whose one tensor is `x`."""
