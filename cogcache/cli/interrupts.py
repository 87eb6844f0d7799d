"""Signals that ask the program to end, heard from its first moment on.

Python's own way to end by SIGTERM undoes nothing, and by SIGINT shows a traceback while modules are
still imported. So this module is the first that the program imports.
"""

from __future__ import annotations

import signal
import sys
from pathlib import PurePath
from types import FrameType
from typing import Final

from cogcache.system.signals import asking_to_end

STATUS_OF_SIGNAL: Final = 128
"""What is added to a signal's number, as shells do."""
_received: list[int] = []


def hear() -> None:
    """Have SIGINT, SIGTERM and SIGHUP raise SystemExit, so that `finally` blocks run."""
    for number in asking_to_end():
        signal.signal(number, _end)


def hear_if_program() -> None:
    """Do as `hear` does if this process is the program, and not one that imports its modules."""
    program = PurePath(sys.argv[0])
    is_program = program.stem == "cogcache" or program.parts[-2:] == ("cogcache", "__main__.py")
    # A worker that multiprocessing started bears the program's name, and has ways of its own.
    if is_program and "multiprocessing.spawn" not in sys.modules:
        hear()


def pass_by() -> None:
    """Ignore signals from here on: the work is done, and the exit status is decided."""
    for number in asking_to_end():
        signal.signal(number, signal.SIG_IGN)


def were_heard() -> bool:
    """Say whether a signal ended the command."""
    return bool(_received)


def ending_status() -> int:
    """Return the exit status of a command that a signal ended."""
    return STATUS_OF_SIGNAL + _received[0]


def _end(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    raise SystemExit(STATUS_OF_SIGNAL + number)


hear_if_program()
