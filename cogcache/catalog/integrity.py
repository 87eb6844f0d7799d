"""Says whether a catalog's file is unchanged since it was closed, and if not, what is wrong.

Checksums of rows find what is wrong in a row that is read, not that a row is missing. SQLite's own
check finds both and reads the whole file. So the size and time of the file are noted beside it, in
``catalog.sqlite-state``, whenever it is closed; where they are others, the check comes first.
What is not covered: a fault of the disk that leaves the file's time as it was and hides a row.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cogcache.catalog import migrations
from cogcache.catalog.values import MAX_NAME
from cogcache.store import live_runs
from cogcache.system import CachePaths

_MAX_NOTE_BYTES: Final = 4096
_MOST: Final = 100
"""Faults that SQLite is asked to list."""
_DERIVED: Final = (
    (
        "captions_unspaced",
        """SELECT count(*) FROM (SELECT id, caption FROM captions_separated
            EXCEPT SELECT rowid, caption FROM captions_unspaced)""",
    ),
    (
        "caption_totals",
        """SELECT count(*) FROM (SELECT model, prompt_name, quantization, flags,
                num_tokens / 10 * 10 AS tokens_from, count(*) AS captions
            FROM captions GROUP BY model, prompt_name, quantization, flags, tokens_from
            EXCEPT SELECT model, prompt_name, quantization, flags, tokens_from, captions
            FROM caption_totals)""",
    ),
    (
        "clip_totals",
        """SELECT count(*) FROM (SELECT model, family, decoder, count(*) AS clips,
                sum(num_frames) AS num_frames, sum(size_bytes) AS size_bytes
            FROM clips GROUP BY model, family, decoder
            EXCEPT SELECT model, family, decoder, clips, num_frames, size_bytes
            FROM clip_totals)""",
    ),
    ("caption_totals", "SELECT count(*) FROM caption_totals WHERE captions < 0"),
    (
        "caption_totals",
        """SELECT count(*) FROM (SELECT sum(captions) AS n, count(*) AS rows FROM caption_totals)
            WHERE ifnull(n, 0) <> (SELECT count(*) FROM captions)""",
    ),
    (
        "clip_totals",
        """SELECT count(*) FROM (SELECT sum(clips) AS n FROM clip_totals)
            WHERE ifnull(n, 0) <> (SELECT count(*) FROM clips)""",
    ),
)
"""Tables made from others, and how many of their rows are not as these say. A sum of seconds is
held against nothing: it depends on the order in which they were added."""


_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)
"""Of a query that is right: an index whose own tables are damaged gives the second."""
_TYPES: Final = (
    (
        "caption_totals",
        ("model", "prompt_name", "quantization", "flags"),
        ("tokens_from", "captions", "seconds"),
    ),
    ("clip_totals", ("model", "family", "decoder"), ("clips", "num_frames", "size_bytes")),
    ("embedded", ("model",), ("caption_id",)),
)
"""Tables made from others, their texts and their numbers."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What is known of a catalog's file in its present state."""

    is_sound: bool = False
    """It passed SQLite's check, or was written by us alone since it did."""
    is_derived_sound: bool = False
    """So did the full text index and the sums, which have to be held against the captions."""


_known: dict[Path, tuple[object, Noted]] = {}
"""What this process has found, for catalogs beside which no file can be written."""
_open: Counter[Path] = Counter()
"""Connections of this process to sound catalogs; what they write changes a file's time."""
_wrote: set[Path] = set()
"""Those of them that were written to."""


def state_path(path: Path) -> Path:
    """Return where the state of a catalog is noted."""
    return path.with_name(f"{path.name}-state")


def known(path: Path) -> Noted:
    """Return what need not be checked of a catalog's file.

    Other runs that are at work on it have checked it, and change its time.
    """
    if _open[path]:
        return _known[path][1]
    if (found := noted(path)).is_sound or not (_is_the_same(path) and others_at_work(path)):
        return found
    return Noted(is_sound=True)


def _is_the_same(path: Path) -> bool:
    """Say whether a catalog is the file that was found sound, whatever was written to it since.

    Who hands a cache on can say of it that others are at work, but not which file it becomes here.
    """
    said, state = _noted_on_disk(path), _size_and_time(path)
    try:
        return state is not None and said is not None and said[0][0][3] == state[3]
    except (IndexError, TypeError):
        return False


def opened(path: Path, what: Noted) -> None:
    """Note that this process has found a catalog sound, and holds it open."""
    _open[path] += 1
    note(path, what)


def closed(path: Path, *, wrote: bool) -> None:
    """Note the state in which a catalog is left, if nobody else of this process has it open.

    Args:
        path: of the catalog.
        wrote: whether the connection has changed anything; else another did, if anybody.
    """
    state, what = _known[path]
    if wrote:
        _wrote.add(path)
    _open[path] -= 1
    if not _open[path] and (path in _wrote or state == _state(path)):
        _wrote.discard(path)
        note(path, what)


def noted(path: Path) -> Noted:
    """Return what is known of a catalog's file, if it has not changed since that was noted."""
    state = _state(path)
    if path in _known and _known[path][0] == state:
        return _known[path][1]
    said = _noted_on_disk(path)
    if said is None or said[0] != state:
        return Noted()
    return Noted(is_sound=True, is_derived_sound=said[1] is True)


def note(path: Path, what: Noted) -> None:
    """Note what is known of a catalog's file as it is; a disk without room keeps no note."""
    state = _state(path)
    _known[path] = (state, what)
    if not what.is_sound or _noted_on_disk(path) == (state, what.is_derived_sound):
        return
    with suppress(OSError):
        text = json.dumps({"state": state, "derived": what.is_derived_sound})
        state_path(path).write_text(text, encoding="utf-8")


def _noted_on_disk(path: Path) -> tuple[Any, Any] | None:
    """Return what the file beside a catalog says; it may be anybody's."""
    beside = state_path(path)
    try:
        if not beside.is_file() or beside.stat().st_size > _MAX_NOTE_BYTES:
            return None
        said = json.loads(beside.read_text(encoding="utf-8"))
        return said["state"], said["derived"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def faults(conn: sqlite3.Connection) -> list[str]:
    """Return what SQLite finds wrong with a catalog.

    It reads the whole file: 2 s for 100,000 captions.
    """
    try:
        rows = conn.execute(f"PRAGMA main.integrity_check({_MOST})").fetchall()
    except sqlite3.DatabaseError as error:
        return [str(error)]
    except UnicodeDecodeError:  # it quotes what it found
        return ["SQLite's check names things that are no text"]
    except MemoryError:  # a damaged length asks for more than there is
        return ["SQLite's check asks for more memory than there is"]
    return [fault for row in rows for fault in str(row[0]).split("\n") if fault != "ok"]


def derived_faults(conn: sqlite3.Connection) -> list[str]:
    """Return which of the full text index and the sums do not fit the captions and clips.

    The connection has to be one that may write, though nothing is changed.
    """
    found = _index_faults(conn)
    if found is None:
        return []
    for table, sql in _DERIVED:
        try:
            differing = conn.execute(sql).fetchone()[0]
        except sqlite3.DatabaseError as error:
            if _code(error) not in _DAMAGED:
                raise
            found.append(f"{table} cannot be read: {error}")
        else:
            found += [f"{table} does not fit what it is made from"] if differing else []
    return found


def _index_faults(conn: sqlite3.Connection) -> list[str] | None:
    """Return whether the full text index fits; None where it cannot be asked.

    It is asked by a statement that writes, which a file that is read-only refuses.
    """
    try:
        conn.execute("INSERT INTO captions_fts (captions_fts, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        code = _code(error)
        if code == sqlite3.SQLITE_READONLY:
            return None
        if code not in _DAMAGED:
            raise
        return ["the full text index captions_fts does not fit the captions"]
    except MemoryError:  # a damaged length asks for more than there is
        return ["the full text index captions_fts asks for more memory than there is"]
    return []


def odd_sums(conn: sqlite3.Connection) -> list[str]:
    """Return which of the tables that are made from others hold values of other types."""
    return [
        f"{table} holds values that are none of its own"
        for table, texts, numbers in _TYPES
        if conn.execute(
            f"SELECT EXISTS (SELECT 1 FROM main.{table} WHERE "
            + " OR ".join(
                [f"typeof({name}) <> 'text' OR length({name}) > {MAX_NAME}" for name in texts]
                + [f"typeof({name}) NOT IN ('integer', 'real')" for name in numbers]
            )
            + ")"
        ).fetchone()[0]
    ]


def index_words_anew(conn: sqlite3.Connection) -> None:
    """Make the full text index of captions anew, but for that of letters."""
    conn.execute(migrations.INDEX_WORDS)


def make_sums_anew(conn: sqlite3.Connection) -> None:
    """Make all but the full text index anew that is made from captions and clips."""
    conn.execute("DELETE FROM captions_unspaced")
    conn.execute(migrations.INDEX_LETTERS)
    for table, statement in migrations.SUMS.items():
        conn.execute(f"DELETE FROM {table}")
        conn.execute(statement)


def _code(error: sqlite3.Error) -> int:
    # What Python itself says of a text that is no UTF-8 has no number, and is damage.
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & 0xFF


def others_at_work(path: Path) -> bool:
    """Say whether other runs are at work on a cache: they write, and have checked its catalog."""
    ours = (os.getpid(), platform.node())
    rows = live_runs(path.parent) if CachePaths(path.parent).working.is_dir() else []
    return any(
        row["state"] == "at work" and (row.get("pid"), row.get("host")) != ours for row in rows
    )


def _state(path: Path) -> list[Any]:
    return [_size_and_time(path), _size_and_time(path.with_name(f"{path.name}-wal"))]


def _size_and_time(path: Path) -> list[int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    # An empty log is as good as none. When its system made the file, and which one it is, nobody
    # can say beforehand who hands on a catalog with a note of his own.
    facts = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return facts if stat.st_size else None
