"""Where the files of a cache lie: the only place that writes their names; docs/format.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CachePaths:
    """The paths inside one cache. To name a path neither reads nor makes anything.

    Example:
        >>> CachePaths(Path("cache")).catalog.as_posix()
        'cache/catalog.sqlite'
    """

    folder: Path
    """Folder of the cache."""

    @property
    def mark(self) -> Path:
        """The file that makes the folder a cache; it also holds the cache's profiles."""
        return self.folder / "cogcache.toml"

    @property
    def features(self) -> Path:
        """Folder of the feature files, unless the cache keeps them in an object store."""
        return self.folder / "features"

    @property
    def quarantine(self) -> Path:
        """Folder of damaged files and of copies of files that were replaced."""
        return self.folder / "quarantine"

    @property
    def catalog(self) -> Path:
        """The catalog; a run may keep its own one elsewhere (``--catalog``)."""
        return self.folder / "catalog.sqlite"

    @property
    def catalog_backup(self) -> Path:
        """The copy of the catalog as the last run that succeeded left it."""
        return self.folder / "catalog.backup.sqlite"

    @property
    def published(self) -> Path:
        """Folder of the copies of catalogs that runs keep elsewhere."""
        return self.folder / "catalogs"

    @property
    def semantic(self) -> Path:
        """Folder of the indexes for searching by meaning."""
        return self.folder / "semantic"

    @property
    def teachers(self) -> Path:
        """Folder of the outputs of teachers, itself laid out as a cache."""
        return self.folder / "teachers"

    @property
    def working(self) -> Path:
        """Folder of the files that say which runs are at work, and of notes of what they do."""
        return self.folder / "working"

    @property
    def claims(self) -> Path:
        """Folder of the files that say which clip or caption a run has taken."""
        return self.folder / "claims"
