"""Has a program end when the program that started it ends, even after a crash."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_STARTER: Final = "COGCACHE_STARTER_PIPE"
"""Environment variable: the descriptor of a pipe that closes when the starting program ends."""
_GRACE_S: Final = 1.5


@contextmanager
def starter_pipe() -> Iterator[tuple[int | None, dict[str, str]]]:
    """Give what a program needs to end with this process: a descriptor, and its environment.

    The descriptor is one to pass on (``pass_fds``); what it is the end of is open in this process
    for as long as the `with` block runs. On Windows there is none.
    """
    if os.name == "nt":
        yield None, {**os.environ}
        return
    theirs, ours = os.pipe()
    try:
        yield theirs, {**os.environ, _STARTER: str(theirs)}
    finally:
        os.close(theirs)
        os.close(ours)


def end_with_starter() -> None:
    """End this process cleanly when the one that started it with `starter_pipe` has ended."""
    descriptor = os.environ.pop(_STARTER, "")
    if descriptor.isdecimal():
        os.set_inheritable(int(descriptor), False)
        threading.Thread(target=_end_behind, args=(int(descriptor),), daemon=True).start()


def _end_behind(descriptor: int) -> None:
    with suppress(OSError):
        os.read(descriptor, 1)  # nothing is ever written: it returns when the other end is closed
    for _ in range(2):  # the first finishes what is in hand, the second stops at once
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
    os._exit(128 + signal.SIGTERM)
