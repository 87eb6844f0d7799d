"""Errors that come from the machine, not from the file that was being read or written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cogcache.errors import ClipError, CogcacheError, MachineError
from cogcache.system.urls import Location


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


EXHAUSTED: Final = _numbers("EMFILE", "ENFILE")
"""Too many files are open: no other file could be opened either."""
OF_DISKS: Final = _numbers(
    "EIO", "ENODEV", "ENOTCONN", "ENXIO", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ESTALE",
    "ETIMEDOUT",
)  # fmt: skip
"""A damaged sector gives these errors for one file, a disk that is gone for every file."""
DISK_ERROR: Final = "disk_error"
"""Reason of a video that could not be read for one of these."""
MOST_IN_A_ROW: Final = 10
"""So many videos in a row may fail with disk errors before the run stops."""
SCARCE: Final = EXHAUSTED | _numbers("EAGAIN", "EDQUOT", "ENOMEM", "ENOSPC")
"""The machine has too little of something; libraries often report these in their own words."""
OF_THE_SYSTEM: Final = SCARCE | _numbers("EACCES", "EIO", "EROFS", "ESTALE")
"""Errors of disks and limits that nothing else in this module explains better."""
_NO_MEMORY: Final = ("can't allocate memory", "can't start new thread", "failed to map segment")
"""What torch, Python and the loader of libraries say where the system says ENOMEM or EAGAIN."""
FILES: Final = "raise `ulimit -n` (4096 is ample) and run again: nothing that is finished is lost"
MEMORY: Final = (
    "give it more memory or processes (`ulimit -v`, `ulimit -u`), lower --decode-workers or end "
    "other programs, and run again: nothing that is finished is lost"
)
MEND: Final = (
    "mend the disk, its rights or `ulimit -n`, and run again: nothing that is finished is lost"
)


def raise_if_exhausted(error: Exception) -> None:
    """Raise an error anew as the machine's if the file at hand cannot be the reason.

    Raises:
        MachineError: no more files can be opened.
    """
    if getattr(error, "errno", None) in EXHAUSTED:
        raise machine_error(error) or error


def raise_if_there(error: OSError, folder: Path) -> None:
    """Raise an error anew as the machine's if it says that a file is missing, and all are there.

    safetensors says so of every file that it cannot open, whatever the system said of it.

    Raises:
        MachineError: no more files can be opened.
    """
    files = [*folder.iterdir()]
    if isinstance(error, FileNotFoundError) and all(os.access(file, os.R_OK) for file in files):
        raise MachineError(f"{folder}: {os.strerror(errno.EMFILE)}", FILES) from error


def machine_error(error: BaseException) -> CogcacheError | None:
    """Return a message for an error of any library that the machine caused; else None.

    Libraries tell of it in errors of their own kinds, raised from the system's or with its words.
    An error of ours that came from a file that could not be opened may blame that file: where no
    other could be opened either, it is not to blame.
    """
    if isinstance(error, CogcacheError):
        return _no_more_files(error) or error
    for each in _chain(error):
        told = _told(each, OF_THE_SYSTEM if each is error else SCARCE)
        if told is not None:
            return MachineError(told, _hint(told))
    return None


def _no_more_files(error: CogcacheError) -> CogcacheError | None:
    came_from = () if isinstance(error, MachineError) else _chain(error)
    told = (_told(each, EXHAUSTED) for each in came_from if not isinstance(each, CogcacheError))
    return next((MachineError(each, FILES) for each in told if each and _hint(each) == FILES), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _told(error: BaseException, numbers: frozenset[int]) -> str | None:
    """Return what an error says of the machine, if it does."""
    if isinstance(error, OSError) and error.errno in numbers:
        return f"{error.filename or 'the system'}: {error.strerror}"
    said = str(error)
    if isinstance(error, MemoryError):
        return f"memory ran out: {said}" if said else "memory ran out"
    words = [os.strerror(number) for number in SCARCE]
    if any(each in said for each in (*words, *_NO_MEMORY)):
        return said.partition("\n")[0]
    return None


def _hint(told: str) -> str:
    if any(os.strerror(number) in told for number in EXHAUSTED):
        return FILES
    words = ("memory", "thread", "map segment", os.strerror(errno.EAGAIN))
    return MEMORY if any(each in told for each in words) else MEND


class DiskWatch:
    """Tells a damaged sector, which costs one video, from a disk that is gone.

    A failure is held back until another file is read: that proves that the disk is still there.
    """

    def __init__(self) -> None:
        self.held: list[tuple[Any, ClipError]] = []
        self._videos: set[Location] = set()

    @property
    def is_gone(self) -> bool:
        """Whether so many videos were lost in a row that the disk must be the reason."""
        return len(self._videos) >= MOST_IN_A_ROW

    def holds(self, job: Any, video: Location, error: ClipError) -> bool:
        """Hold a failure back if the disk may be its reason; say whether it is held."""
        if error.reason != DISK_ERROR:
            return False
        self.held.append((job, error))
        self._videos.add(video)
        return True

    def proven(self) -> list[tuple[Any, ClipError]]:
        """Return what was held back, of a disk that is there; nothing of one that is gone."""
        if self.is_gone:
            return []
        held, self.held, self._videos = self.held, [], set()
        return held

    def told(self) -> str:
        """Return what there is to say of a disk that is gone."""
        return f"{len(self._videos)} videos in a row were lost to the disk: {self.held[-1][1]}"
