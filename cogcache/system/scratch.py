"""Folders of a process' own in the system's temporary folder, which go however it ends.

Parts of a half that wait on the disk are gigabytes. A process that is killed cannot remove them;
the next one does, which finds that nobody holds their lock any more.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

_PREFIX: Final = "cogcache-half-"
_LOCK: Final = ".in-use"
_YOUNG_S: Final = 60.0
"""A folder without a lock that is younger than this may be about to get one."""


class Scratch:
    """A new folder, held until it is closed; what killed processes left is removed first."""

    def __init__(self) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Not of one thread: a model may be let go of in another.
        self._lock = FileLock(self.path / _LOCK, thread_local=False)
        self._lock.acquire()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self._lock.release()


def sweep() -> None:
    """Remove the folders of processes that are there no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, Timeout):  # of another user, in use, or gone by now
            if not folder.is_symlink() and time.time() - folder.stat().st_mtime > _YOUNG_S:
                with FileLock(folder / _LOCK, timeout=0):
                    shutil.rmtree(folder)
