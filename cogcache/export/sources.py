"""The files that an export copies from, each checked to contain what was captioned.

A link may lead to another file by now, so a linked file is read whole once in each command. For
other files, unchanged size, time and inode are enough.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cogcache.catalog import REPLACED, UNKNOWN, CatalogFile, FileFacts
from cogcache.errors import VideoError
from cogcache.export.items import Item
from cogcache.video import FileState, file_digest, state_of


class Sources:
    """Proves files before they are copied, and once more afterwards.

    Args:
        file: the catalog, which remembers digests.
    """

    def __init__(self, file: CatalogFile) -> None:
        self._memory = FileFacts(file)
        self._digests: dict[FileState, str] = {}

    @contextmanager
    def proven(self, item: Item) -> Iterator[Path]:
        """Give a file with the bytes of a caption's video, to be read while a `with` block runs.

        Raises:
            VideoError: there is none on a disk of this machine, it holds other bytes
                (``changing``), or was changed while it was read.
        """
        path = self._path(item)
        before = state_of(path)
        if before not in self._digests:
            self._digests[before] = self._digest(path)
        if self._digests[before] != item.video_digest:
            raise VideoError("changing", REPLACED)
        yield path
        if state_of(path) != before:
            raise VideoError("changing", "it was changed while it was copied; export again")

    def _path(self, item: Item) -> Path:
        if item.video_digest is None:
            raise VideoError("missing", UNKNOWN)
        if not item.paths:
            where = "lies in a store; fetch it" if item.names else "no file holds it any more"
            raise VideoError("missing", where)
        return item.paths[0]

    def _digest(self, path: Path) -> str:
        is_reached_by_link = os.path.realpath(path) != os.fspath(path)
        known = None if is_reached_by_link else self._memory.known_digest(path, path.stat())
        return known or file_digest(path)
