"""The folder of damaged files, and of copies of files that were replaced, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from cogcache.errors import CacheError
from cogcache.system import seal, sync_folder


class Quarantine:
    """Keeps files out of use without deleting them.

    Args:
        folder: where they are kept; made when the first one comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep_copy(self, path: Path, reason: str) -> Path:
        """Copy a file that is about to be replaced; return where the copy is."""
        names = chain([path.name], (f"{path.name}.{number}" for number in count(2)))
        target = next(t for t in map(self.folder.joinpath, names) if not t.exists())
        seal(target, path.read_bytes())
        seal(target.with_name(f"{target.name}.txt"), f"{reason}\n".encode())
        return target

    def place_for(self, key: str, reason: str) -> Path:
        """Return where the damaged features of a key go, once the reason lies beside that place."""
        target = next(t for t in self._places(key) if not t.exists())
        seal(target.with_suffix(".txt"), f"{reason}\n".encode(errors="backslashreplace"))
        return target

    def move(self, path: Path, target: Path) -> None:
        """Move a damaged file to its place here.

        Raises:
            CacheError: it cannot be moved.
        """
        try:
            path.rename(target)
        except OSError as error:
            raise CacheError(f"cannot move {path} to {target}: {error.strerror}") from error
        sync_folder(target.parent)
        sync_folder(path.parent)

    def _places(self, key: str) -> Iterator[Path]:
        yield self.folder / f"{key}.h5"
        yield from (self.folder / f"{key}-{number}.h5" for number in count(2))
