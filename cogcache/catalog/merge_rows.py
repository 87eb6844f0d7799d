"""Takes the rows of one catalog over into another. Doing it twice changes nothing.

Rows are told apart by their keys. Of a caption that both hold in different words, the one made
first is kept, whichever catalog is merged first; failures of clips that are made are dropped.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cogcache.catalog.database import CatalogFile
from cogcache.catalog.file_uris import read_only_uri
from cogcache.catalog.foreign import cleansed
from cogcache.catalog.reviews import settle
from cogcache.catalog.rows import EDITED
from cogcache.catalog.whole_rows import TABLES, Checksums, columns_of
from cogcache.errors import CatalogError
from cogcache.settings import WorkShare
from cogcache.system import scratch_folder

OWN: Final = "catalog/"
"""Prefix of the names of values that concern one catalog alone and are not merged."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A caption that two catalogs hold in different words."""

    caption_key: str
    video: str
    start_s: float
    prompt_name: str
    kept: str
    dropped: str
    offset_s: float = 0.0
    """The time that a player shows at the video's first frame."""


@dataclass
class MergedRows:
    """What was taken over."""

    clips: int = 0
    captions: int = 0
    failures: int = 0
    """More than there were; less than 0 where clips that had failed are made by now."""
    runs: int = 0
    misfits: int = 0
    """Rows that were left out: no listing could show their values."""
    conflicts: list[Conflict] = field(default_factory=list)


@contextmanager
def snapshot(path: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Yield a copy of a catalog, whole as of one moment; it is at the newest version.

    Args:
        path: the catalog.
        left_out: is told, by table, how many rows were left out because their values do not fit;
            None takes a catalog of one's own as it is.

    Raises:
        CatalogError: there is no catalog at the path, or it cannot be read.
    """
    with scratch_folder() as folder:
        copy = folder / "copy.sqlite"
        try:
            with (
                closing(sqlite3.connect(read_only_uri(path), uri=True)) as theirs,
                closing(sqlite3.connect(copy)) as ours,
            ):
                theirs.backup(ours)
        except sqlite3.DatabaseError as error:
            hint = "name a cache, or a catalog of one; `cogcache rebuild` mends damaged ones"
            raise CatalogError(f"{path} cannot be read as a catalog: {error}", hint) from error
        if left_out is not None:
            left_out.update(cleansed(copy))
        with closing(CatalogFile(copy, cleansed=left_out is not None)) as file:
            drop_damaged(file)
        yield copy


def drop_damaged(file: CatalogFile) -> None:
    """Delete the damaged rows from a copy of a catalog; each is logged."""
    with file.reading() as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
    with file.transaction() as conn:
        for table in TABLES:
            fits = Checksums(table, columns_of(conn, table.name)).test()
            conn.execute(f"DELETE FROM {table.name} WHERE NOT {fits}")


def keep_shard(path: Path, shard: WorkShare) -> None:
    """Delete from a copy of a catalog the clips and captions of other shards."""
    with closing(CatalogFile(path)) as file, file.transaction() as conn:
        conn.create_function("in_shard", 1, shard.has, deterministic=True)
        conn.execute(
            "DELETE FROM captions WHERE feature_key NOT IN"
            " (SELECT feature_key FROM clips WHERE in_shard(video_digest))"
        )
        conn.execute("DELETE FROM clips WHERE NOT in_shard(video_digest)")


def merge_rows(copy: Path, path: Path, feature_keys: Collection[str]) -> MergedRows:
    """Take the rows of a `snapshot` over into the catalog at ``path``, all or none.

    Args:
        copy: of the catalog to take from.
        path: the catalog to take them into.
        feature_keys: clips to take, their features being there; captions are taken all.

    Raises:
        CatalogError: the catalog cannot be written.
    """
    merged = MergedRows()
    with closing(CatalogFile(path)) as file, file.attached(copy, "other"):
        merged.conflicts = _conflicts(file)
        with file.transaction() as conn:
            before = _counts(conn)
            keys = json.dumps([*feature_keys])
            for statement in (*_STATEMENTS, *_taken_as_they_are(conn)):
                conn.execute(statement, {"keys": keys} if ":keys" in statement else {})
            settle(conn)
            conn.execute(_TAKE_SCORES)
            after = _counts(conn)
    for name in before:
        setattr(merged, name, after[name] - before[name])
    return merged


def _taken_as_they_are(conn: sqlite3.Connection) -> list[str]:
    """Return what takes the missing rows of those tables over that have no rules of their own."""
    statements = []
    for table in TABLES:
        names = [column.name for column in columns_of(conn, table.name)]
        names = [name for name in names if name != table.number]
        values = ", ".join(_OUR_RUN if name == "run" else f"o.{name}" for name in names)
        if table.merged:
            statements.append(
                f"INSERT OR IGNORE INTO main.{table.name} ({', '.join(names)})"
                f" SELECT {values} FROM other.{table.name} o WHERE true"
            )
    return statements


def _counts(conn: sqlite3.Connection) -> dict[str, int]:
    tables = ("clips", "captions", "failures", "runs")
    return {
        name: conn.execute(f"SELECT count(*) FROM main.{name}").fetchone()[0] for name in tables
    }


def _conflicts(file: CatalogFile) -> list[Conflict]:
    rows: list[Any] = file.query(
        "SELECT c.caption_key, c.video, c.start_s, c.prompt_name,"
        f" iif({_EARLIER.format(one='o', other='c')}, o.caption, c.caption),"
        f" iif({_EARLIER.format(one='o', other='c')}, c.caption, o.caption),"
        " coalesce((SELECT v.offset_s FROM whole_clips k JOIN whole_videos v"
        " ON v.digest = k.video_digest WHERE k.feature_key = c.feature_key), 0)"
        " FROM whole_captions c JOIN other.captions o USING (caption_key)"
        f" WHERE c.caption <> o.caption AND c.quantization <> '{EDITED}'"
        " ORDER BY c.video, c.start_s, c.caption_key"
    )
    return [Conflict(*row) for row in rows]


_EARLIER: Final = "({one}.created_at, {one}.caption) < ({other}.created_at, {other}.caption)"


def _columns(names: str, row: str) -> str:
    return ", ".join(f"{row}.{name}" for name in names.split())


_RUN: Final = "command model started_at ended_at status settings planned_peak_bytes"
_REPORT: Final = "measured_peak_bytes split counts report uid"
_CLIP: Final = (
    "feature_key video_digest video start_s end_s family model num_frames size_bytes decoder"
    " settings created_at"
)
_CAPTION: Final = (
    "caption_key feature_key video start_s end_s prompt_name prompt caption model quantization"
    " flags num_tokens seconds settings created_at video_digest"
)
_FAILURE: Final = (
    "video start_s end_s stage feature_key reason message tries first_at last_at video_digest"
)
_VIDEO: Final = "digest path duration_s fps width height total_num_frames codec size_bytes offset_s"
_FILE: Final = "path size_bytes mtime_ns inode digest"
_OUR_RUN: Final = """(SELECT ours.run FROM main.runs ours JOIN other.runs theirs USING (uid)
    WHERE theirs.run = o.run)"""


def _listed(names: str) -> str:
    return ", ".join(names.split())


def _taken(names: str) -> str:
    return ", ".join(f"{name} = excluded.{name}" for name in names.split())


def _later(name: str) -> str:
    return f"{name} = iif(excluded.last_at > failures.last_at, excluded.{name}, failures.{name})"


_NAME_RUNS: Final = """UPDATE {0}.runs SET uid = started_at || '/' || run || '/' || command
    WHERE uid IS NULL"""
_SCORE: Final = "name feature_key caption_key score model prompt epoch details created_at"
# A score is of the words that it was given: where the catalogs differ in them, it is not taken.
_TAKE_SCORES: Final = f"""INSERT OR IGNORE INTO main.scores ({_listed(_SCORE)}, run)
    SELECT {_columns(_SCORE, "o")}, {_OUR_RUN} FROM other.scores o
    WHERE o.caption_key = '' OR EXISTS (SELECT 1 FROM main.captions c
        JOIN other.captions theirs USING (caption_key)
        WHERE c.caption_key = o.caption_key AND c.caption = theirs.caption)"""
_STATEMENTS: Final = (
    # Runs of before they had names; the same name each time they are merged.
    _NAME_RUNS.format("main"),
    _NAME_RUNS.format("other"),
    f"""INSERT INTO main.runs ({_listed(f"{_RUN} {_REPORT}")})
        SELECT {_columns(f"{_RUN} {_REPORT}", "o")} FROM other.runs o WHERE true ORDER BY o.run
        ON CONFLICT (uid) DO UPDATE SET {_taken(f"ended_at status {_REPORT}")}
        WHERE runs.status = 'running'""",
    f"""INSERT INTO main.videos ({_listed(_VIDEO)})
        SELECT {_listed(_VIDEO)} FROM other.videos o WHERE true
        ON CONFLICT (digest) DO UPDATE SET duration_s = coalesce(duration_s, excluded.duration_s),
        fps = coalesce(fps, excluded.fps), width = coalesce(width, excluded.width),
        height = coalesce(height, excluded.height), codec = coalesce(codec, excluded.codec),
        total_num_frames = coalesce(total_num_frames, excluded.total_num_frames),
        size_bytes = max(size_bytes, excluded.size_bytes)""",
    f"""INSERT OR IGNORE INTO main.files ({_listed(_FILE)})
        SELECT {_listed(_FILE)} FROM other.files""",
    f"""INSERT OR IGNORE INTO main.memory (name, value) SELECT name, value FROM other.memory
        WHERE substr(name, 1, {len(OWN)}) <> '{OWN}'""",
    # A row that names the run that made the clip says more than one read from its file.
    f"""INSERT INTO main.clips ({_listed(_CLIP)}, run)
        SELECT {_columns(_CLIP, "o")}, {_OUR_RUN} FROM other.clips o
        WHERE o.feature_key IN (SELECT value FROM json_each(:keys))
        ON CONFLICT (feature_key) DO UPDATE SET {_taken("video model decoder created_at run")}
        WHERE clips.run IS NULL AND excluded.run IS NOT NULL
        AND clips.size_bytes = excluded.size_bytes""",
    # Numbers of deleted captions are not given again, see `insertion`.
    f"""INSERT INTO main.captions (id, {_listed(_CAPTION)}, run)
        SELECT row_number() OVER (ORDER BY o.id) + (SELECT ifnull(max(number), 0) FROM (
            SELECT max(id) AS number FROM main.captions
            UNION ALL SELECT max(id) FROM main.forgotten)),
        {_columns(_CAPTION, "o")}, {_OUR_RUN} FROM other.captions o WHERE true ORDER BY o.id
        ON CONFLICT (caption_key) DO UPDATE SET {_taken(f"{_CAPTION} run")}
        WHERE {_EARLIER.format(one="excluded", other="captions")}""",
    f"""INSERT INTO main.failures ({_listed(_FAILURE)}, run)
        SELECT {_columns(_FAILURE, "o")}, {_OUR_RUN} FROM other.failures o WHERE true
        ON CONFLICT (video, start_s, ifnull(end_s, -1), stage) DO UPDATE SET
        {_later("feature_key")}, {_later("reason")}, {_later("message")}, {_later("run")},
        {_later("video_digest")}, tries = max(tries, excluded.tries),
        first_at = min(first_at, excluded.first_at), last_at = max(last_at, excluded.last_at)""",
    """DELETE FROM main.failures WHERE stage = 'extract' AND (
        feature_key IN (SELECT feature_key FROM main.clips)
        OR feature_key IS NULL AND EXISTS (SELECT 1 FROM main.clips c
            WHERE c.video = failures.video AND c.created_at >= failures.last_at))""",
    """DELETE FROM main.failures WHERE stage = 'caption' AND EXISTS (SELECT 1 FROM main.captions c
        WHERE c.feature_key = failures.feature_key AND c.created_at >= failures.last_at)""",
)
