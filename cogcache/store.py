"""The cache folder: one sealed feature file a clip. docs/format.md specifies it.

Feature files are written once and never opened for writing again. That one exists means that it
is complete; that it is sound is proven at each reading.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cogcache import feature_file, feature_reader
from cogcache.canonical import Field
from cogcache.errors import CacheError
from cogcache.feature_file import Compression
from cogcache.feature_format import Bits
from cogcache.feature_reader import StoredFeatures
from cogcache.sealing import remove_dead, seal, sync_folder

if TYPE_CHECKING:
    import torch

__all__ = ["CACHE_FORMAT", "Compression", "FeatureStore", "StoredFeatures"]

CACHE_FORMAT: Final = 1
_MARK: Final = "cogcache.toml"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_IGNORED: Final = {"lost+found"}  # a freshly made disk holds it


class FeatureStore:
    """The feature files of one cache folder.

    Opening it is cheap: no file but ``cogcache.toml`` is read. Any number of processes may read
    and write one store at a time; equal keys stand for equal features, so that none is in the
    other's way.
    """

    def __init__(self, root: Path) -> None:
        """Take ``root`` as it is; use ``open`` or ``create_or_open``, which check it."""
        self.root = root
        self._features = root / "features"
        self._quarantine = root / "quarantine"

    @classmethod
    def open(cls, root: Path) -> FeatureStore:
        """Open the cache in the folder ``root``.

        Raises:
            CacheError: there is none, or it is of another format.
        """
        if not root.is_dir():
            raise CacheError(f"there is no cache in {root}", "make one with `cogcache extract`")
        _check_mark(root)
        return cls(root)

    @classmethod
    def create_or_open(cls, root: Path) -> FeatureStore:
        """Open the cache in ``root``, or make one there if the folder is empty or absent.

        Raises:
            CacheError: ``root`` is a file, holds other things, is of another format, or cannot
                be written.
        """
        if root.exists() and not root.is_dir():
            raise CacheError(f"{root} is a file, not a folder", "name a folder for the cache")
        if not (root / _MARK).exists() and not _found_in(root):
            seal(root / _MARK, _mark())
        return cls.open(root)

    def path_of(self, key: str) -> Path:
        """Return where the features of ``key`` lie, or would lie.

        Raises:
            ValueError: ``key`` is not 64 lower-case hexadecimal digits.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a feature key")
        return self._features / key[:2] / f"{key}.h5"

    def __contains__(self, key: str) -> bool:
        return self.path_of(key).is_file()

    def keys(self) -> Iterator[str]:
        """Yield the key of every feature file, folder by folder."""
        if not self._features.is_dir():
            return
        for folder in sorted(self._features.iterdir()):
            for path in sorted(folder.glob("*.h5")):
                if _KEY.fullmatch(path.stem) and path.stem[:2] == folder.name:
                    yield path.stem

    def present(self) -> set[str]:
        """Return the keys of all feature files: to ask for many, the quickest way."""
        found: set[str] = set()
        if self._features.is_dir():
            for folder in os.listdir(self._features):  # noqa: PTH208 - a path object a file is dear
                with suppress(NotADirectoryError):
                    found.update(os.listdir(self._features / folder))  # noqa: PTH208
        return {name[:-3] for name in found if name.endswith(".h5") and _KEY.fullmatch(name[:-3])}

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def __len__(self) -> int:
        return sum(1 for _ in self.keys())

    def write(
        self,
        key: str,
        tensors: Mapping[str, torch.Tensor],
        attributes: Mapping[str, Field],
        thumbnail: bytes | None = None,
        *,
        compression: Compression = "zstd",
    ) -> int:
        """Seal the features of one clip. Those that are there already are left as they are.

        Args:
            key: the digest of their feature key.
            tensors: by name, of any number of axes; the first should be that of the frames.
            attributes: what a reader wants to know of them, the fields of the key among it.
            thumbnail: a JPEG of the clip.
            compression: of tensors of 64 KiB and more; always without loss.

        Returns:
            The bytes that the file takes on the disk.

        Raises:
            CacheError: the disk is full or cannot be written.
            ConfigError: a text among the attributes holds bytes that are not UTF-8.
            CorruptFeaturesError: what was read back is not what was written.
            FeaturesError: a number is NaN or infinite.
            TypeError: a tensor or an attribute is of a type that the format does not have.
            ValueError: a name is not made of letters, digits, ``_``, ``-`` and ``.``.
        """
        path = self.path_of(key)
        if not path.exists():
            bits = {name: Bits.of(name, tensor) for name, tensor in tensors.items()}
            content = feature_file.encode(key, bits, attributes, thumbnail, compression)
            seal(path, content, lambda partial: feature_reader.check(partial, key, bits))
        return path.stat().st_size

    def take(self, key: str, path: Path) -> None:
        """Copy a feature file of another cache; that copy is proven, like any.

        Raises:
            CacheError: it cannot be read, or the disk is full or cannot be written.
            CorruptFeaturesError: the file is damaged.
        """
        feature_reader.prove(path, key)
        content = path.read_bytes()
        seal(self.path_of(key), content, lambda partial: feature_reader.prove(partial, key))

    def read(self, key: str, names: Collection[str] | None = None) -> StoredFeatures:
        """Return the features of ``key``, proven to be what was sealed.

        Args:
            key: the digest of their feature key.
            names: which tensors to read; None: all.

        Raises:
            CacheError: the cache holds none of this key, or the disk cannot be read.
            CorruptFeaturesError: the file is damaged; ``quarantine`` it.
            KeyError: there is no tensor of such a name.
        """
        return feature_reader.read(self._found(key), key, names)

    def describe(self, key: str) -> dict[str, Field]:
        """Return the attributes of ``key``, proven to be what was sealed; reads no tensor.

        Raises:
            CacheError: the cache holds none of this key, or the disk cannot be read.
            CorruptFeaturesError: the file is damaged; ``quarantine`` it.
        """
        return feature_reader.describe(self._found(key), key)

    def prove(self, key: str) -> None:
        """Read all that the file of ``key`` holds, and hold it against what was sealed.

        Raises:
            CacheError: the cache holds none of this key, or the disk cannot be read.
            CorruptFeaturesError: the file is damaged; ``quarantine`` it.
        """
        feature_reader.prove(self._found(key), key)

    def strangers(self) -> list[Path]:
        """Return what lies among the feature files and is none, unfinished ones left out."""
        ours = {self.path_of(key) for key in self.keys()}
        found = (path for path in self._features.rglob("*") if not path.is_dir())
        return sorted(p for p in found if p not in ours and not p.name.endswith(".partial"))

    def remove(self, key: str) -> int:
        """Delete the features of ``key`` for good; return the bytes that this sets free."""
        path = self._found(key)
        size_bytes = path.stat().st_size
        path.unlink()
        sync_folder(path.parent)
        return size_bytes

    def keep_copy(self, path: Path, reason: str) -> Path:
        """Copy a file that is about to be replaced to the quarantine; return its place there."""
        names = chain([path.name], (f"{path.name}.{number}" for number in count(2)))
        target = next(t for t in map(self._quarantine.joinpath, names) if not t.exists())
        seal(target, path.read_bytes())
        seal(target.with_name(f"{target.name}.txt"), f"{reason}\n".encode())
        return target

    def _found(self, key: str) -> Path:
        path = self.path_of(key)
        if not path.is_file():
            raise CacheError(f"{self.root} holds no features {key}", "run `cogcache extract` again")
        return path

    def quarantine(self, key: str, reason: str) -> Path:
        """Move a damaged file away, so that it is made anew; the reason lies beside it.

        Returns:
            Where the file is now.

        Raises:
            CacheError: there is no such file, or it cannot be moved.
        """
        path = self._found(key)
        target = next(t for t in self._places(key) if not t.exists())
        seal(target.with_suffix(".txt"), f"{reason}\n".encode(errors="backslashreplace"))
        try:
            path.rename(target)
        except OSError as error:
            raise CacheError(f"cannot move {path} to {target}: {error.strerror}") from error
        sync_folder(target.parent)
        sync_folder(path.parent)
        return target

    def _places(self, key: str) -> Iterator[Path]:
        yield self._quarantine / f"{key}.h5"
        yield from (self._quarantine / f"{key}-{number}.h5" for number in count(2))

    def sweep(self) -> list[Path]:
        """Remove what writers left behind that died at it; return the paths of it.

        Files of living writers stay.
        """
        return remove_dead([self.root, self._quarantine, *self._features.glob("??")])


def _mark() -> bytes:
    try:
        made_with = version("cogcache")
    except PackageNotFoundError:
        made_with = "unknown"
    text = f"# A cache of cogcache; docs/format.md says what lies in it.\nformat = {CACHE_FORMAT}\n"
    return f'{text}made_with = "cogcache {made_with}"\n'.encode()


def _found_in(root: Path) -> list[str]:
    names = sorted(path.name for path in root.iterdir()) if root.exists() else []
    return [name for name in names if name not in _IGNORED and not name.startswith(f".{_MARK}.")]


def _check_mark(root: Path) -> None:
    hint = "name another folder with --cache"
    try:
        mark = tomllib.loads((root / _MARK).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = ", ".join(_found_in(root)[:3]) or "nothing"
        raise CacheError(
            f"{root} is not a cache: it has no {_MARK} and holds {found}", hint
        ) from error
    except (OSError, ValueError) as error:
        raise CacheError(f"{root / _MARK} cannot be read: {error}", hint) from error
    if mark.get("format") != CACHE_FORMAT:
        problem = f"{root} is of format {mark.get('format')!r}; this version reads {CACHE_FORMAT}"
        raise CacheError(
            problem, f"it was made with {mark.get('made_with')}; update cogcache, or {hint}"
        )
