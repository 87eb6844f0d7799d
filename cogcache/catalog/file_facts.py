"""What the catalog remembers of files between runs: digests, and results computed from them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from cogcache.catalog.database import CatalogFile
from cogcache.catalog.rows import VideoRow, is_there, names_url, path_to_text, text_to_file
from cogcache.system import Location, RemoteFacts
from cogcache.video import file_digest

# What a file system, or a store of objects, says of a file without its being read.
Stat: TypeAlias = os.stat_result | RemoteFacts
File = TypeVar("File", bound=Location)


class FileFacts:
    """The videos, the digests of files by path, size, time and inode, and values by name."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def add_videos(self, videos: Iterable[VideoRow]) -> None:
        """Add many videos in one transaction."""
        self._file.upsert("videos", "digest", videos)

    def videos(
        self,
        *,
        paths: Collection[str] | None = None,
        digests: Collection[str] | None = None,
    ) -> list[VideoRow]:
        """Return the videos, by path."""
        among = {"path": paths, "digest": digests}
        return cast(list[VideoRow], self._file.select("videos", "path", among=among))

    def offsets_s(self, digests: Collection[str]) -> dict[str, float]:
        """Return by digest the times that a player shows at first frames; 0 where nobody looked."""
        return {row["digest"]: row["offset_s"] or 0.0 for row in self.videos(digests=digests)}

    def known_digest(self, path: Location, stat: Stat) -> str | None:
        """Return the digest of a file that has not changed since it was remembered, or None."""
        return self.digests_of({path: stat}).get(path)

    def digests_of(self, files: Mapping[File, Stat]) -> dict[File, str]:
        """Return the digests of those files that have not changed since they were remembered."""
        texts = {path_to_text(path): path for path in files}
        known = self.digests_by_name({text: files[path] for text, path in texts.items()})
        return {texts[name]: digest for name, digest in known.items()}

    def digests_by_name(self, files: Mapping[str, Stat]) -> dict[str, str]:
        """Do as `digests_of` does with names as the catalog has them."""
        rows = self._file.select("files", among={"path": files})
        return {
            row["path"]: str(row["digest"])
            for row in rows
            # A web server may name its bytes by nothing: then nobody knows what they are now.
            if row["inode"] and _identity(files[row["path"]]).items() <= row.items()
        }

    def remember_digest(self, path: Location, stat: Stat, digest: str) -> None:
        """Remember the digest of a file; ``stat`` must be from before its bytes were read."""
        self.remember_digests([(path, stat, digest)])

    def remember_digests(self, files: Iterable[tuple[Location, Stat, str]]) -> None:
        """Remember many digests in one transaction."""
        rows = [
            {"path": path_to_text(path), **_identity(stat), "digest": digest}
            for path, stat, digest in files
        ]
        self._file.upsert("files", "path", rows)

    def digest_of(self, path: Path) -> str:
        """Return the digest of a file, read only if it is not remembered.

        Raises:
            VideoError: the file cannot be read.
        """
        stat = path.stat()
        digest = self.known_digest(path, stat)
        if digest is None:
            digest = file_digest(path)
            self.remember_digest(path, stat, digest)
        return digest

    def recall(self, name: str) -> Mapping[str, Any] | None:
        """Return what was remembered under a name."""
        rows = self._file.select("memory", "name", equal={"name": name})
        return rows[0]["value"] if rows else None

    def recall_all(self, names: Collection[str]) -> dict[str, Mapping[str, Any]]:
        """Return what was remembered under each of the names that are known."""
        rows = self._file.select("memory", "name", among={"name": names})
        return {row["name"]: row["value"] for row in rows}

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep a value that took long to find under a name that says what it depends on."""
        self._file.upsert("memory", "name", [{"name": name, "value": value}])

    @property
    def can_write(self) -> bool:
        """Whether the catalog can be written here."""
        return self._file.can_write

    def note_offset(self, digest: str, offset_s: float) -> None:
        """Note the time that a player shows at a video's first frame, if the video is known."""
        sql = "UPDATE videos SET offset_s = :offset_s WHERE digest = :digest"
        self._file.write(sql, {"offset_s": offset_s, "digest": digest})

    def paths_of(self, digests: Collection[str]) -> list[tuple[str, str]]:
        """Return each file that held bytes of one of these digests when it was read last."""
        rows = self._file.select("files", "path", among={"digest": digests})
        return [(row["digest"], row["path"]) for row in rows]

    def forget_gone(self, digests: Collection[str]) -> int:
        """Forget files that are gone where another has the same bytes: they were moved.

        Of files without such another the digest is kept: their disk may be away for a while.
        """
        paths: dict[str, list[str]] = defaultdict(list)
        for row in self._file.select("files", among={"digest": digests}):
            paths[row["digest"]].append(row["path"])
        gone = []
        for texts in paths.values():
            # Of objects of a store nobody asks here: they count as being there.
            local = (text for text in texts if not names_url(text))
            absent = [text for text in local if not is_there(text_to_file(text))]
            gone += absent if len(absent) < len(texts) else []
        return self._file.delete("files", "path", gone)


def _identity(stat: Stat) -> dict[str, object]:
    # As text: some file systems number their files beyond what an SQLite integer holds.
    inode = str(stat.st_ino)
    return {"size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": inode}
