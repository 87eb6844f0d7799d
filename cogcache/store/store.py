"""The cache folder: one sealed feature file a clip. docs/format.md specifies it.

Feature files are written once and never opened for writing again. That one exists means that it
is complete; that it is sound is proven at each reading.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from cogcache.errors import CacheError
from cogcache.keys import Field
from cogcache.store import reader, writer
from cogcache.store.format import Bits
from cogcache.store.mark import CACHE_FORMAT, check_cache, is_free, write_mark
from cogcache.store.places import KEY, Check, feature_files
from cogcache.store.quarantine import Quarantine
from cogcache.store.reader import StoredFeatures
from cogcache.store.writer import Compression
from cogcache.system import CachePaths, Location, remove_dead, seal

if TYPE_CHECKING:
    import torch

__all__ = ["CACHE_FORMAT", "Compression", "FeatureStore", "StoredFeatures"]


class FeatureStore:
    """The feature files of one cache folder.

    Opening it is cheap: no file but ``cogcache.toml`` is read. Any number of processes may read
    and write one store at a time: equal keys mean equal features, so that two writers
    do not disturb each other.

    Example:
        >>> store = FeatureStore.create_or_open(Path("cache"))
        >>> [store.describe(key)["video"] for key in store]
        []
    """

    def __init__(self, root: Path, features: str | None = None) -> None:
        """Take ``root`` as it is; use ``open`` or ``create_or_open``, which check it."""
        self.root, self.features = root, features
        self._files = feature_files(root, features)
        self._quarantine = Quarantine(CachePaths(root).quarantine)

    @classmethod
    def open(cls, root: Path) -> FeatureStore:
        """Open the cache in the folder ``root``.

        Raises:
            CacheError: there is none, or it is of another format.
        """
        return cls(root, check_cache(root))

    @classmethod
    def create_or_open(cls, root: Path, features: str | None = None) -> FeatureStore:
        """Open the cache in ``root``, or make one there if the folder is empty or absent.

        Args:
            root: folder of the cache.
            features: URL of the prefix where a new cache is to keep its features, in place of
                its own folder; None takes it as it is.

        Raises:
            CacheError: ``root`` is a file, holds other things, is of another format, keeps its
                features elsewhere, or cannot be written.
            ConfigError: no files can be kept at the URL.
        """
        if root.exists() and not root.is_dir():
            raise CacheError(f"{root} is a file, not a folder", "name a folder for the cache")
        if is_free(root):
            write_mark(root, cls(root, features).features)
        store = cls.open(root)
        if features is not None and store.features != features:
            where = store.features or "its own folder"
            raise CacheError(
                f"{root} keeps its features in {where}, not {features}",
                "leave --features out, or name another cache",
            )
        return store

    def path_of(self, key: str) -> Location:
        """Return where the features of ``key`` lie, or would lie.

        Raises:
            ValueError: ``key`` is not 64 lower-case hexadecimal digits.
        """
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a feature key")
        return self._files.path_of(key)

    def __contains__(self, key: str) -> bool:
        self.path_of(key)
        return self._files.has(key)

    def keys(self) -> Iterator[str]:
        """Yield the key of every feature file, in order."""
        yield from sorted(self.present())

    def present(self) -> set[str]:
        """Return the keys of all feature files: to ask for many, the quickest way."""
        return self._files.present()

    def size_bytes(self, key: str) -> int:
        """Return the bytes that the file of ``key`` takes."""
        return self._files.size_bytes(key)

    def made_s(self, key: str) -> float:
        """Return when the file of ``key`` was written, in seconds since 1970."""
        return self._files.made_s(key)

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def __len__(self) -> int:
        return len(self.present())

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
        if key not in self:
            bits = {name: Bits.of(name, tensor) for name, tensor in tensors.items()}
            content = writer.encode(key, bits, attributes, thumbnail, compression)
            self.put(key, content, lambda copy: reader.check(copy, key, bits))
        return self._files.size_bytes(key)

    def take(self, key: str, other: FeatureStore) -> None:
        """Copy a feature file of another cache; that copy is proven, like any.

        Raises:
            CacheError: it cannot be read, or the disk is full or cannot be written.
            CorruptFeaturesError: the file is damaged.
        """
        with other.opened(key) as path:
            reader.prove(path, key)
            content = path.read_bytes()
        self.put(key, content, lambda copy: reader.prove(copy, key))

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
        with self.opened(key) as path:
            return reader.read(path, key, names)

    def describe(self, key: str) -> dict[str, Field]:
        """Return the attributes of ``key``, proven to be what was sealed; reads no tensor.

        Raises:
            CacheError: the cache holds none of this key, or the disk cannot be read.
            CorruptFeaturesError: the file is damaged; ``quarantine`` it.
        """
        with self.opened(key) as path:
            return reader.describe(path, key)

    def outline(self, key: str) -> StoredFeatures:
        """Return the attributes of ``key``, and its tensors on meta: shapes without numbers.

        Raises:
            CacheError: the cache holds none of this key, or the disk cannot be read.
            CorruptFeaturesError: the file is damaged; ``quarantine`` it.
        """
        with self.opened(key) as path:
            return reader.outline(path, key)

    def prove(self, key: str) -> None:
        """Read all that the file of ``key`` holds, and hold it against what was sealed.

        Raises:
            CacheError: the cache holds none of this key, or the disk cannot be read.
            CorruptFeaturesError: the file is damaged; ``quarantine`` it.
        """
        with self.opened(key) as path:
            reader.prove(path, key)

    def strangers(self) -> Sequence[Location]:
        """Return files among the features that are not feature files, without unfinished ones."""
        return self._files.strangers()

    def remove(self, key: str) -> int:
        """Delete the features of ``key`` for good; return the bytes that this sets free."""
        with self.opened(key):
            size_bytes = self._files.size_bytes(key)
        self._files.remove(key)
        return size_bytes

    def keep_copy(self, path: Path, reason: str) -> Path:
        """Copy a file that is about to be replaced to the quarantine; return its place there."""
        return self._quarantine.keep_copy(path, reason)

    def put(self, key: str, content: bytes, check: Check) -> None:
        """Write the bytes of a feature file, whole or not at all, over those that are there.

        Args:
            key: of the features.
            content: all bytes of the file.
            check: looks at a copy, and raises where that is not to be kept.
        """
        self._files.put(key, content, check)

    def opened(self, key: str) -> AbstractContextManager[Path]:
        """Return a `with` block's file on this machine with the bytes of a feature file.

        Raises:
            CacheError: the cache holds none of this key.
        """
        if self.features is None and key not in self:
            raise CacheError(f"{self.root} holds no features {key}", "run `cogcache extract` again")
        return self._files.opened(key)

    def quarantine(self, key: str, reason: str) -> Path:
        """Move a damaged file away, so that it is made anew; the reason lies beside it.

        Returns:
            Where the file is now.

        Raises:
            CacheError: there is no such file, or it cannot be moved.
        """
        with self.opened(key) as path:
            target = self._quarantine.place_for(key, reason)
            if self.features is not None:
                seal(target, path.read_bytes())
                self._files.remove(key)
                return target
        self._quarantine.move(path, target)
        return target

    def remove_unfinished(self) -> list[Path]:
        """Remove temporary files of writers that have ended; return their paths.

        Files of living writers stay.
        """
        return remove_dead([self.root, self._quarantine.folder]) + self._files.remove_unfinished()
