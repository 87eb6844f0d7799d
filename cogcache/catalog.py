"""The catalog of a cache: videos, clips, captions, failures and runs, in SQLite.

All but the captions can be made anew from the feature files; captions lie here alone. What is not
covered: a network file system, on which one process at a time may own the catalog.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

from cogcache.canonical import Field
from cogcache.catalog_rows import (
    CaptionRow,
    ClipRow,
    FailureRow,
    RunRow,
    Stage,
    VideoRow,
    failure_row,
    path_to_text,
    text_to_path,
)
from cogcache.database import CatalogFile, excluded, insertion
from cogcache.inputs import file_digest

__all__ = [
    "CaptionRow",
    "Catalog",
    "ClipRow",
    "FailureRow",
    "RunRow",
    "Stage",
    "VideoRow",
    "failure_row",
    "path_to_text",
    "text_to_path",
]


class Catalog:
    """An open catalog; a context manager. Any number of threads and processes may share one.

    What a method wrote is on the disk when it returns. Each call waits for the disk once: give
    many rows at a time. Every method raises CatalogError where the file cannot be used.

    Args:
        path: the SQLite file; made if absent.

    Raises:
        CatalogError: it is no catalog, is of a newer version, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = CatalogFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was written is on the disk already."""
        self._file.close()

    # ---- digests of files -------------------------------------------------------------------

    def known_digest(self, path: Path, stat: os.stat_result) -> str | None:
        """Return the digest of a file that has not changed since it was remembered, or None."""
        return self.digests_of({path: stat}).get(path)

    def digests_of(self, files: Mapping[Path, os.stat_result]) -> dict[Path, str]:
        """Return the digests of those files that have not changed since they were remembered."""
        texts = {path_to_text(path): path for path in files}
        rows = self._file.select("files", among={"path": texts})
        found = {texts[row["path"]]: row for row in rows}
        return {
            path: str(row["digest"])
            for path, row in found.items()
            if all(row[name] == now for name, now in _identity(files[path]).items())
        }

    def remember_digest(self, path: Path, stat: os.stat_result, digest: str) -> None:
        """Remember the digest of a file; ``stat`` must be from before its bytes were read."""
        self.remember_digests([(path, stat, digest)])

    def remember_digests(self, files: Iterable[tuple[Path, os.stat_result, str]]) -> None:
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

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep a value that took long to find under a name that says what it depends on."""
        self._file.upsert("memory", "name", [{"name": name, "value": value}])

    # ---- videos and clips -------------------------------------------------------------------

    def add_video(self, video: VideoRow) -> None:
        """Add a video, or replace what is known of it."""
        self.add_videos([video])

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

    def add_clip(self, clip: ClipRow) -> None:
        """Add a clip, or replace what is known of it. Its video must be there."""
        self.add_clips([clip])

    def add_clips(self, clips: Iterable[ClipRow]) -> None:
        """Add many clips in one transaction. Their videos must be there."""
        made: dict[str, object] = {"created_at": _now(), "run": None}
        self._file.upsert("clips", "feature_key", ({**made, **clip} for clip in clips))

    def clips(
        self,
        *,
        feature_keys: Collection[str] | None = None,
        video: str | None = None,
        model: str | None = None,
        family: str | None = None,
    ) -> list[ClipRow]:
        """Return the clips that fit all that is given, by video and start."""
        equal = {"video": video, "model": model, "family": family}
        order, among = "video, start_s, feature_key", {"feature_key": feature_keys}
        return cast(list[ClipRow], self._file.select("clips", order, equal=equal, among=among))

    def has_clips(self, feature_keys: Collection[str]) -> set[str]:
        """Return those of the keys that are a clip's."""
        return self._file.known("clips", "feature_key", feature_keys)

    def remove_clips(self, feature_keys: Collection[str]) -> int:
        """Forget clips whose features are gone; their captions stay. Returns how many."""
        return self._file.delete("clips", "feature_key", feature_keys)

    # ---- captions ---------------------------------------------------------------------------

    def add_captions(self, captions: Iterable[CaptionRow], *, replace: bool = False) -> int:
        """Add captions in one transaction; return how many were written.

        Args:
            captions: the rows.
            replace: overwrite captions of the same key; else those that are there stay.
        """
        made: dict[str, object] = {"created_at": _now(), "run": None}
        rows = [{**made, **caption} for caption in captions]
        return self._file.upsert("captions", "caption_key", rows, replace=replace)

    def caption_keys(self, caption_keys: Collection[str]) -> set[str]:
        """Return those of the keys that are a caption's."""
        return self._file.known("captions", "caption_key", caption_keys)

    def captions(
        self,
        *,
        feature_keys: Collection[str] | None = None,
        video: str | None = None,
        prompt_name: str | None = None,
        model: str | None = None,
    ) -> list[CaptionRow]:
        """Return the captions that fit all that is given, by video, start and age."""
        equal = {"video": video, "prompt_name": prompt_name, "model": model}
        order, among = "video, start_s, id", {"feature_key": feature_keys}
        return cast(
            list[CaptionRow], self._file.select("captions", order, equal=equal, among=among)
        )

    # ---- failures ---------------------------------------------------------------------------

    def add_failure(self, failure: FailureRow) -> None:
        """Note that a clip failed; one that failed before gets one try more."""
        at = _now()
        row: dict[str, object] = {"run": None, **failure, "tries": 1, "first_at": at, "last_at": at}
        changed = ("feature_key", "reason", "message", "last_at", "run")
        self._file.write(
            f"{insertion('failures', row)} ON CONFLICT (video, start_s, ifnull(end_s, -1), stage)"
            f" DO UPDATE SET tries = tries + 1, {excluded(changed)}",
            row,
        )

    def failures(self, *, video: str | None = None, stage: Stage | None = None) -> list[FailureRow]:
        """Return the failures that fit all that is given, by video and start."""
        equal = {"video": video, "stage": stage}
        order = "video, start_s, end_s, stage"
        return cast(list[FailureRow], self._file.select("failures", order, equal=equal))

    def clear_failures(self, video: str, start_s: float, end_s: float | None, stage: Stage) -> int:
        """Forget the failure of a clip that has been done after all; return how many."""
        return self._file.write(
            "DELETE FROM failures WHERE video = :video AND start_s = :start_s"
            " AND end_s IS :end_s AND stage = :stage",
            {"video": video, "start_s": start_s, "end_s": end_s, "stage": stage},
        )

    def failed_keys(self, stage: Stage) -> set[str]:
        """Return the feature keys of the clips that failed in a stage."""
        rows = self._file.select("failures", "video", equal={"stage": stage})
        return {row["feature_key"] for row in rows if row["feature_key"]}

    def clear_failed(self, feature_keys: Collection[str]) -> int:
        """Forget the failures of clips that have been done after all; return how many."""
        return self._file.delete("failures", "feature_key", feature_keys) if feature_keys else 0

    # ---- runs -------------------------------------------------------------------------------

    def start_run(
        self,
        command: str,
        model: str,
        settings: Mapping[str, Field],
        planned_peak_bytes: int | None = None,
    ) -> int:
        """Note that a run begins; return its number."""
        row: dict[str, object] = {
            "command": command,
            "model": model,
            "settings": settings,
            "split": {},
            "counts": {},
            "report": {},
        }
        row |= {"planned_peak_bytes": planned_peak_bytes, "started_at": _now(), "status": "running"}
        return self._file.insert("runs", row)

    def finish_run(
        self,
        run: int,
        status: str,
        *,
        planned_peak_bytes: int | None = None,
        measured_peak_bytes: int | None = None,
        split: Mapping[str, Field] | None = None,
        counts: Mapping[str, Field] | None = None,
        report: Mapping[str, Field] | None = None,
    ) -> None:
        """Note how a run ended."""
        row: dict[str, object] = {
            "run": run,
            "status": status,
            "ended_at": _now(),
            "split": split or {},
        }
        row |= {"counts": counts or {}, "measured_peak_bytes": measured_peak_bytes}
        row |= {"report": report or {}, "planned_peak_bytes": planned_peak_bytes}
        columns = ", ".join(f"{name} = :{name}" for name in row)
        self._file.write(f"UPDATE runs SET {columns} WHERE run = :run", row)

    def runs(self) -> list[RunRow]:
        """Return the runs, oldest first."""
        return cast(list[RunRow], self._file.select("runs", "run"))


def _identity(stat: os.stat_result) -> dict[str, object]:
    # As text: some file systems number their files beyond what an SQLite integer holds.
    inode = str(stat.st_ino)
    return {"size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": inode}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
