"""A table that is registered once survives all that is done to a catalog, and goes out and in.

The table is one that no version has: it is made as a later issue would make it, by a step of the
migrations, a line in `TABLES` and a line in `COLUMNS`.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import sys
from contextlib import closing

import pytest

from cogcache.catalog import migrations, opening, values
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.search.selection import Selection
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.rebuild import rebuild
from cogcache.catalog.upkeep.unused import collect
from cogcache.catalog.upkeep.verify import verify
from cogcache.catalog.whole_rows import TABLES, Table, add_column
from cogcache.errors import ConfigError
from cogcache.export.exporting import Options, export
from cogcache.export.importing import import_captions
from cogcache.export.items import COLUMNS, OF_VIDEO
from tests.support.caches import make_cache

REMARKS = Table("remarks", ("uid",), number="id", exported_as="remarks", since=opening.VERSION + 1)
SQL = """CREATE TABLE remarks (
    id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, caption_key TEXT NOT NULL,
    text TEXT NOT NULL, score REAL, settings TEXT NOT NULL, run INTEGER, checksum INTEGER
)"""
CHECKS = {
    "uid": lambda value: isinstance(value, str),
    "text": lambda value: isinstance(value, str) and len(value) < 100,
    "settings": lambda value: isinstance(value, str),
}


def register(monkeypatch, *steps) -> None:
    """Add a table, and steps, as the next version of cogcache would have them."""
    first = opening.VERSION + 1
    named = [(f"{first + n:04}_step", step) for n, step in enumerate(steps)]
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, *named))
    version = first + len(steps) - 1
    for name, module in [*sys.modules.items()]:
        if name.startswith("cogcache.catalog.") and hasattr(module, "VERSION"):
            monkeypatch.setattr(module, "VERSION", version)
        if name.startswith("cogcache.") and getattr(module, "TABLES", None) is TABLES:
            monkeypatch.setattr(module, "TABLES", (*TABLES, REMARKS))
    monkeypatch.setitem(values.COLUMNS, "remarks", CHECKS)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of before the table, whose catalog gets it on the way; two captions have remarks."""
    make_cache(tmp_path)
    register(monkeypatch, lambda conn: conn.execute(SQL))
    path = tmp_path / "cache" / "catalog.sqlite"
    with closing(CatalogFile(path)) as file:
        with Catalog(path) as catalog:
            run = catalog.runs.start("extract", "made-up", {})
            keys = [row["caption_key"] for row in catalog.captions.rows()][:2]
        for number, key in enumerate(keys):
            row = {"uid": f"u{number}", "caption_key": key, "text": f"remark {number}"}
            file.insert("remarks", {**row, "score": 2.0, "settings": {"by": "x"}, "run": run})
    return tmp_path / "cache"


def remarks(cache) -> list[tuple[object, ...]]:
    with closing(CatalogFile(cache / "catalog.sqlite")) as file:
        rows = file.select("remarks", "uid")
    return [(row["uid"], row["text"], row["score"], row["settings"]) for row in rows]


BOTH = [("u0", "remark 0", 2.0, {"by": "x"}), ("u1", "remark 1", 2.0, {"by": "x"})]


def test_its_rows_are_held_saved_taken_over_and_kept(cache, tmp_path):
    assert verify(cache) == []
    assert rebuild(cache).saved["remarks"] == 2
    assert remarks(cache) == BOTH
    merge([cache], tmp_path / "other")
    merge([cache], tmp_path / "other")
    assert remarks(tmp_path / "other") == BOTH
    with closing(CatalogFile(tmp_path / "other" / "catalog.sqlite")) as file:
        (run,) = file.query("SELECT DISTINCT k.run FROM remarks k JOIN runs USING (run)")[0]
        assert run == 1
    (tmp_path / "0.mp4").unlink()
    assert len(collect(cache, remove=True)) == 1
    assert remarks(cache) == BOTH


def test_a_damaged_row_of_it_is_left_out_and_named(cache, caplog):
    with closing(sqlite3.connect(cache / "catalog.sqlite")) as conn, conn:
        conn.execute("UPDATE remarks SET text = 'another' WHERE uid = 'u0'")
    assert [each.problem for each in verify(cache)] == ["row_damaged"]
    with caplog.at_level(logging.WARNING, "cogcache.damage"):
        assert remarks(cache) == BOTH[1:]
    assert "u0" in caplog.text
    made = rebuild(cache)
    assert (made.saved["remarks"], made.lost) == (1, {"remarks": 1})


def test_its_rows_go_out_with_their_captions_and_come_back(cache, tmp_path):
    out = tmp_path / "out.jsonl"
    export(cache / "catalog.sqlite", out, "jsonl", Selection(), Options())
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(line.get("remarks", [])) for line in lines] == [1, 1, 0]
    assert [*lines[2]] == [*COLUMNS, *OF_VIDEO]  # as it was without the table
    with closing(CatalogFile(cache / "catalog.sqlite")) as file:
        file.write("DELETE FROM remarks", {})
    for _ in range(2):
        import_captions(out, cache / "catalog.sqlite", "again")
        assert remarks(cache) == BOTH


def test_they_come_into_another_cache_with_the_captions_that_are_made_there(cache, tmp_path):
    out = tmp_path / "out.jsonl"
    export(cache / "catalog.sqlite", out, "jsonl", Selection(), Options())
    other = shutil.copytree(cache, tmp_path / "other")
    with closing(CatalogFile(other / "catalog.sqlite")) as file:
        file.write("DELETE FROM remarks", {})
        file.write("DELETE FROM captions", {})
    import_captions(out, other / "catalog.sqlite", "again")
    assert remarks(other) == BOTH
    with closing(CatalogFile(other / "catalog.sqlite")) as file:
        rows = file.query("SELECT text, video FROM remarks JOIN captions USING (caption_key)")
    assert [row["text"] for row in rows if row["video"] == str(tmp_path / "0.mp4")] == ["remark 0"]


@pytest.mark.parametrize(
    "remarks_of_line",
    [5, ["text"], [{"uid": "u9", "text": 5}], [{"uid": "u9", "nobody": 1}], [{"uid": "u9"}]],
)
def test_what_is_no_row_of_it_is_refused_on_the_way_in(cache, tmp_path, remarks_of_line):
    out = tmp_path / "out.jsonl"
    export(cache / "catalog.sqlite", out, "jsonl", Selection(), Options())
    line = json.loads(out.read_text().splitlines()[2])
    out.write_text(json.dumps({**line, "remarks": remarks_of_line}))
    with pytest.raises(ConfigError, match="remarks"):
        import_captions(out, cache / "catalog.sqlite", "again")
    assert remarks(cache) == BOTH


def test_rows_of_before_a_column_was_added_are_saved_and_damaged_ones_stay_damaged(
    tmp_path, monkeypatch
):
    make_cache(tmp_path)
    path = tmp_path / "cache" / "catalog.sqlite"
    old = shutil.copytree(tmp_path / "cache", tmp_path / "old")
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE captions SET caption = 'another' WHERE id = 1")
    captions = next(table for table in TABLES if table.name == "captions")
    register(
        monkeypatch,
        lambda conn: conn.execute(SQL),
        lambda conn: add_column(conn, captions, "author TEXT"),
    )
    with Catalog(path) as catalog:
        assert len(catalog.captions.rows()) == 2
    (old / "catalog.sqlite").write_bytes((old / "catalog.sqlite").read_bytes()[:-4096])
    made = rebuild(old)
    assert made.saved["captions"] == 3
    assert not made.uncounted
