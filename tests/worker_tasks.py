"""What the tests have worker processes do; a new process must be able to import it by name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from cogcache.errors import VideoError


def double(number: int) -> int:
    return 2 * number


def process_id(_job: object) -> int:
    return os.getpid()


def answer(job: object) -> object:
    """Do what a job's text says; give anything else back."""
    if isinstance(job, str):
        return ACTIONS[job]()
    return job


def _raise(error: Exception) -> None:
    raise error


def _signal_self() -> str:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    return "lived on"


class OddError(Exception):
    """An error that cannot be made again from its arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class KilledWhileSending:
    """A result so large that its process is gone before all of it is sent."""

    def __getstate__(self) -> bytes:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(400 << 20)


def write_pid_and_sleep(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(3600)


def fail_to_start() -> None:
    raise LookupError("no model here")


def exit_at_start() -> None:
    sys.stderr.close()
    os._exit(7)


ACTIONS = {
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(3600),
    "killed while sending": KilledWhileSending,
    "clip error": lambda: _raise(VideoError("no_frames", "nothing to see", "look elsewhere")),
    "bug": lambda: {}["no such key"],
    "odd bug": lambda: _raise(OddError(1, 2)),
    "memory": lambda: _raise(MemoryError()),
    "no pickle": threading.Lock,
    "signals": _signal_self,
}
