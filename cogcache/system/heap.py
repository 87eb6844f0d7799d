"""Memory of the process: running out, and giving freed blocks back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cogcache.system.devices import accelerator_in_use

_SMALL_BYTES, _MOST_BYTES = 1 << 20, 1 << 25
"""Size from which blocks are mapped: so that they go back when freed, and what glibc comes to."""
_M_MMAP_THRESHOLD = -3
"""Parameter of glibc's mallopt, from malloc.h."""


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on a GPU or on the CPU."""
    kinds = ("OutOfMemoryError", "MemoryError")
    return type(error).__name__ in kinds or "can't allocate memory" in str(error)


@contextmanager
def running_out() -> Iterator[list[str]]:
    """Collect the message of a block that runs out of memory; any other error passes.

    Only the message: the error's traceback would hold all that the block had allocated.
    """
    messages: list[str] = []
    try:
        yield messages
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        messages.append(str(error))
    if messages:
        give_back()


def give_back() -> None:
    """Give memory that nothing uses any more back to the system and the device."""
    gc.collect()
    if trim := getattr(_libc(), "malloc_trim", None):
        trim(0)
    if accelerator_in_use():
        sys.modules["torch"].accelerator.empty_cache()


@contextmanager
def blocks_given_back() -> Iterator[None]:
    """Have every freed block of a MiB or more go back to the system at once, inside.

    glibc raises the size from which it maps blocks to that of the largest it has seen freed, up
    to 32 MiB. Weights of that size, made and freed by the hundred while a half is quantised,
    then leave holes in the heap: 1.7 GiB beside the flagship's 5.3 (docs/measurements.md).
    Where there is no glibc this does nothing.
    """
    _map_blocks_from(_SMALL_BYTES)
    try:
        yield
    finally:
        _map_blocks_from(_Heap.mapped_from_bytes)
        give_back()


def keep_giving_back(wanted: bool) -> None:
    """Have freed blocks go back at once from here on, as in `blocks_given_back`; or no more.

    Weights that pass through one block after the other, between activations that stay, leave
    holes too: with the flagship's 63 blocks 0.6 GB at the end of a pass (docs/measurements.md).
    """
    _Heap.mapped_from_bytes = _SMALL_BYTES if wanted else _MOST_BYTES
    _map_blocks_from(_Heap.mapped_from_bytes)


class _Heap:
    """What is so of this process' heap."""

    mapped_from_bytes = _MOST_BYTES


def _map_blocks_from(size_bytes: int) -> None:
    if mallopt := getattr(_libc(), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, size_bytes)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
