"""Where feature files lie: a folder of a disk, or a prefix of an object store.

In both a file is whole or absent. In a folder that takes a temporary name, syncs and a rename; in
an object store an object is seen only when all of it has arrived, and its size is then asked for.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cogcache.errors import CacheError, ConfigError
from cogcache.system import (
    CachePaths,
    Location,
    ObjectUrl,
    RemoteError,
    facts,
    filesystem,
    remove_dead,
    scratch_folder,
    seal,
    sync_folder,
    tried,
)

logger = logging.getLogger(__name__)

KEY: Final = re.compile(r"[0-9a-f]{64}")
_KEEP: Final = "mend it and run again: what is cached is kept"
_SHOWN_IN_PARTS: Final = {"file", "local", "sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs"}
"""Stores that show a file before it is complete."""
Check = Callable[[Path], None]


class FeatureFiles(Protocol):
    """What the store of features asks of a place for files named by their keys."""

    def path_of(self, key: str) -> Location:
        """Return where a file lies or would lie."""

    def has(self, key: str) -> bool:
        """Say whether there is a file of this key."""

    def present(self) -> set[str]:
        """Return the keys of all files."""

    def size_bytes(self, key: str) -> int:
        """Return the size of a file that is there."""

    def made_s(self, key: str) -> float:
        """Return when a file was written, in seconds since 1970."""

    def put(self, key: str, content: bytes, check: Check) -> None:
        """Write a file, whole or not at all; `check` looks at a copy before it can be seen."""

    def opened(self, key: str) -> AbstractContextManager[Path]:
        """Return a `with` block's file on this machine with the bytes of one that is there."""

    def remove(self, key: str) -> None:
        """Delete a file for good."""

    def strangers(self) -> Sequence[Location]:
        """Return files in the same place that are not feature files."""

    def remove_unfinished(self) -> list[Path]:
        """Remove temporary files of processes that have ended; return their paths."""


def feature_files(root: Path, url: str | None) -> FeatureFiles:
    """Return the files of a cache: below its folder, or below a URL."""
    return FolderFiles(CachePaths(root).features) if url is None else ObjectFiles(url.rstrip("/"))


@dataclass(frozen=True)
class FolderFiles:
    """Files in a folder, local or shared."""

    folder: Path

    def path_of(self, key: str) -> Path:
        """See `FeatureFiles`."""
        return self.folder / key[:2] / f"{key}.h5"

    def has(self, key: str) -> bool:
        """See `FeatureFiles`."""
        return self.path_of(key).is_file()

    def present(self) -> set[str]:
        """See `FeatureFiles`."""
        found: set[str] = set()
        if self.folder.is_dir():
            for folder in os.listdir(self.folder):  # noqa: PTH208 - a path object a file is dear
                with suppress(NotADirectoryError):
                    names = os.listdir(self.folder / folder)  # noqa: PTH208
                    found.update(name for name in names if name[:2] == folder)
        return {name[:-3] for name in found if name.endswith(".h5") and KEY.fullmatch(name[:-3])}

    def size_bytes(self, key: str) -> int:
        """See `FeatureFiles`."""
        return self.path_of(key).stat().st_size

    def made_s(self, key: str) -> float:
        """See `FeatureFiles`."""
        return self.path_of(key).stat().st_mtime

    def put(self, key: str, content: bytes, check: Check) -> None:
        """See `FeatureFiles`."""
        seal(self.path_of(key), content, check)

    @contextmanager
    def opened(self, key: str) -> Iterator[Path]:
        """See `FeatureFiles`."""
        yield self.path_of(key)

    def remove(self, key: str) -> None:
        """See `FeatureFiles`."""
        path = self.path_of(key)
        path.unlink()
        sync_folder(path.parent)

    def strangers(self) -> list[Path]:
        """See `FeatureFiles`."""
        # Told by the name alone: of a list that is made before or after, a run at work makes a lie.
        found = (path for path in self.folder.rglob("*") if not path.is_dir())
        return sorted(p for p in found if not self._is_ours(p) and not p.name.endswith(".partial"))

    def _is_ours(self, path: Path) -> bool:
        return bool(KEY.fullmatch(path.stem)) and path == self.path_of(path.stem)

    def remove_unfinished(self) -> list[Path]:
        """See `FeatureFiles`."""
        return remove_dead(self.folder.glob("??"))


class ObjectFiles:
    """Objects below a prefix of a store that shows an object only when it is whole, as S3 does.

    Args:
        url: the prefix.

    Raises:
        ConfigError: a package is missing, or the URL is not one to keep files at.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        if str(ObjectUrl.of(url)).partition("://")[0] in _SHOWN_IN_PARTS:
            raise ConfigError(
                f"features cannot be kept at {url}", "name a prefix, as s3://bucket/a"
            )

    def path_of(self, key: str) -> ObjectUrl:
        """See `FeatureFiles`."""
        return ObjectUrl(f"{self.url}/{key[:2]}/{key}.h5")

    def has(self, key: str) -> bool:
        """See `FeatureFiles`."""
        try:
            facts(self.path_of(key), anew=True)
        except RemoteError as error:
            if error.reason == "missing":
                return False
            raise _as_cache_error(self.path_of(key), error) from error
        return True

    def present(self) -> set[str]:
        """See `FeatureFiles`."""
        names = (name.rpartition("/")[2] for name in self._listed())
        return {name[:-3] for name in names if name.endswith(".h5") and KEY.fullmatch(name[:-3])}

    def size_bytes(self, key: str) -> int:
        """See `FeatureFiles`."""
        with self._errors(key):
            return facts(self.path_of(key)).st_size

    def made_s(self, key: str) -> float:
        """See `FeatureFiles`."""
        with self._errors(key):
            return facts(self.path_of(key)).st_mtime_ns / 1e9

    def put(self, key: str, content: bytes, check: Check) -> None:
        """See `FeatureFiles`."""
        system, name = filesystem(self._url_of(key))
        with _temporary() as copy:
            copy.write_bytes(content)
            check(copy)
        with self._errors(key):
            tried(self._url_of(key), lambda: system.pipe_file(name, content))
            stored = facts(self.path_of(key), anew=True).st_size
        if stored != len(content):
            problem = f"{self._url_of(key)} has {stored} bytes where {len(content)} were written"
            raise CacheError(problem, _KEEP)

    @contextmanager
    def opened(self, key: str) -> Iterator[Path]:
        """See `FeatureFiles`."""
        system, name = filesystem(self._url_of(key))
        with _temporary() as copy:
            with self._errors(key):
                copy.write_bytes(tried(self._url_of(key), lambda: system.cat_file(name)))
            yield copy

    def remove(self, key: str) -> None:
        """See `FeatureFiles`."""
        system, name = filesystem(self._url_of(key))
        with self._errors(key):
            tried(self._url_of(key), lambda: system.rm_file(name))

    def strangers(self) -> list[ObjectUrl]:
        """See `FeatureFiles`."""
        listed = self._listed()  # once: a run at work adds to it
        keys = {name.rpartition("/")[2].removesuffix(".h5") for name in listed}
        ours = {f"{key[:2]}/{key}.h5" for key in keys if KEY.fullmatch(key)}
        others = [name for name in listed if "/".join(name.split("/")[-2:]) not in ours]
        scheme = self.url.partition("://")[0]
        return sorted(ObjectUrl(f"{scheme}://{name.lstrip('/')}") for name in others)

    def remove_unfinished(self) -> list[Path]:
        """See `FeatureFiles`."""
        return []  # an upload that was broken off cannot be seen; the store's own rules end it

    def _listed(self) -> list[str]:
        system, name = filesystem(self.url)
        try:
            found: list[str] = tried(self.url, lambda: system.find(name))
        except RemoteError as error:
            if error.reason == "missing":
                return []
            raise _as_cache_error(ObjectUrl(self.url), error) from error
        return found

    def _url_of(self, key: str) -> str:
        return f"{self.url}/{key[:2]}/{key}.h5"

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except RemoteError as error:
            raise _as_cache_error(self.path_of(key), error) from error


def _as_cache_error(path: ObjectUrl, error: RemoteError) -> CacheError:
    hint = "see that the store can be reached, and what its variables in the environment are"
    return CacheError(f"{path}: {error}", hint)


@contextmanager
def _temporary() -> Iterator[Path]:
    with scratch_folder() as folder:
        yield folder / "features.h5"
