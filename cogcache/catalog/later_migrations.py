"""The steps that a catalog has taken since version 9, see `migrations`. Never change one.

Each table is as `whole_rows` asks: it has a column ``checksum``, and rows that are numbered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from sqlite3 import Connection
from typing import Any, Final

from cogcache.catalog.whole_rows import TABLES, Checksums, Damage, columns_of, define

_FORGOTTEN: Final = (
    # The columns of captions, and when each was deleted. A caption can be made and deleted again.
    """CREATE TABLE forgotten (
        caption_key TEXT NOT NULL,
        forgotten_at TEXT NOT NULL,
        id INTEGER,
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
        run INTEGER REFERENCES runs (run),
        video_digest TEXT,
        checksum INTEGER,
        PRIMARY KEY (caption_key, forgotten_at)
    )""",
    "CREATE INDEX forgotten_id ON forgotten (id)",
)


def _forgotten(conn: Connection) -> None:
    for statement in _FORGOTTEN:
        conn.execute(statement)


_CUTS: Final = """CREATE TABLE cuts (
    feature_key TEXT NOT NULL,
    cut TEXT NOT NULL,
    checksum INTEGER,
    PRIMARY KEY (feature_key, cut)
)"""


def _cuts(conn: Connection) -> None:
    """Note of each clip how its video was cut, as the settings of the run that made it say."""
    conn.execute(_CUTS)
    tables = {table.name: Checksums(table, columns_of(conn, table.name)) for table in TABLES
              if table.name in ("clips", "cuts")}  # fmt: skip
    for checksums in tables.values():
        define(conn, checksums, Damage())
    sql = f"""INSERT OR IGNORE INTO cuts (feature_key, cut) SELECT feature_key, ? FROM clips
        WHERE run = ? AND (SELECT {tables["clips"].test()}) AND (? OR start_s = 0 AND end_s IS NULL)
        AND (? IS NULL OR abs(start_s / ? - round(start_s / ?)) < 1e-6)"""
    for run, command, settings in conn.execute("SELECT run, command, settings FROM runs"):
        cut, step_s = _cut_of(settings) if command == "extract" else ("whole", None)
        # A part that was named with --clip begins anywhere: of it nothing is noted.
        conn.execute(sql, (cut, run, cut != "whole", step_s, step_s, step_s))
    conn.execute(f"UPDATE cuts SET checksum = checksum_cuts({tables['cuts'].arguments()})")


def _cut_of(settings: str) -> tuple[str, float | None]:
    """Return what `Clips.cut` returned when this step was written, and how far segments are apart.

    It is `whole` where nothing is said; where videos are cut at scenes, no distance is known.
    """
    try:
        clips = json.loads(settings).get("clips")
    except (ValueError, AttributeError):
        return "whole", None
    told: Mapping[str, Any] = clips if isinstance(clips, Mapping) else {}
    segment, overlap = told.get("segment_s"), told.get("overlap_s")
    detector, least = told.get("scene_detector", "adaptive"), told.get("min_scene_s", 2.0)
    parts = [f"segment:{segment:g}" if segment else "", f"overlap:{overlap:g}" if overlap else ""]
    if told.get("scenes"):
        threshold = told.get("scene_threshold")
        parts = [
            "scenes" if detector == "adaptive" else f"scenes:{detector}",
            f"threshold:{threshold:g}" if threshold else "",
            "" if least == 2.0 else f"min:{least:g}",
            *parts,
        ]
    step_s = segment - (overlap or 0) if segment and not told.get("scenes") else None
    return ",".join(filter(None, parts)) or "whole", step_s


_READINGS_OF_AVI: Final = """DELETE FROM memory WHERE name IN (
    SELECT 'reading ' || digest FROM videos WHERE lower(path) LIKE '%.avi'
    UNION SELECT 'reading ' || digest FROM files WHERE lower(path) LIKE '%.avi')"""


def _readings_of_avi(conn: Connection) -> None:
    """Have AVI files looked at again: their times were believed as libav makes them up."""
    conn.execute(_READINGS_OF_AVI)


STEPS: Final[tuple[tuple[str, Callable[[Connection], None]], ...]] = (
    ("0010_forgotten", _forgotten),
    ("0011_cuts", _cuts),
    ("0012_readings_of_avi", _readings_of_avi),
)
