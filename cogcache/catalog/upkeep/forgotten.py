"""Captions that are deleted, and kept for thirty days so that they can be taken back.

They leave the table ``captions``, the full text index and the sums, and lie in ``forgotten`` with
the time of their deletion; their scores lie in ``memory``. Features stay. What is not covered: a
merge with a catalog that still holds such a caption brings it back, and so does `caption` when it
is asked for it again.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Final, Protocol

from cogcache.catalog.backup import with_room
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.values import misfits
from cogcache.catalog.whole_rows import columns_of
from cogcache.errors import ConfigError

KEPT_DAYS: Final = 30
_LISTED: Final = (
    "c.video, c.start_s, c.end_s, c.prompt_name, c.caption, c.model, c.quantization, c.flags,"
    " c.created_at, c.feature_key, c.caption_key, c.video_digest"
)

_SCORE: Final = (
    "name", "feature_key", "caption_key", "score", "model", "prompt", "epoch", "details",
    "created_at",
)  # fmt: skip
_SCORES_OF: Final = "scores of a forgotten caption: "
"""Begins the names under which ``memory`` has them."""


class Filters(Protocol):
    """What chooses captions, such as a `Selection`."""

    def where(self) -> tuple[str, dict[str, Any]]:
        """Return an SQL condition over ``captions c`` and its values."""


@dataclass
class Forgetting:
    """What `forget` or `take_back` has done, or would do."""

    captions: list[dict[str, Any]] = field(default_factory=list)
    """Rows with the columns of an export, and ``forgotten_at`` where they lie among the kept."""
    still_there: int = 0
    """Captions that were not taken back: they have been made again since."""
    expired: int = 0
    """Captions that were deleted for good: thirty days are over."""


def forget(catalog: Path, selection: Filters, *, remove: bool = False) -> Forgetting:
    """List the captions that pass the filters, and delete them if asked.

    All of them are deleted, or none. On a full disk SQLite has no room for its log: then the
    catalog's backup gives way, and where there is none, the catalog stays as it was.

    Args:
        catalog: the catalog's file.
        selection: which captions; one without a filter is refused.
        remove: delete them; they are kept for thirty days. Those that have been are deleted for
            good.

    Raises:
        CatalogError: the catalog cannot be read or written.
        ConfigError: no filter is given.
    """
    where, values = selection.where()
    if not where:
        hint = "name them: --prompt-name, --model, --cut; `cogcache ls` lists what there is"
        raise ConfigError("it is not said which captions to forget", hint)
    chosen = f"SELECT {_LISTED}, c.id FROM whole_captions c WHERE {where} ORDER BY c.id"

    def delete() -> Forgetting:
        with closing(CatalogFile(catalog)) as file, file.transaction() as conn:
            done = Forgetting([_row(row) for row in conn.execute(chosen, values)])
            _move(conn, [row["id"] for row in done.captions])
            done.expired = _expire(conn)
        return done

    if remove:
        return with_room(catalog.parent, delete)
    with closing(CatalogFile(catalog)) as file:
        return Forgetting([_row(row) for row in file.query(chosen, values)])


def kept_captions(catalog: Path, selection: Filters) -> Forgetting:
    """List the deleted captions that can be taken back, those deleted last first."""
    where, values = selection.where()
    sql = f"""SELECT {_LISTED}, c.forgotten_at FROM whole_forgotten c
        {where and "WHERE " + where} ORDER BY c.forgotten_at DESC, c.id"""
    with closing(CatalogFile(catalog)) as file:
        return Forgetting([_row(row) for row in file.query(sql, values)])


def take_back(catalog: Path, selection: Filters) -> Forgetting:
    """Put deleted captions back: those that pass the filters, or those that were deleted last.

    A caption that has been made again since stays as it is, and the deleted one stays among the
    kept.

    Args:
        catalog: the catalog's file.
        selection: which captions; without a filter, all that the last `forget` deleted.

    Raises:
        CatalogError: the catalog cannot be written.
    """
    where, values = selection.where()
    where = where or "c.forgotten_at = (SELECT max(forgotten_at) FROM whole_forgotten)"
    # Of a caption that was deleted twice, the one that was deleted last.
    sql = f"""SELECT {_LISTED}, max(c.forgotten_at) AS forgotten_at FROM whole_forgotten c
        WHERE {where} GROUP BY c.caption_key ORDER BY c.id"""
    with closing(CatalogFile(catalog)) as file, file.transaction() as conn:
        found = [_row(row) for row in conn.execute(sql, values)]
        done = Forgetting([row for row in found if _put_back(conn, row)])
    done.still_there = len(found) - len(done.captions)
    return done


def _move(conn: Connection, ids: list[int]) -> None:
    """Move captions, by their numbers, to those that are kept."""
    columns = _columns(conn)
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    conn.executemany(
        f"""INSERT INTO forgotten (id, forgotten_at, {columns})
            SELECT id, ?, {columns} FROM whole_captions WHERE id = ?""",
        [(now, each) for each in ids],
    )
    for each in ids:
        _keep_scores(conn, each, now)
    conn.executemany("DELETE FROM captions WHERE id = ?", [(each,) for each in ids])


def _keep_scores(conn: Connection, caption_id: int, forgotten_at: str) -> None:
    """Note the scores of a caption: they are deleted with it."""
    sql = f"""SELECT {", ".join(_SCORE)} FROM whole_scores
        WHERE caption_key = (SELECT caption_key FROM whole_captions WHERE id = ?)"""
    if rows := [dict(zip(_SCORE, row, strict=True)) for row in conn.execute(sql, (caption_id,))]:
        name = _name_of(rows[0]["caption_key"], forgotten_at)
        value = json.dumps({"scores": rows})
        conn.execute("INSERT OR REPLACE INTO memory (name, value) VALUES (?, ?)", (name, value))


def _put_back_scores(conn: Connection, caption_key: str, forgotten_at: str) -> None:
    name = (_name_of(caption_key, forgotten_at),)
    found = conn.execute("SELECT value FROM whole_memory WHERE name = ?", name).fetchone()
    rows = json.loads(found[0]).get("scores", []) if found else []
    rows = [each for each in rows if {*each} == {*_SCORE} and not misfits("scores", each)]
    places = ", ".join(f":{column}" for column in _SCORE)
    sql = f"INSERT OR IGNORE INTO scores ({', '.join(_SCORE)}) VALUES ({places})"
    conn.executemany(sql, rows)
    conn.execute("DELETE FROM memory WHERE name = ?", name)


def _name_of(caption_key: str, forgotten_at: str) -> str:
    return f"{_SCORES_OF}{caption_key} {forgotten_at}"


def _put_back(conn: Connection, row: dict[str, Any]) -> bool:
    """Put one caption back; False where there is one of its key."""
    columns, at = _columns(conn), (row["caption_key"], row["forgotten_at"])
    # Its number says how old it is: the caption that is listed as the newest must stay that.
    added = conn.execute(
        f"""INSERT INTO captions (id, {columns})
            SELECT iif(k.id IN (SELECT id FROM captions), NULL, k.id), {columns}
            FROM whole_forgotten k WHERE caption_key = ? AND forgotten_at = ?
            AND NOT EXISTS (SELECT 1 FROM captions c WHERE c.caption_key = k.caption_key)""",
        at,
    ).rowcount
    if added:
        conn.execute("DELETE FROM forgotten WHERE caption_key = ? AND forgotten_at = ?", at)
        _put_back_scores(conn, *at)
    return bool(added)


def expire(catalog: Path) -> int:
    """Delete for good what was deleted more than thirty days ago; return how many captions.

    Raises:
        CatalogError: the catalog cannot be written.
    """
    with closing(CatalogFile(catalog)) as file, file.transaction() as conn:
        return _expire(conn)


def _expire(conn: Connection) -> int:
    """Delete for good what was deleted more than thirty days ago."""
    before = (datetime.now(UTC) - timedelta(days=KEPT_DAYS)).isoformat(timespec="microseconds")
    number = conn.execute("DELETE FROM forgotten WHERE forgotten_at < ?", (before,)).rowcount
    conn.execute(
        """DELETE FROM memory WHERE name LIKE :scores_of || '%' AND NOT EXISTS (
            SELECT 1 FROM forgotten
            WHERE memory.name = :scores_of || caption_key || ' ' || forgotten_at)""",
        {"scores_of": _SCORES_OF},
    )
    return number


def _columns(conn: Connection) -> str:
    """Return the columns of captions but their number, which both tables have."""
    return ", ".join(each.name for each in columns_of(conn, "captions") if each.name != "id")


def _row(row: Any) -> dict[str, Any]:
    return dict(row)
