"""Rows that are of captions, carried by `export` to where `import` takes them back.

They are those of the tables that `whole_rows` names with ``exported_as``. A line of JSONL has them
under that name, as a list; lines of captions without such rows are as they would be without the
table.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cogcache.catalog.database import CatalogFile, cells_of, insertion, json_read
from cogcache.catalog.values import misfits
from cogcache.catalog.whole_rows import TABLES, Table, columns_of
from cogcache.errors import ConfigError

Carried: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""By the name in a line of an export: rows, without what only their own catalog knows."""

_OWN: Final = frozenset({"checksum", "run", "caption_key"})
"""Columns that are not carried: the line says of which caption a row is."""


@dataclass(frozen=True, slots=True)
class CarriedTable:
    """A table whose rows are of captions."""

    table: Table
    columns: tuple[str, ...]
    """Those that a line bears."""


def carried_tables(file: CatalogFile) -> list[CarriedTable]:
    """Return the tables whose rows are of captions."""
    with file.reading() as conn:
        return [CarriedTable(table, _columns(conn, table)) for table in TABLES if table.exported_as]


def _columns(conn: sqlite3.Connection, table: Table) -> tuple[str, ...]:
    left_out = _OWN | {table.number}
    names = (column.name for column in columns_of(conn, table.name))
    return tuple(name for name in names if name not in left_out)


def carried_rows(file: CatalogFile, caption_keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return what lines of captions bear besides, by caption key; captions without any have none.

    Args:
        file: the catalog.
        caption_keys: of the captions.
    """
    found: dict[str, dict[str, Any]] = {}
    for each in carried_tables(file):
        sql = f"""SELECT caption_key, {", ".join(each.columns)} FROM whole_{each.table.name}
            WHERE caption_key IN (SELECT value FROM json_each(:keys)) ORDER BY rowid"""
        for key, *cells in file.query(sql, {"keys": json.dumps([*caption_keys])}):
            row = json_read(dict(zip(each.columns, cells, strict=True)))
            found.setdefault(key, {}).setdefault(str(each.table.exported_as), []).append(row)
    return found


def check_carried(tables: Iterable[CarriedTable], line: Mapping[str, Any], where: str) -> Carried:
    """Return the rows that a line bears of captions' tables.

    Args:
        tables: of the catalog.
        line: of an export, from anybody.
        where: begins the messages: the file and the line.

    Raises:
        ConfigError: they are not what such a table can hold.
    """
    return {
        str(each.table.exported_as): _checked(each, line[str(each.table.exported_as)], where)
        for each in tables
        if line.get(str(each.table.exported_as)) is not None
    }


def _checked(each: CarriedTable, rows: object, where: str) -> list[Mapping[str, Any]]:
    name, hint = each.table.exported_as, "nothing was imported; leave it out of the line"
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{where}: {name} is no list of rows", hint)
    for row in rows:
        if unknown := sorted(row.keys() - {*each.columns}):
            raise ConfigError(f"{where}: {name} have no {unknown[0]!r}", hint)
        if wrong := misfits(each.table.name, cells_of(row)):
            raise ConfigError(f"{where}: {name}: {wrong[0]} is no value for it", hint)
    return rows


def take_carried(file: CatalogFile, by_caption: Mapping[str, Carried]) -> int:
    """Add the rows that lines bore; those that are there stay. All of them, or none.

    Args:
        file: the catalog.
        by_caption: what `check_carried` gave, by the key of a caption that is there.

    Returns:
        How many were new.

    Raises:
        ConfigError: a row lacks what it needs.
    """
    tables = {str(each.table.exported_as): each for each in carried_tables(file)}
    added = 0
    with file.transaction() as conn:
        for key, carried in by_caption.items():
            for name, rows in carried.items():
                added += sum(_added(conn, tables[name].table, key, row) for row in rows)
    return added


def _added(conn: sqlite3.Connection, table: Table, key: str, row: Mapping[str, Any]) -> int:
    full = {**row, "caption_key": key}
    sql = f"{insertion(table.name, full)} ON CONFLICT DO NOTHING"
    try:
        return conn.execute(sql, cells_of(full)).rowcount
    except sqlite3.IntegrityError as error:
        problem = f"one of the {table.exported_as} of a line lacks what it needs: {error}"
        raise ConfigError(problem, "nothing of them was imported; see the line") from error
