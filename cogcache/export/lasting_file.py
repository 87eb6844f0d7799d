"""A file that HDF5 can write to even when the disk is full.

HDF5 cannot close a file when the disk is full: it tries again at the end of the process and crashes
it. So data that does not fit is kept in memory, together with the error. The writer checks for the
error, closes the file, and then raises it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


class LastingFile(io.RawIOBase):
    """A new file that is read and written; ``error`` is the first error of its disk, if any.

    Args:
        path: the file to be; nothing is there yet.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._at = self._size = 0
        self._kept: list[tuple[int, bytes]] = []
        """What found no room, by its place; later parts cover earlier ones."""

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def seekable(self) -> bool:
        """Say that any place of it can be gone to."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; return it."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        """Return the place where it is read and written next."""
        return self._at

    def truncate(self, size: int | None = None) -> int:
        """Make it as long as that; return its length."""
        self._size = self._at if size is None else size
        self._tried(lambda: os.ftruncate(self._descriptor, self._size))
        return self._size

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current place; return how many bytes there were."""
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._at))
        read = os.pread(self._descriptor, length, self._at)
        view[:length] = read.ljust(length, b"\0")
        for start, part in self._kept:
            first, last = max(start, self._at), min(start + len(part), self._at + length)
            if first < last:
                view[first - self._at : last - self._at] = part[first - start : last - start]
        self._at += length
        return length

    def write(self, content: Any) -> int:
        """Write at the current place, to the disk or, once that has failed, to memory."""
        view = memoryview(content).cast("B")
        done = 0
        while self.error is None and done < len(view):
            done += self._tried(partial(os.pwrite, self._descriptor, view[done:], self._at + done))
        if done < len(view):
            self._kept.append((self._at + done, bytes(view[done:])))
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def _tried(self, call: Callable[[], int | None]) -> int:
        try:
            return call() or 0
        except OSError as error:
            self.error = self.error or error
            return 0
