"""Whether what a catalog is made of is what the migrations make, and nothing besides that acts.

An SQLite file can hold views that never end, triggers that write, columns that are computed and
tables that are programs. So the schema is compared with ours before anything of it is used. Plain
tables, plain indexes and views that others have added are passed by: nothing here asks them.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from cogcache.catalog import migrations
from cogcache.catalog.values import COLUMNS
from cogcache.errors import DamagedCatalogError

MAX_OBJECTS: Final = 1000
"""Tables, indexes, views and triggers; a catalog of today has some sixty."""
_HINT: Final = "`cogcache rebuild` on its cache makes the catalog anew"
_BYTES: Final = ", ".join(f"CAST({name} AS BLOB)" for name in ("name", "type", "tbl_name", "sql"))
_QUOTES: Final = re.compile(r'[\s"`\[\]]')
_PLAIN_TABLE: Final = re.compile(r"CREATE\s+TABLE\b", re.IGNORECASE)
_ACTS: Final = re.compile(r"\b(CHECK|AS|COLLATE)\b", re.IGNORECASE)
_PLAIN_INDEX: Final = re.compile(r"CREATE\s+INDEX\s+\S+\s+ON\s+\S+\s*\([\w\s,\"]+\)", re.IGNORECASE)
_MOVABLE: Final = ("_sqlite_migrations", "captions_fts_", "captions_unspaced_")
"""Begins of the names of tables that libraries make, each release with words of its own."""


class SchemaObject(NamedTuple):
    """A table, an index, a view or a trigger."""

    kind: str
    table: str
    """That it is, or that it is on."""
    sql: str
    """What makes it, without blanks and quotes, which libraries set differently."""


def _object(kind: str, table: str, sql: str) -> SchemaObject:
    return SchemaObject(kind, table.casefold(), _QUOTES.sub("", sql).casefold())


def _objects(conn: sqlite3.Connection) -> dict[str, tuple[SchemaObject, str]]:
    """Return what a catalog is made of by name, and the SQL of each as it stands there."""
    # As bytes: of a damaged schema they may be no text.
    rows = conn.execute(f"SELECT {_BYTES} FROM main.sqlite_master LIMIT {MAX_OBJECTS + 1}")
    texts = ([(each or b"").decode(errors="replace") for each in row] for row in rows)
    return {name.casefold(): (_object(kind, table, sql), sql) for name, kind, table, sql in texts}


def made_by_migrations(version: int) -> Mapping[str, SchemaObject]:
    """Return what the first migrations make, by name.

    Args:
        version: of a catalog; 0 is one that is not made yet.
    """
    return _made_by(version, tuple(name for name, _ in migrations.MIGRATIONS))


@lru_cache
def _made_by(version: int, steps: tuple[str, ...]) -> Mapping[str, SchemaObject]:
    if version == 0:
        return {}
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        migrations.apply(conn, stop_before=steps[version] if version < len(steps) else None)
        return {name: made for name, (made, _) in _objects(conn).items()}


def faults(conn: sqlite3.Connection, version: int) -> Iterator[str]:
    """Yield what of a catalog's schema is not as it must be, as the end of a sentence.

    Args:
        conn: to the catalog.
        version: that it says it has.
    """
    found, wanted = _objects(conn), made_by_migrations(version)
    if len(found) > MAX_OBJECTS:
        yield f"it has more than {MAX_OBJECTS} tables, indexes, views and triggers"
        return
    for name, made in wanted.items():
        there, sql = found.get(name, (None, ""))
        movable = name.startswith(_MOVABLE) and there and _is_passed_by(name, there, sql)
        if there != made and not movable:
            be = "are" if made.kind == "table" else "is"
            yield f"its {name} {be} no {made.kind} of that kind"
    for name, (there, sql) in found.items():
        if name not in wanted and not _is_passed_by(name, there, sql):
            yield f"it has a {there.kind} {name[:80]!r}, which cogcache does not make"


def _is_passed_by(name: str, there: SchemaObject, sql: str) -> bool:
    """Say whether something that is not ours, or not in our words, does nothing by itself."""
    if there.kind == "view":
        return True
    if there.kind == "index":
        return not sql or _PLAIN_INDEX.fullmatch(sql) is not None
    return (
        there.kind == "table"
        and there.table == name
        and _PLAIN_TABLE.match(sql) is not None
        and _ACTS.search(sql) is None
    )


def what_acts(conn: sqlite3.Connection, version: int) -> list[tuple[str, str]]:
    """Return the triggers and views, whosesoever they are, and the indexes that are not ours.

    Returns:
        The kind and the name of each, in the order in which they can be dropped.
    """
    wanted = made_by_migrations(version)
    sql = "SELECT name, type, sql IS NOT NULL FROM main.sqlite_master WHERE type <> 'table'"
    return [
        (str(kind), str(name))
        for name, kind, is_made in conn.execute(f"{sql} ORDER BY type DESC").fetchall()
        if kind in ("trigger", "view") or (is_made and str(name).casefold() not in wanted)
    ]


def check_tables(conn: sqlite3.Connection, path: Path, version: int) -> None:
    """Do as `check_schema` does for the tables that rows are read from, and for no others.

    Raises:
        DamagedCatalogError: one is no table as the migrations make it.
    """
    if version > len(migrations.MIGRATIONS):
        return
    found, wanted = _objects(conn), made_by_migrations(version)
    for name in COLUMNS:
        if name in wanted and found.get(name, (None, ""))[0] != wanted[name]:
            problem = f"{path} is no catalog of cogcache: its {name} are no table of that kind"
            raise DamagedCatalogError(problem, _HINT)


def check_schema(conn: sqlite3.Connection, path: Path, version: int) -> None:
    """Refuse a catalog whose schema is not what the migrations make.

    Args:
        conn: to the catalog.
        path: of the file, for messages.
        version: that it says it has; one of a newer cogcache is not known here, and passes.

    Raises:
        DamagedCatalogError: it is not. It is somebody else's, or damaged.
    """
    if version > len(migrations.MIGRATIONS):
        return
    for fault in faults(conn, version):
        raise DamagedCatalogError(f"{path} is no catalog of cogcache: {fault}", _HINT)
