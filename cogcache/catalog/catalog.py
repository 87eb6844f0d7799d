"""The catalog of a cache: videos, clips, captions, failures and runs, in SQLite.

All but the captions can be made anew from the feature files; captions lie here alone. What is not
covered: a network file system, on which one process at a time may own the catalog.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast
from uuid import uuid4

from cogcache.catalog.cuts import Cuts
from cogcache.catalog.database import CatalogFile, excluded, insertion
from cogcache.catalog.file_facts import FileFacts
from cogcache.catalog.holders import Holders
from cogcache.catalog.reviews import Edits, Scores
from cogcache.catalog.rows import (
    CaptionRow,
    ClipRow,
    FailureRow,
    FlaggedCaption,
    RunEnd,
    RunRow,
    Stage,
    VideoRow,
    path_to_text,
    text_to_path,
)
from cogcache.keys import Field

__all__ = [
    "CaptionRow",
    "Catalog",
    "ClipRow",
    "FailureRow",
    "FlaggedCaption",
    "RunRow",
    "Stage",
    "VideoRow",
    "path_to_text",
    "text_to_path",
]


def _each_file(row: type, table: str, *, of_all: bool) -> str:
    """Return what to select from so that a video that several files hold has a row for each.

    With `of_all` each file's checksum is held once, not once a row: slower if few rows are wanted.
    """
    path = "coalesce(files.path, row.video) AS video"
    names = (name for name in row.__annotations__ if name != "cut")
    columns = (path if name == "video" else f"row.{name}" for name in names)
    once = "WITH files_once AS MATERIALIZED (SELECT digest, path FROM whole_files) "
    before, files = (once, "files_once") if of_all else ("", "whole_files")
    return (
        f"({before}SELECT {', '.join(columns)} FROM {table} AS row"
        f" LEFT JOIN {files} AS files ON files.digest = row.video_digest)"
    )


_SOME_CLIPS, _ALL_CLIPS = (
    _each_file(ClipRow, "whole_clips", of_all=each) for each in (False, True)
)
_SOME_CAPTIONS, _ALL_CAPTIONS = (
    _each_file(CaptionRow, "whole_captions", of_all=each) for each in (False, True)
)


_REJECTED = """SELECT caption_key FROM rejected_captions
    WHERE caption_key IN (SELECT value FROM json_each(:keys))"""


class Clips:
    """The clips whose features are in the cache."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def add(self, clips: Iterable[ClipRow]) -> None:
        """Add many clips in one transaction, then how they were cut. Their videos must be there."""
        made: dict[str, object] = {"created_at": _now(), "run": None}
        rows: list[dict[str, object]] = [{**made, **clip} for clip in clips]
        cuts = [(str(row["feature_key"]), str(row.pop("cut"))) for row in rows if "cut" in row]
        self._file.upsert("clips", "feature_key", rows)
        Cuts(self._file).add(cuts)

    def rows(
        self,
        *,
        feature_keys: Collection[str] | None = None,
        video: str | None = None,
        model: str | None = None,
        family: str | None = None,
    ) -> list[ClipRow]:
        """Return the clips that fit all that is given, by video and start.

        A clip has a row for each file that holds its video: copies, too, are listed.
        """
        equal = {"video": video, "model": model, "family": family}
        order, among = "video, start_s, feature_key", {"feature_key": feature_keys}
        source = _ALL_CLIPS if not any(equal.values()) and feature_keys is None else _SOME_CLIPS
        return cast(list[ClipRow], self._file.select(source, order, equal=equal, among=among))

    def known(self, feature_keys: Collection[str]) -> set[str]:
        """Return those of the keys that belong to a clip."""
        return self._file.known("clips", "feature_key", feature_keys)

    def overlapping(self, video_digest: str, start_s: float, end_s: float | None) -> list[str]:
        """Return the feature keys of clips of a video that share time with a span, newest first."""
        sql = """SELECT feature_key FROM clips WHERE video_digest = :video AND (end_s IS NULL
            OR end_s > :start) AND (:end IS NULL OR start_s < :end) ORDER BY rowid DESC LIMIT 16"""
        span = {"video": video_digest, "start": start_s, "end": end_s}
        return [row["feature_key"] for row in self._file.query(sql, span)]

    def resize(self, feature_key: str, size_bytes: int) -> None:
        """Note how large a clip's feature file is now."""
        row = {"size_bytes": size_bytes, "key": feature_key}
        self._file.write("UPDATE clips SET size_bytes = :size_bytes WHERE feature_key = :key", row)

    def remove(self, feature_keys: Collection[str]) -> int:
        """Forget clips whose features are gone; their captions stay. Returns how many."""
        return self._file.delete("clips", "feature_key", feature_keys)


class Captions:
    """The captions of clips."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def add(self, captions: Iterable[CaptionRow], *, replace: bool = False) -> int:
        """Add captions in one transaction; return how many were written.

        Args:
            captions: the rows.
            replace: overwrite captions of the same key; else those that are there stay.
        """
        made: dict[str, object] = {"created_at": _now(), "run": None, "video_digest": None}
        rows: list[dict[str, object]] = [{**made, **caption} for caption in captions]
        unknown = {str(row["feature_key"]) for row in rows if row["video_digest"] is None}
        clips = self._file.select("clips", among={"feature_key": unknown}) if unknown else []
        digests = {row["feature_key"]: row["video_digest"] for row in clips}
        rows = [
            {**row, "video_digest": row["video_digest"] or digests.get(row["feature_key"])}
            for row in rows
        ]
        return self._file.upsert("captions", "caption_key", rows, replace=replace)

    def note_videos(self) -> None:
        """Have captions say which bytes they are of, where only their clips say it so far."""
        self._file.write(
            """UPDATE captions SET video_digest = coalesce(
                (SELECT clips.video_digest FROM whole_clips AS clips
                 WHERE clips.feature_key = captions.feature_key),
                iif(json_valid(settings), json_extract(settings, '$.video_digest'), NULL)
            ) WHERE video_digest IS NULL""",
            {},
        )

    def known(self, caption_keys: Collection[str]) -> set[str]:
        """Return those of the keys that belong to a caption."""
        return self._file.known("captions", "caption_key", caption_keys)

    def said(self, caption_keys: Collection[str]) -> dict[str, FlaggedCaption]:
        """Return the texts and flags of the captions that have one of these keys."""
        sql = """SELECT caption_key, caption, flags FROM whole_captions
            WHERE caption_key IN (SELECT value FROM json_each(:keys))"""
        keys = {"keys": json.dumps([*caption_keys])}
        rejected = {row[0] for row in self._file.query(_REJECTED, keys)}
        return {
            key: FlaggedCaption(caption, json.loads(flags), key in rejected)
            for key, caption, flags in self._file.query(sql, keys)
        }

    def made_in(self, model: str) -> dict[str, int]:
        """Return the number of captions by quantisation: of a model, or of all where it has none.

        A model that was moved has another name, and its captions are there all the same.
        """
        sql = """SELECT quantization, sum(captions) AS captions FROM shown_caption_totals
            WHERE :model IS NULL OR model = :model GROUP BY quantization"""
        for name in (model, None):
            if rows := self._file.query(sql, {"model": name}):
                return {row["quantization"]: row["captions"] for row in rows}
        return {}

    def newest_key(self, quantization: str) -> dict[str, Any] | None:
        """Return the fields of the key of the newest caption of a quantisation."""
        sql = """SELECT settings FROM whole_captions WHERE quantization = :quantization
            ORDER BY id DESC LIMIT 1"""
        rows = self._file.query(sql, {"quantization": quantization})
        fields: dict[str, Any] | None = json.loads(rows[0]["settings"]) if rows else None
        return fields

    def passing(self, where: str, values: Mapping[str, object]) -> set[int]:
        """Return the numbers of the captions that pass a test over ``captions c``."""
        sql = f"SELECT c.id FROM shown_captions c WHERE {where}"
        return {row["id"] for row in self._file.query(sql, values)}

    def of_keys(self, caption_keys: Collection[str]) -> list[CaptionRow]:
        """Return the captions of these keys, each once, under the names that they bear."""
        rows = self._file.select("captions", "id", among={"caption_key": caption_keys})
        return cast(list[CaptionRow], rows)

    def prompt_names(self) -> list[str]:
        """Return the names that captions are listed by."""
        sql = "SELECT DISTINCT prompt_name FROM shown_captions ORDER BY prompt_name"
        return [row["prompt_name"] for row in self._file.query(sql)]

    def rows(
        self,
        *,
        feature_keys: Collection[str] | None = None,
        video: str | None = None,
        prompt_name: str | None = None,
        model: str | None = None,
    ) -> list[CaptionRow]:
        """Return the captions that fit all that is given, by video, start and age.

        A caption has a row for each file that holds its video, as a clip has.
        """
        equal = {"video": video, "prompt_name": prompt_name, "model": model}
        order, among = "video, start_s, id", {"feature_key": feature_keys}
        is_all = not any(equal.values()) and feature_keys is None
        source = _ALL_CAPTIONS if is_all else _SOME_CAPTIONS
        return cast(list[CaptionRow], self._file.select(source, order, equal=equal, among=among))

    __call__ = rows  # `catalog.captions()`, as programs have called it since version 0.1


class Failures:
    """The clips that could not be done."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def add(self, failure: FailureRow) -> None:
        """Note that a clip failed; one that failed before gets one try more."""
        at = _now()
        row: dict[str, object] = {"run": None, "video_digest": None, **failure}
        row |= {"tries": 1, "first_at": at, "last_at": at}
        changed = ("feature_key", "reason", "message", "last_at", "run", "video_digest")
        self._file.write(
            f"{insertion('failures', row)} ON CONFLICT (video, start_s, ifnull(end_s, -1), stage)"
            f" DO UPDATE SET tries = tries + 1, {excluded(changed)}",
            row,
        )

    def rows(self, *, video: str | None = None, stage: Stage | None = None) -> list[FailureRow]:
        """Return the failures that fit all that is given, by video and start."""
        equal = {"video": video, "stage": stage}
        order = "video, start_s, end_s, stage"
        return cast(list[FailureRow], self._file.select("failures", order, equal=equal))

    __call__ = rows  # `catalog.failures()`, as programs have called it since version 0.1

    def clear(self, video: str, start_s: float, end_s: float | None, stage: Stage) -> int:
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

    def clear_void(self, digests: Mapping[str, str], changed: Collection[str]) -> int:
        """Forget failures of stage one that say nothing any more; return how many.

        Args:
            digests: by name, of videos that can be read; that they could not be is past, and so is
                what became of other bytes under their names.
            changed: those of them that have been read just now.
        """
        rows = self._file.query(
            "SELECT rowid, video, feature_key, video_digest FROM failures WHERE stage = 'extract'"
        )
        void = [
            row["rowid"]
            for row in rows
            if row["video"] in changed
            or (row["video"] in digests and _says_nothing(row, digests[row["video"]]))
        ]
        return self._file.delete("failures", "rowid", void)


class Runs:
    """The runs of commands."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def start(
        self,
        command: str,
        model: str,
        settings: Mapping[str, Field],
        planned_peak_bytes: int | None = None,
    ) -> int:
        """Note that a run begins; return its number."""
        row: dict[str, object] = {
            "uid": uuid4().hex,
            "command": command,
            "model": model,
            "settings": settings,
            "split": {},
            "counts": {},
            "report": {},
        }
        row |= {"planned_peak_bytes": planned_peak_bytes, "started_at": _now(), "status": "running"}
        return self._file.insert("runs", row)

    def finish(self, run: int, end: RunEnd) -> None:
        """Note how a run ended."""
        row: dict[str, object] = {"run": run, "ended_at": _now(), **asdict(end)}
        columns = ", ".join(f"{name} = :{name}" for name in row)
        self._file.write(f"UPDATE runs SET {columns} WHERE run = :run", row)

    def last_settings(self, command: str) -> Mapping[str, Field] | None:
        """Return the settings of the last run of a command; None where there was none."""
        sql = "SELECT settings FROM shown_runs WHERE command = :command ORDER BY run DESC LIMIT 1"
        for row in self._file.query(sql, {"command": command}):
            return cast(Mapping[str, Field], json.loads(row["settings"]))
        return None

    def rows(self) -> list[RunRow]:
        """Return the runs, oldest first."""
        return cast(list[RunRow], self._file.select("runs", "run"))


class Catalog:
    """An open catalog; a context manager. Any number of threads and processes may share one.

    Its tables are ``files`` (with the videos that they hold, and what is remembered of them),
    ``clips``, ``captions``, ``failures``, ``runs``, ``edits`` and ``scores``. What a method wrote
    is on the disk when it returns, for which each call waits once: give many rows at a time. Every
    method raises CatalogError where the file cannot be used.

    Args:
        path: the SQLite file; made if absent.

    Raises:
        CatalogError: it is no catalog, is of a newer version, or cannot be opened.

    Example:
        >>> with Catalog(Path("catalog.sqlite")) as catalog:
        ...     [row["caption"] for row in catalog.captions.rows()]
        []
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = CatalogFile(path)
        self.files = FileFacts(self._file)
        self.clips = Clips(self._file)
        self.cuts = Cuts(self._file)
        self.captions = Captions(self._file)
        self.failures = Failures(self._file)
        self.runs = Runs(self._file)
        self.edits = Edits(self._file)
        self.scores = Scores(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was written is on the disk already."""
        self._file.close()

    def holders(self, *, check: bool = True, ask_stores: bool = False) -> Holders:
        """Return what finds the files that hold videos now; each is looked at once by it."""
        return Holders(self._file, check=check, ask_stores=ask_stores)


def _says_nothing(failure: sqlite3.Row, digest: str) -> bool:
    """Say whether a failure of stage one is outdated, given the digest of the file's bytes now."""
    of_other_bytes = failure["video_digest"] is not None and failure["video_digest"] != digest
    return failure["feature_key"] is None or of_other_bytes


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
