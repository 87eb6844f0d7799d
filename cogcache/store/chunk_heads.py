"""Checks the header of a compressed chunk against the size that the chunk must have.

A filter takes as much memory as the chunk's own first bytes say. So these are read first, with no
filter at work: RFC 8878 describes them for Zstandard, and the README_CFRAME_FORMAT and
README_CHUNK_FORMAT of C-Blosc2 for Blosc2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cogcache.errors import CorruptFeaturesError

SHUFFLE: Final = 2
ZSTD: Final = 32015
BLOSC2: Final = 32026
"""Numbers of HDF5's filters, as the HDF Group registers them."""
HEAD_BYTES: Final = 4096
"""Of a chunk that are looked at; a Blosc2 head with the metadata of 8 axes has some 400."""

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_FRAME_MAGIC: Final = b"\x9e\xa8b2frame\x00"
_FRAME_BYTES: Final = 87
_CHUNK_BYTES: Final = 32
_BLOSC2_ZSTD: Final = 5
_BLOSC2_ZSTD_FORMAT: Final = 4
_FALSE: Final = 0xC2
"""As MessagePack writes it: nothing comes behind the chunks."""
_PADDING: Final = 8
"""Blosc2 rounds each axis up to whole blocks of its own: each of three axes at most doubles."""
_SMALL_BYTES: Final = 2**20


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CorruptFeaturesError(otherwise)


def check_options(number: int, options: Sequence[int], chunk: Sequence[int], item: int) -> None:
    """Refuse options of a filter that do not fit the dataset.

    Args:
        number: of the filter: `ZSTD` or `BLOSC2`.
        options: as HDF5 keeps them with the dataset.
        chunk: shape of a chunk.
        item: bytes of one number.

    Raises:
        CorruptFeaturesError: they do not fit.
    """
    if number == ZSTD:
        _expect(len(options) <= 1, "its Zstandard filter has unknown options")
        return
    size_bytes = item
    for side in chunk:
        size_bytes *= side
    plain = len(options) >= 7 and tuple(options[2:4]) == (item, size_bytes)
    shaped = len(options) == 7 or tuple(options[7:]) == (len(chunk), *chunk)
    usual = plain and options[5] in (0, 1) and options[6] == _BLOSC2_ZSTD
    _expect(usual and shaped, "its Blosc2 filter has options of another dataset")


def check_head(number: int, head: bytes, stored_bytes: int, chunk_bytes: int) -> None:
    """Refuse a chunk that would become larger than it must, or that another codec made.

    Args:
        number: of the filter: `ZSTD` or `BLOSC2`.
        head: the first bytes of the chunk as it lies on the disk.
        stored_bytes: how many it has there.
        chunk_bytes: how many it must become.

    Raises:
        CorruptFeaturesError: it would.
    """
    if number == ZSTD:
        _expect(_zstd_bytes(head) == chunk_bytes, "a chunk would become larger than its block")
    else:
        _check_blosc2(head, stored_bytes, chunk_bytes)


def _zstd_bytes(head: bytes) -> int | None:
    """Return how many bytes a Zstandard frame says it becomes; None where it does not say."""
    if head[:4] != _ZSTD_MAGIC or len(head) < 14:
        return None
    flags = head[4]
    single, size_flag, id_flag = flags >> 5 & 1, flags >> 6, flags & 3
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[id_flag]
    width = (1 if single else 0, 2, 4, 8)[size_flag]
    if not width:
        return None
    # A width of two bytes counts from 256 on.
    return int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)


def _check_blosc2(head: bytes, stored_bytes: int, chunk_bytes: int) -> None:
    most = max(_PADDING * chunk_bytes, _SMALL_BYTES)
    _expect(len(head) >= _FRAME_BYTES and head[:10] == _FRAME_MAGIC, "a chunk is no Blosc2 frame")
    begin, stored, becomes, block, whole = (
        int.from_bytes(head[at : at + width], "big", signed=True)
        for at, width in ((11, 4), (16, 8), (30, 8), (53, 4), (58, 4))
    )
    _expect(stored == stored_bytes, "a chunk is a Blosc2 frame of another length")
    fits = 0 < becomes <= most and becomes == whole and 0 < block <= whole
    _expect(fits, "a chunk would become larger than its block")
    usual = head[27] & 0xF == _BLOSC2_ZSTD and set(head[71:77]) <= {0, 1}
    _expect(usual and head[68] == _FALSE, "a chunk was packed by another codec")
    _expect(_FRAME_BYTES <= begin <= HEAD_BYTES - _CHUNK_BYTES, "a chunk's head is too long")
    _check_inner(head[begin : begin + _CHUNK_BYTES], most)


def _check_inner(chunk: bytes, most: int) -> None:
    """Check the first Blosc2 chunk in a frame: of mere zeros there is none but the list of them."""
    _expect(len(chunk) == _CHUNK_BYTES, "a chunk is cut short")
    flags = chunk[2]
    becomes, block = (int.from_bytes(chunk[at : at + 4], "little", signed=True) for at in (4, 8))
    fits = 0 <= becomes <= most and 0 <= block <= most
    _expect(fits, "a chunk would become larger than its block")
    usual = bool(flags & 2) or flags >> 5 == _BLOSC2_ZSTD_FORMAT  # 2: copied as it is
    _expect(usual and set(chunk[16:22]) <= {0, 1}, "a chunk was packed by another codec")
