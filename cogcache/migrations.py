"""The numbered steps by which a catalog gets its tables. Add steps; never change one.

Each is applied once, in order, in a transaction, and is noted in ``_sqlite_migrations``.
"""

from __future__ import annotations

from typing import Final

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

MIGRATIONS = Migrations("cogcache")
VERSION: Final = 1
"""The number of the last step; a catalog with a higher one is of a newer cogcache."""

_FIRST = """
CREATE TABLE files (
    path TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode TEXT NOT NULL,
    digest TEXT NOT NULL
);
CREATE TABLE runs (
    run INTEGER PRIMARY KEY AUTOINCREMENT,
    command TEXT NOT NULL,
    model TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    status TEXT NOT NULL,
    settings TEXT NOT NULL,
    planned_peak_bytes INTEGER,
    measured_peak_bytes INTEGER,
    split TEXT NOT NULL,
    counts TEXT NOT NULL,
    report TEXT NOT NULL
);
CREATE TABLE memory (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE videos (
    digest TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    duration_s REAL,
    fps REAL,
    width INTEGER,
    height INTEGER,
    total_num_frames INTEGER,
    codec TEXT,
    size_bytes INTEGER NOT NULL
);
CREATE INDEX videos_path ON videos (path);
CREATE TABLE clips (
    feature_key TEXT PRIMARY KEY,
    video_digest TEXT NOT NULL REFERENCES videos (digest),
    video TEXT NOT NULL,
    start_s REAL NOT NULL,
    end_s REAL,
    family TEXT NOT NULL,
    model TEXT NOT NULL,
    num_frames INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    decoder TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_at TEXT NOT NULL,
    run INTEGER REFERENCES runs (run)
);
CREATE INDEX clips_video ON clips (video, start_s);
CREATE INDEX clips_video_digest ON clips (video_digest);
CREATE TABLE captions (
    id INTEGER PRIMARY KEY,
    caption_key TEXT NOT NULL UNIQUE,
    feature_key TEXT NOT NULL,
    video TEXT NOT NULL,
    start_s REAL NOT NULL,
    end_s REAL,
    prompt_name TEXT NOT NULL,
    prompt TEXT NOT NULL,
    caption TEXT NOT NULL,
    model TEXT NOT NULL,
    quantization TEXT NOT NULL,
    flags TEXT NOT NULL,
    num_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    settings TEXT NOT NULL,
    created_at TEXT NOT NULL,
    run INTEGER REFERENCES runs (run)
);
CREATE INDEX captions_feature_key ON captions (feature_key);
CREATE INDEX captions_video ON captions (video, start_s);
CREATE TABLE failures (
    video TEXT NOT NULL,
    start_s REAL NOT NULL,
    end_s REAL,
    stage TEXT NOT NULL,
    feature_key TEXT,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    tries INTEGER NOT NULL,
    first_at TEXT NOT NULL,
    last_at TEXT NOT NULL,
    run INTEGER REFERENCES runs (run)
);
CREATE UNIQUE INDEX failures_clip ON failures (video, start_s, ifnull(end_s, -1), stage);
"""


def _first_tables(db: Database) -> None:
    # Captions have a number of their own, and no key into clips: VACUUM would renumber rows that
    # the full text index knows by number, and captions must outlive their features.
    db.executescript(_FIRST)
    db.table("captions").enable_fts(["caption"], create_triggers=True)


MIGRATIONS(name="0001_first_tables")(_first_tables)
