"""A stranger's cache that is opened where it lies: odd rows are left out, and nothing of it acts.

Its rows bear checksums that fit: who writes them with cogcache, or as it does, can make these.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from caches import make_cache
from click.testing import CliRunner
from test_hostile_catalogs import LISTINGS, POISON, add_captions

from cogcache.catalog import Catalog, CatalogFile
from cogcache.catalog import integrity as notes
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.rebuild import rebuild
from cogcache.catalog.upkeep.verify import verify
from cogcache.catalog.values import COLUMNS
from cogcache.cli import main
from cogcache.errors import DamagedCatalogError

DEEP = "[" * 100_000 + "]" * 100_000
RUN = {
    "uid": "u{n}", "command": "extract", "model": "tiny", "started_at": "2026-01-01T00:00:00",
    "status": "done", "settings": "{}", "split": "{}", "counts": "{}", "report": "{}",
}  # fmt: skip
VIDEO = {"digest": "d{n}", "path": "/v/{n}.mp4", "size_bytes": 1}
CLIP = {
    "feature_key": "{n:064x}", "video_digest": "of clips", "video": "/v/{n}.mp4", "start_s": 0.0,
    "family": "tiny", "model": "tiny", "num_frames": 1, "size_bytes": 1, "decoder": "pyav",
    "settings": "{}", "created_at": "2026-01-01T00:00:00",
}  # fmt: skip
FAILURE = {
    "video": "/v/{n}.mp4", "start_s": 0.0, "stage": "extract", "reason": "missing", "message": "",
    "tries": 1, "first_at": "2026-01-01T00:00:00", "last_at": "2026-01-01T00:00:00",
}  # fmt: skip
FACT = {"path": "/f/{n}.mp4", "size_bytes": 1, "mtime_ns": 1, "inode": "1", "digest": "d{n}"}
FORGOTTEN = {
    "caption_key": "f{n}", "forgotten_at": "2026-01-01T00:00:00", "feature_key": "{n:064x}",
    "video": "/v/{n}.mp4", "start_s": 0.0, "prompt_name": "p", "prompt": "?", "caption": "a",
    "model": "m", "quantization": "none", "flags": "[]", "num_tokens": 1, "seconds": 0.1,
    "settings": "{}", "created_at": "2026-01-01T00:00:00",
}  # fmt: skip
CUT = {"feature_key": "{n:064x}", "cut": "whole"}
EDIT = {
    "uid": "e{n}", "caption_key": "k{n}", "edited_key": "{n:064x}", "set_name": "reviewed",
    "action": "edit", "text": "a", "was": "b", "state": "accepted", "tags": "[]", "author": "me",
    "created_at": "2026-01-01T00:00:00", "batch": "b{n}", "undoes": "",
}  # fmt: skip
SCORE = {
    "name": "motion", "feature_key": "{n:064x}", "caption_key": "", "score": 0.5, "model": "m",
    "prompt": "", "epoch": 1, "details": "{}", "created_at": "2026-01-01T00:00:00",
}  # fmt: skip
ODD: dict[str, tuple[dict, list[dict]]] = {
    "runs": (RUN, [
        {"settings": "{"}, {"settings": "[1]"}, {"split": '{"a": "b"}'}, {"split": DEEP},
        {"counts": '{"done": 1e999}'}, {"counts": b"{}"}, {"report": '{"timeline": 7}'},
        {"report": '{"timeline": [{"time_s": "x"}]}'}, {"report": '{"bytes_by_shard": [1]}'},
        {"report": '{"versions": 7}'}, {"started_at": "yesterday"}, {"ended_at": 7},
        {"command": b"extract"}, {"model": b"tiny"}, {"status": b"done"},
        {"planned_peak_bytes": "a"}, {"measured_peak_bytes": -1}, {"uid": "u" * 300}, {"run": -7},
        {"command": "x" * 10**6}, {"report": '{"total_s": "long"}'},
        {"report": '{"training": {"samples": 7}}'},
    ]),
    "videos": (VIDEO, [
        {"path": b"/v"}, {"path": "a\0b"}, {"path": "p" * 10**6}, {"duration_s": "long"},
        {"fps": b"25"}, {"width": "wide"}, {"height": 1.5}, {"total_num_frames": -1},
        {"codec": b"h264"}, {"size_bytes": "large"}, {"digest": b"d"}, {"duration_s": 9e999},
        {"offset_s": "late"},
    ]),
    "clips": (CLIP, [
        {"feature_key": "../../etc/passwd"}, {"feature_key": b"ab"}, {"video": b"/v"},
        {"start_s": "early"}, {"end_s": b"late"}, {"family": b"tiny"}, {"model": b"tiny"},
        {"num_frames": "many"}, {"size_bytes": "large"}, {"decoder": b"pyav"},
        {"settings": "{"}, {"settings": "7"}, {"settings": '{"epoch": NaN}'}, {"created_at": "now"},
        {"settings": "x" * 10**6},
    ]),
    "failures": (FAILURE, [
        {"video": b"/v"}, {"start_s": "early"}, {"stage": "caption" * 9}, {"stage": b"extract"},
        {"feature_key": "k"}, {"reason": b"missing"}, {"message": b"m"}, {"message": "m" * 2**21},
        {"tries": "many"}, {"first_at": "then"}, {"last_at": b"now"}, {"video_digest": b"d"},
    ]),
    "files": (FACT, [
        {"path": b"/f"}, {"path": ""}, {"size_bytes": "large"}, {"mtime_ns": "then"},
        {"inode": b"1"}, {"inode": "1" * 10**6}, {"digest": b"d"}, {"digest": ""},
    ]),
    "memory": ({"name": "reading d{n}", "value": "{}"}, [
        {"value": "{"}, {"value": "[]"}, {"value": b"{}"}, {"value": DEEP}, {"name": b"a"},
        {"name": "a\0b"}, {"value": '{"a": Infinity}'}, {"value": "x" * 10**6},
    ]),
    "forgotten": (FORGOTTEN, [
        {"forgotten_at": "long ago"}, {"caption": b"a"}, {"caption": "x" * 2**21}, {"flags": "{"},
        {"settings": "7"}, {"start_s": "early"}, {"feature_key": "../k"}, {"model": b"m"},
        {"num_tokens": "many"}, {"seconds": 9e999}, {"video": "a\0b"}, {"id": "first"},
    ]),
    "cuts": (CUT, [
        {"feature_key": "../k"}, {"feature_key": b"k"}, {"cut": "a\nb"}, {"cut": b"whole"},
        {"cut": "<script>"}, {"cut": ""},
    ]),
    "edits": (EDIT, [
        {"uid": ""}, {"uid": b"e"}, {"edited_key": "../k"}, {"caption_key": b"k"},
        {"set_name": ""}, {"action": b"edit"}, {"text": b"a"}, {"was": b"b"}, {"text": "x" * 2**21},
        {"state": "perhaps"}, {"tags": "{"}, {"tags": "[7]"}, {"tags": DEEP}, {"author": b"me"},
        {"created_at": "then"}, {"batch": ""}, {"undoes": "u" * 300},
    ]),
    "scores": (SCORE, [
        {"name": ""}, {"name": b"motion"}, {"feature_key": b"k"}, {"feature_key": "k" * 70},
        {"caption_key": "k" * 300}, {"score": "high"}, {"score": 9e999}, {"model": b"m"},
        {"prompt": b"?"}, {"epoch": "late"}, {"details": "[]"}, {"details": '{"a": NaN}'},
        {"created_at": "then"},
    ]),
}  # fmt: skip
"""By table: a row that is in order, and what is odd in another one."""
COUNT = sum(len(odd) for _, odd in ODD.values()) + len(POISON)


def insert(conn: sqlite3.Connection, table: str, row: dict, number: int) -> None:
    cells = {
        name: value.format(n=number) if isinstance(value, str) and len(value) < 20 and
        "{n" in value else value
        for name, value in row.items()
    }  # fmt: skip
    names, places = ", ".join(cells), ", ".join(f":{name}" for name in cells)
    conn.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", cells)


def poison(cache: Path) -> None:
    """Write every kind of odd row, as cogcache itself would write it."""
    add_captions(cache, len(POISON))
    with closing(CatalogFile(cache / "catalog.sqlite")) as file, file.transaction() as conn:
        insert(conn, "videos", {**VIDEO, "digest": "of clips"}, 0)
        for table, (row, odd) in ODD.items():
            for number, change in enumerate(odd, 1):
                insert(conn, table, {**row, **change}, number)
            insert(conn, table, row, 99)
        for number, change in enumerate(POISON.values()):
            conn.execute(f"UPDATE captions SET {change} WHERE caption_key = 'k{number}'")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("theirs")
    make_cache(root, 2)
    poison(root / "cache")
    return root / "cache"


@pytest.fixture
def cache(theirs, tmp_path):
    return Path(shutil.copytree(theirs, tmp_path / "cache"))


def invoked(*words: str):
    done = CliRunner().invoke(main, [*map(str, words)])
    assert "Traceback" not in done.output, (words, done.output[-3000:])
    assert done.exception is None or isinstance(done.exception, SystemExit), words
    return done


def test_every_odd_row_is_left_out_of_what_is_read_and_named(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        found = {table: len(rows) for table, rows in catalog._file.misfits.items()}
        assert found == {table: len(odd) for table, (_, odd) in ODD.items()} | {
            "captions": len(POISON)
        }
        assert len(catalog._file.damage) == COUNT
        assert (len(catalog.captions.rows()), len(catalog.runs.rows())) == (2, 1)
        assert (len(catalog.clips.rows()), len(catalog.failures.rows())) == (3, 1)
        assert {row["digest"] for row in catalog.files.videos()} >= {"d99", "of clips"}


def test_nothing_is_written_while_there_are_odd_rows(cache):
    before = (cache / "catalog.sqlite").read_bytes()
    with Catalog(cache / "catalog.sqlite") as catalog:
        assert not catalog.files.can_write
        with pytest.raises(DamagedCatalogError, match=r"verify --fix"):
            catalog.runs.start("extract", "tiny", {})
    assert (cache / "catalog.sqlite").read_bytes() == before
    assert notes.noted(cache / "catalog.sqlite") == notes.Noted()


@pytest.mark.parametrize("words", [*LISTINGS, ["diff", "--json"], ["verify"]], ids=" ".join)
def test_listings_leave_odd_rows_out(cache, words):
    done = invoked(*words, f"--cache={cache}")
    assert done.exit_code in (0, 1, 2)
    assert "left out" in done.output or "cannot be shown" in done.output or done.exit_code == 2


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt", "vtt", "webdataset", "html"])
def test_exports_leave_odd_rows_out(cache, tmp_path, form):
    out = tmp_path / "out.html"
    command = ["gallery", out] if form == "html" else ["export", out, "--format", form]
    assert invoked(*command, f"--cache={cache}").exit_code in (0, 1)


def test_stages_refuse_a_catalog_with_odd_rows(cache):
    done = invoked("caption", "--model", "tiny", f"--cache={cache}")
    assert done.exit_code == 2
    assert "verify --fix" in done.output


PAGES = ("/", "/?prompt=default", "/?flag=empty", "/?q=ball", "/failures", "/runs", "/figures",
         "/differences", "/runs/1", "/clip/" + "0" * 64)  # fmt: skip


def test_pages_leave_odd_rows_out(cache):
    from starlette.testclient import TestClient

    from cogcache.web.app import create_app

    with TestClient(create_app(cache), base_url="http://127.0.0.1") as client:
        for page in PAGES:
            assert client.get(page).status_code in (200, 404), page
        assert client.get("/runs").text.count('<a href="/runs/') == 1


def test_verify_names_odd_rows_of_each_kind_and_takes_them_out(cache):
    named = [each for each in verify(cache) if each.problem == "row_misfit"]
    assert len(named) == COUNT
    assert len([each for each in verify(cache, fix=True) if each.problem == "row_misfit"]) == COUNT
    assert [each.problem for each in verify(cache, fix=True)] in ([], ["file_missing"])
    assert verify(cache) == []
    with Catalog(cache / "catalog.sqlite") as catalog:
        assert not catalog._file.misfits
        assert (len(catalog.captions.rows()), len(catalog.runs.rows())) == (2, 1)
    assert invoked("search", "seen", f"--cache={cache}").exit_code == 0


def test_rebuild_leaves_odd_rows_of_each_kind_behind(cache):
    done = rebuild(cache)
    # Of a text that is no UTF-8 what can be read is saved, with marks for the rest.
    assert done.lost == {table: len(odd) for table, (_, odd) in ODD.items() if table != "clips"} | {
        "captions": len(POISON) - 1
    }
    assert verify(cache) == []
    with Catalog(cache / "catalog.sqlite") as catalog:
        assert (len(catalog.captions.rows()), len(catalog.runs.rows())) == (3, 1)
        assert len(catalog.failures.rows()) == 1


PLANTED = {
    "trigger": "CREATE TRIGGER more AFTER INSERT ON runs BEGIN DELETE FROM captions; END",
    "trigger_of_ours": "DROP TRIGGER captions_ed; CREATE TRIGGER captions_ed AFTER DELETE ON"
    " captions BEGIN DELETE FROM files; END",
    "no_trigger": "DROP TRIGGER captions_ai",
    "no_index": "DROP INDEX captions_set",
    "other_index": "DROP INDEX captions_set; CREATE INDEX captions_set ON captions (model)",
    "unique_index": "CREATE UNIQUE INDEX more ON captions (seconds)",
    "index_that_computes": "CREATE INDEX more ON captions (hex(caption))",
    "index_of_some": "CREATE INDEX more ON captions (model) WHERE hex(caption) > 'a'",
    "computed_column": "ALTER TABLE captions ADD COLUMN more AS (hex(zeroblob(1000)))",
    "own_column": "ALTER TABLE captions ADD COLUMN more TEXT",
    "check": "CREATE TABLE more (a TEXT CHECK (length(hex(zeroblob(1000000))) > 0))",
    "virtual_table": "CREATE VIRTUAL TABLE more USING fts5 (a)",
    "view_of_ours": "DROP VIEW captions_separated; CREATE VIEW captions_separated AS WITH RECURSIVE"
    " n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id, '' AS caption FROM n",
    "sums_are_a_view": "DROP TABLE caption_totals; CREATE VIEW caption_totals AS SELECT 1 AS model",
    "no_table": "DROP TABLE embedded",
    "words_of_another": "DROP TABLE captions_fts; CREATE VIRTUAL TABLE captions_fts USING fts5"
    " (caption, content = 'files', content_rowid = 'rowid')",
    "steps_are_a_view": "DROP TABLE _sqlite_migrations; CREATE VIEW _sqlite_migrations AS SELECT 1",
    "older_than_it_is": "PRAGMA user_version = 3",
    "tables_without_end": ";".join(f"CREATE TABLE t{n} (a)" for n in range(1100)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_acts_in_a_catalog_is_refused_by_name(tmp_path, name):
    make_cache(tmp_path, 1)
    cache = tmp_path / "cache"
    with closing(sqlite3.connect(cache / "catalog.sqlite", isolation_level=None)) as conn:
        conn.executescript(PLANTED[name])
    done = invoked("ls", f"--cache={cache}")
    assert done.exit_code == 2
    assert "is no catalog of cogcache: it" in done.output
    assert "catalog_damaged" in invoked("verify", f"--cache={cache}").output
    rebuilt = invoked("rebuild", f"--cache={cache}")
    assert verify(cache) == []
    with Catalog(cache / "catalog.sqlite") as catalog:
        # Rows that are read as those of another version may be lost, and this is said.
        assert len(catalog.captions.rows()) == 1 or rebuilt.exit_code == 1


def test_what_others_keep_in_a_catalog_and_does_nothing_stays(tmp_path):
    make_cache(tmp_path, 1)
    with closing(sqlite3.connect(tmp_path / "cache" / "catalog.sqlite")) as conn:
        conn.execute("CREATE TABLE notes (a TEXT, b INTEGER DEFAULT 7)")
        conn.execute("CREATE INDEX notes_a ON notes (a)")
        conn.execute("CREATE INDEX mine ON captions (model, seconds)")
        conn.execute("CREATE VIEW mine_too AS SELECT count(*) FROM captions")
    assert invoked("ls", f"--cache={tmp_path / 'cache'}").exit_code == 0
    assert verify(tmp_path / "cache") == []


def test_a_note_that_a_stranger_made_does_not_spare_the_check(theirs, tmp_path):
    cache = Path(shutil.copytree(theirs, tmp_path / "cache"))
    path = cache / "catalog.sqlite"
    stat = path.stat()
    for facts in ([stat.st_size, stat.st_mtime_ns], [stat.st_size, stat.st_mtime_ns, 1, 1]):
        note = {"state": [facts, None], "derived": True}
        notes.state_path(path).write_text(json.dumps(note))
        (cache / "working").mkdir(exist_ok=True)
        with Catalog(path) as catalog:
            assert catalog._file.misfits


def test_every_column_is_looked_at(cache):
    with closing(sqlite3.connect(cache / "catalog.sqlite")) as conn:
        for table, checks in COLUMNS.items():
            names = {row[1] for row in conn.execute(f"PRAGMA table_info({table})")}
            assert names == {*checks, "checksum"}


def test_every_table_has_odd_rows_here():
    assert {*ODD, "captions"} == {*COLUMNS}


def test_a_long_caption_without_blanks_is_left_out_before_it_is_cut_into_letters(tmp_path):
    make_cache(tmp_path, 1)
    path = tmp_path / "cache" / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as conn:
        made = conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in made:
            conn.execute(f"DROP TRIGGER {name}")
        conn.execute("UPDATE captions SET caption = ?", ["\u7403" * 2**20])
        for _, sql in made:
            conn.execute(sql)
        conn.commit()
    merged = merge([tmp_path / "cache"], tmp_path / "into")
    assert (merged.misfits, merged.captions) == (1, 0)


def test_a_clip_of_a_video_that_is_not_there_is_left_out_of_a_merge(tmp_path):
    make_cache(tmp_path, 2)
    with closing(sqlite3.connect(tmp_path / "cache" / "catalog.sqlite")) as conn:
        conn.execute("DELETE FROM videos WHERE path LIKE '%/0.mp4'")
        conn.execute("UPDATE captions SET run = 77")
        conn.commit()
    merged = merge([tmp_path / "cache"], tmp_path / "into")
    assert merged.misfits == 1
    assert merged.adopted == 1


def test_a_run_that_reports_no_numbers_is_no_strangers(tmp_path):
    make_cache(tmp_path, 1)
    path, moved = tmp_path / "cache" / "catalog.sqlite", tmp_path / "moved.sqlite"
    with Catalog(path) as catalog:
        report = {"training": {"loss": float("nan"), "best": float("-inf"), "samples": []}}
        run = catalog.runs.start("train", "tiny", {"name": "NaN"})
        catalog._file.write(
            "UPDATE runs SET report = :report WHERE run = :run", {"report": report, "run": run}
        )
    shutil.copyfile(path, moved)
    with Catalog(moved) as catalog:
        assert not catalog._file.misfits
        (row,) = catalog.runs.rows()
    assert row["report"]["training"] == {"loss": None, "best": None, "samples": []}
    assert row["settings"] == {"name": "NaN"}
