"""A damaged catalog never answers wrongly: what it says is true, or it says that it is damaged.

The disk is simulated: bits are flipped, pages zeroed, exchanged and cut off in a copy of a catalog,
with and without a log beside it.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pytest

import cogcache
from cogcache.catalog import integrity
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.holders import Look
from cogcache.catalog.search.full_text import CaptionSearch
from cogcache.catalog.search.selection import Selection
from cogcache.catalog.upkeep.forgotten import forget
from cogcache.catalog.upkeep.rebuild import rebuild
from cogcache.catalog.upkeep.verify import verify
from cogcache.catalog.whole_rows import TABLES
from cogcache.errors import CogcacheError
from cogcache.export.items import choose_items
from cogcache.export.wording import Wording
from cogcache.review.reviews import Reviews
from cogcache.web import figures
from cogcache.web.browse import Browser, Filter
from cogcache.web.queue import Queue, QueueFilter, progress
from cogcache.web.site import open_site
from tests.support.caches import AS_VERSION_7, make_cache

PAGE_BYTES = 4096
NUM_CLIPS = 12
Answers = dict[str, list[tuple[object, ...]]]


def caption_rows(path: Path) -> list[tuple[object, ...]]:
    with Catalog(path) as catalog:
        rows = catalog.captions.rows()
        return [(row["video"], row["caption"], tuple(row["flags"])) for row in rows]


def clip_rows(path: Path) -> list[tuple[object, ...]]:
    with Catalog(path) as catalog:
        rows = catalog.clips.rows()
        return [(row["video"], row["feature_key"], str(row["settings"])) for row in rows]


def run_rows(path: Path) -> list[tuple[object, ...]]:
    with Catalog(path) as catalog:
        rows = catalog.runs.rows()
        return [(row["run"], row["command"], str(row["report"])) for row in rows]


def exported(path: Path) -> list[tuple[object, ...]]:
    items = choose_items(path, Selection(prompts=("default",)), Wording(), Look()).items
    return [(item.row["video"], item.caption) for item in items]


def searched(path: Path) -> list[tuple[object, ...]]:
    with CaptionSearch(path) as search:
        hits = search.search("seen", limit=100).hits
        return [(hit.caption["video"], hit.snippet) for hit in hits]


def browsed(path: Path) -> list[tuple[object, ...]]:
    with Browser(path, deadline_s=60) as browser:
        rows = browser.clips().rows + browser.captions(Filter(prompt="default")).rows
        counts = figures.collection(browser)["captions"]
        return [(row["video"], row["caption"]) for row in rows] + [("captions", counts)]


def later_rows(path: Path) -> list[tuple[object, ...]]:
    """What people did, what was measured, deleted, cut, and could not be done."""
    tables = {
        "edits": ("caption_key", "state", "text", "tags", "author"),
        "scores": ("name", "feature_key", "score", "details"),
        "forgotten": ("video", "caption", "settings"),
        "cuts": ("feature_key", "cut"),
        "failures": ("video", "reason", "message"),
    }
    with Catalog(path) as catalog:
        return [
            (table, *(str(each) for each in row))
            for table, names in tables.items()
            for row in catalog._file.query(f"SELECT {', '.join(names)} FROM whole_{table}")
        ]


READERS: dict[str, Callable[[Path], list[tuple[object, ...]]]] = {
    "captions": caption_rows,
    "clips": clip_rows,
    "runs": run_rows,
    "export": exported,
    "search": searched,
    "pages": browsed,
    "later": later_rows,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A cache of clips with captions, closed in order, and one with a log beside its catalog."""
    folder = tmp_path_factory.mktemp("whole")
    make_cache(folder, NUM_CLIPS)
    cache = folder / "cache"
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.runs.start("extract", "made-up", {"a": 1})
        run = catalog.runs.start("caption", "made-up", {"b": [1, 2]})
        (row,) = catalog.captions.rows()[:1]
        row = {**row, "caption_key": "f" * 64, "prompt_name": "color", "flags": ["looping"]}
        del row["id"]
        add_later_rows(catalog)
        shutil.copytree(cache, folder / "closed")
        catalog.captions.add([{**row, "run": run}])
        shutil.copytree(cache, folder / "logged")
    return folder


def add_later_rows(catalog: Catalog) -> None:
    """Add rows of each table that came later: reviews, scores, forgotten captions, cuts."""
    captions = catalog.captions.rows()
    reviews = Reviews(catalog, author="me")
    reviews.accept(reviews.of_keys([row["caption_key"] for row in captions[:4]]).values())
    reviews.edit(reviews.of_keys([captions[4]["caption_key"]]).popitem()[1], "another text")
    catalog.cuts.add((row["feature_key"], "whole") for row in captions)
    score = {"name": "motion", "caption_key": "", "model": "", "prompt": "", "epoch": 1}
    details = {"frames": 2}
    catalog.scores.add(
        [{**score, "feature_key": row["feature_key"], "score": 0.5, "details": details}
         for row in captions]
    )  # fmt: skip
    catalog.failures.add(
        {"video": "/bad.mp4", "start_s": 0.0, "end_s": None, "stage": "extract",
         "feature_key": None, "reason": "timeout", "message": "it took too long"}
    )  # fmt: skip
    forget(catalog.path, Selection(folders=(Path(captions[-1]["video"]),)), remove=True)


def answers(path: Path) -> Answers:
    return {name: read(path) for name, read in READERS.items()}


class Told(logging.Handler):
    """Counts the damaged rows that are told of."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.rows += 1
        self.said.add(record.getMessage())


@pytest.fixture
def told():
    handler, logger = Told(), logging.getLogger("cogcache.damage")
    filters = [*logger.filters]
    logger.filters.clear()  # a command in this process has each row named once
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.filters.extend(filters)


def hold(cache: Path, truth: Answers, told: Told, what: str) -> None:
    """Hold that each reader says what is true, or says that something is damaged."""
    path = cache / "catalog.sqlite"
    for name, read in READERS.items():
        told.rows = 0
        try:
            said = read(path)
        except CogcacheError:
            continue
        if said != truth[name]:
            assert told.rows, f"{what}: {name} says other things and no word of it"
            if name != "pages":  # its counts are less by what is left out
                assert set(said) <= set(truth[name]), f"{what}: {name} says what is not true"
    findings = verify(cache)
    try:
        same = answers(path) == truth
    except CogcacheError:
        same = False
    assert same or findings, f"{what}: verify says that all is well"


def flipped(content: bytearray, rng: random.Random) -> str:
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    return f"bit {bit} of byte {place}"


def zeroed(content: bytearray, rng: random.Random) -> str:
    page = rng.randrange(len(content) // PAGE_BYTES)
    content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)
    return f"page {page} zeroed"


def swapped(content: bytearray, rng: random.Random) -> str:
    one, other = rng.sample(range(len(content) // PAGE_BYTES), 2)
    first, second = (slice(p * PAGE_BYTES, (p + 1) * PAGE_BYTES) for p in (one, other))
    content[first], content[second] = content[second], content[first]
    return f"pages {one} and {other} exchanged"


def misdirected(content: bytearray, rng: random.Random) -> str:
    one, other = rng.sample(range(len(content) // PAGE_BYTES), 2)
    content[one * PAGE_BYTES : (one + 1) * PAGE_BYTES] = content[
        other * PAGE_BYTES : (other + 1) * PAGE_BYTES
    ]
    return f"page {other} written at the place of {one}"


def cut(content: bytearray, rng: random.Random) -> str:
    length = rng.choice([1, 100, PAGE_BYTES, 3 * PAGE_BYTES, len(content) // 2])
    del content[-length:]
    return f"{length} bytes cut off"


DAMAGES = (flipped, flipped, flipped, flipped, zeroed, swapped, misdirected, cut)


def torture(whole: Path, tmp_path: Path, told: Told, number: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    truths = {}
    for kind in ("closed", "logged"):
        copy = shutil.copytree(whole / kind, tmp_path / f"{kind}-truth")
        truths[kind] = answers(copy / "catalog.sqlite")
    for turn in range(number):
        kind = rng.choice(["closed", "logged"])
        cache = shutil.copytree(whole / kind, tmp_path / "damaged")
        path = cache / "catalog.sqlite"
        content = bytearray(path.read_bytes())
        what = f"{turn} ({kind}): {DAMAGES[turn % len(DAMAGES)](content, rng)}"
        path.write_bytes(content)
        hold(cache, truths[kind], told, what)
        made = rebuild(cache)
        said = caption_rows(path)
        assert set(said) <= set(truths[kind]["captions"]), what
        assert set(later_rows(path)) <= set(truths[kind]["later"]), what
        lost = len(truths[kind]["captions"]) - len(said)
        assert not lost or not made.is_whole, f"{what}: rebuild does not say what it lost"
        shutil.rmtree(cache)


def test_no_damage_makes_a_catalog_answer_wrongly(whole, tmp_path, told):
    torture(whole, tmp_path, told, 24)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("quarter", range(4))
def test_no_damage_of_two_thousand_makes_a_catalog_answer_wrongly(whole, tmp_path, told, quarter):
    torture(whole, tmp_path, told, 500, seed=1 + quarter)


def test_a_row_that_changed_behind_an_unchanged_time_is_left_out(whole, tmp_path, told):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    path = cache / "catalog.sqlite"
    truth = answers(path)["captions"]  # which notes the file as it is
    stat = path.stat()
    text = str(truth[3][1]).encode()
    path.write_bytes(path.read_bytes().replace(text, b"Ghat" + text[4:]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    said = caption_rows(path)
    assert told.rows == 1
    assert set(said) < set(truth)


def test_a_row_whose_json_cannot_be_read_is_left_out_of_an_export_and_of_what_is_outdated(
    whole, tmp_path, told
):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    path = cache / "catalog.sqlite"
    truth = exported(path)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE clips SET family = 'cogvlm2', settings = '{broken'")
        conn.execute("UPDATE captions SET settings = '{broken' WHERE id = 1")
    said = exported(path)
    # All clips, and the caption; a catalog that is opened twice may tell of each twice.
    assert len(told.said) == NUM_CLIPS + 1
    assert set(said) < set(truth)


def test_rows_that_a_query_does_not_ask_for_are_not_taken_for_damaged(whole, tmp_path, told):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    with Catalog(cache / "catalog.sqlite") as catalog:
        for column, value in (("prompt_name", "nobody's"), ("quantization", "fp4"), ("model", "")):
            sql = f"SELECT caption_key FROM whole_captions WHERE {column} = :value"
            assert catalog._file.query(sql, {"value": value}) == []
        assert len(catalog.captions.rows()) > 0
    assert told.rows == 0


def test_a_change_of_one_cell_does_not_make_a_damaged_row_whole(whole, tmp_path):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    with Catalog(cache / "catalog.sqlite") as catalog:
        key = catalog.clips.rows()[0]["feature_key"]
        with catalog._file.transaction() as conn:
            conn.execute("UPDATE clips SET checksum = checksum + 1 WHERE feature_key = ?", [key])
        catalog.clips.resize(key, 1)
        assert key not in {row["feature_key"] for row in catalog.clips.rows()}


def test_rows_of_an_older_catalog_get_checksums_but_for_those_whose_key_is_another(whole, tmp_path):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    path = cache / "catalog.sqlite"
    with closing(CatalogFile(path)) as file:
        keys = [row[0] for row in file.query("SELECT caption_key FROM captions ORDER BY id")]
        file.write(
            "UPDATE captions SET settings = '{\"a\": 1}' WHERE caption_key = :k", {"k": keys[0]}
        )
        with file.reading() as conn:
            views = conn.execute("SELECT name FROM temp.sqlite_schema WHERE type = 'view'")
            for (name,) in views.fetchall():
                if not name.startswith("whole_"):
                    conn.execute(f"DROP VIEW temp.{name}")
            for table in TABLES:
                name = table.name
                conn.execute(f"DROP VIEW temp.whole_{name}")
                for event in ("insert", "update"):
                    conn.execute(f"DROP TRIGGER temp.{name}_checksum_{event}")
            for statement in AS_VERSION_7:
                conn.execute(statement)
            conn.execute("DELETE FROM _sqlite_migrations WHERE name >= '0008'")
            conn.execute("PRAGMA user_version = 7")
    with Catalog(path) as catalog:
        said = {row["caption_key"] for row in catalog.captions.rows()}
    assert said == set(keys[1:])


def test_a_schema_that_is_no_text_is_told_as_damage(whole, tmp_path):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    path = cache / "catalog.sqlite"
    content = bytearray(path.read_bytes())
    content[content.index(b"CREATE TABLE memory") + 13] = 0xFF
    path.write_bytes(content)
    with pytest.raises(CogcacheError):
        caption_rows(path)
    assert verify(cache)
    assert rebuild(cache).saved["captions"]


@pytest.mark.parametrize("check", [integrity.faults, integrity.derived_faults])
def test_a_check_that_asks_for_more_memory_than_there_is_finds_damage(check):
    """A damaged length does so: SQLite then says that memory is short, and Python MemoryError."""
    connection = Mock()
    connection.execute.side_effect = MemoryError
    if check is integrity.derived_faults:
        asked = Mock()
        asked.fetchone.return_value = (0,)
        connection.execute.side_effect = [MemoryError, *[asked] * 9]
    assert "more memory than there is" in check(connection)[0]


def altered(cache: Path, table: str, where: str, column: str, value: str | bytes) -> None:
    """Change a cell as a fault of the disk does: its row's checksum stays."""
    path = cache / "catalog.sqlite"
    stat = path.stat()
    with closing(sqlite3.connect(path)) as conn, conn:
        change = f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE {where}"
        done = conn.execute(change, [value]).rowcount
        assert done, "there is no such row"
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_review_queue_passes_by_a_damaged_caption_and_a_damaged_review(whole, tmp_path, told):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    with open_site(cache) as site:
        queue = Queue(site, QueueFilter())
        first = queue.after(0)
        assert first
        done = progress(site.browser, "reviewed")
        altered(cache, "captions", f"id = {first['id']}", "caption", "what nobody said")
        altered(cache, "edits", "text IS NOT NULL", "state", "rejected")
        following = queue.after(0)
        assert following
        assert following["id"] > first["id"]
        assert progress(site.browser, "reviewed") == {**done, "accepted": 4, "edited": 0}
    assert told.rows


def test_a_checksum_that_is_no_number_hides_its_own_row_alone(whole, tmp_path, told):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    path = cache / "catalog.sqlite"
    with Catalog(path) as catalog:  # which holds it for sound
        truth = answers(path)
        for table in ("captions", "clips", "runs", "edits", "scores"):
            altered(cache, table, "rowid = 1", "checksum", b"\xff\xfe{")
        for name, read in READERS.items():
            said = read(path)
            if name != "pages":  # its counts say less by what is left out
                assert set(said) <= set(truth[name]), name
        assert len(catalog.captions.rows()) == len(truth["captions"]) - 1
    assert told.rows


def test_a_damaged_caption_hides_no_other_one_of_its_clip(whole, tmp_path, told):
    cache = shutil.copytree(whole / "closed", tmp_path / "cache")
    path = cache / "catalog.sqlite"
    with Catalog(path) as catalog:
        (row,) = catalog.captions.rows()[:1]
        other = {**row, "caption_key": "e" * 64, "model": "another"}
        del other["id"]
        catalog.captions.add([other])
        prefer = Selection(prompts=("default",), prefer=("another", "made-up"))
        altered(cache, "captions", f"caption_key = '{'e' * 64}'", "caption", "what nobody said")
        items = choose_items(path, prefer, Wording(), Look()).items
    texts = {item.caption for item in items}
    assert row["caption"] in texts
    assert "what nobody said" not in texts
    assert told.rows


_RAW = re.compile(rf"(?:FROM|JOIN) (?:main\.)?({'|'.join(table.name for table in TABLES)})\b")
_MAY_READ_TABLES = {
    "catalog.py": 2,  # keys that lead to files, which prove themselves; failures to be deleted
    "earlier_versions.py": 1,  # names of families: which changes are to be looked for
    "foreign.py": 2,  # what a copy is cleansed of
    "forgotten.py": 3,  # whether a number or a key is taken, or a caption is kept
    "integrity.py": 4,  # sums are compared with all rows that there are
    "later_migrations.py": 4,
    "merge_rows.py": 8,  # of a copy that has whole rows alone; whether a row is there
    "migrations.py": 5,
    "rows.py": 2,  # the greatest number
}


def test_rows_are_read_from_views_that_hold_their_checksums():
    found: dict[str, int] = {}
    for path in Path(cogcache.__file__).parent.rglob("*.py"):
        text = re.sub(r"DELETE FROM \w+", "", path.read_text())
        if places := _RAW.findall(text):
            found[path.name] = found.get(path.name, 0) + len(places)
    assert found == _MAY_READ_TABLES
