from __future__ import annotations

import json
import re
import sqlite3
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cogcache.catalog import migrations
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search import queries
from cogcache.catalog.search.full_text import MAX_RANKED, CaptionSearch
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.store.store import FeatureStore

ENGLISH = "A red fox trots over fresh snow while the camera follows from the left."
CHINESE = "一辆红色的汽车 drives 在街上行驶。"


def caption(number: int, text: str, **other: object) -> dict[str, object]:
    return {
        "caption_key": f"{number:064x}",
        "feature_key": f"{number:064x}",
        "video": f"/films/a/{number}.mp4",
        "start_s": 0.0,
        "end_s": 10.0,
        "prompt_name": "default",
        "prompt": "Describe.",
        "caption": text,
        "model": "tiny",
        "quantization": "nf4",
        "flags": [],
        "num_tokens": 9,
        "seconds": 0.5,
        "settings": {},
        "created_at": "2026-03-05T10:00:00+00:00",
        **other,
    }


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    FeatureStore.create_or_open(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def found(cache):
    """Return a function that fills the catalog, searches, and returns the captions found."""

    def search(query: str, *texts: str | dict[str, object], **filters: object) -> list[str]:
        rows = [caption(n, t) if isinstance(t, str) else t for n, t in enumerate(texts, 1)]
        with Catalog(cache / "catalog.sqlite") as catalog:
            catalog.captions.add(rows)
        with CaptionSearch(cache / "catalog.sqlite") as index:
            return [h.caption["caption"] for h in index.search(query, Selection(**filters)).hits]

    return search


@pytest.mark.parametrize(
    "query",
    ["fox", "FOX snow", '"red fox"', "trot*", "cat OR fox", "fox -cat", '"fresh snow" fox', "fox,"],
)
def test_these_find_the_fox(found, query):
    assert found(query, ENGLISH, "A dog sleeps.") == [ENGLISH]


@pytest.mark.parametrize("query", ["wolf", "fox cat", '"fox red"', "fox -snow", '"red fo"'])
def test_these_do_not(found, query):
    assert found(query, ENGLISH) == []


@pytest.mark.parametrize("query", ["moves", "Move", "square", "boxes box", '"squares move"'])
def test_a_word_is_found_with_and_without_its_s(found, query):
    assert found(query, "Three squares move by a box.", "A dog sleeps.") != []


@pytest.mark.parametrize("query", ['"moves"', "fox -square", "mov", "run"])
def test_other_forms_are_not_and_quoted_and_excluded_words_are_exact(found, query):
    text = "Three squares move, running by a fox."
    assert found(query, text) == ([text] if "-square" in query else [])


@pytest.mark.parametrize(
    "query", ["辆", "红色", "汽车", "红色的汽车", "街 汽车", "红色 drives", "红色*"]
)
def test_chinese_words_of_any_length_are_found(found, query):
    assert found(query, CHINESE, ENGLISH, "红旗是彩色的") == [CHINESE]


@pytest.mark.parametrize("query", ["色红", "红车", "蓝色", "红色 -汽车"])
def test_chinese_letters_apart_are_no_word(found, query):
    assert found(query, CHINESE) == []


@pytest.mark.parametrize(
    ("text", "query"),
    [("赤いボールが転がる", "ボール"), ("ผู้หญิงเดินอยู่บนถนน", "เดิน"), ("ผู้หญิงเดินอยู่บนถนน", "ผู้หญิง")],
)
def test_other_scripts_without_blanks_are_found(found, text, query):
    assert found(query, text, ENGLISH) == [text]


def test_alternatives_of_two_scripts_find_both(found):
    assert set(found("fox OR 汽车", ENGLISH, CHINESE)) == {ENGLISH, CHINESE}


@pytest.mark.parametrize(
    "query",
    ['fox"', '"fox', "fox (", "fox ^ snow", "caption:fox", "NEAR(fox snow)", "fox + snow", "fox\0",
     "fox AND", "OR fox", "'fox'; DROP TABLE captions", "{fox}", "fox*snow", "\\fox", "fox\udc80"],
)  # fmt: skip
def test_syntax_of_the_index_is_never_run(found, query):
    found(query, ENGLISH)


@pytest.mark.parametrize(
    ("query", "message"),
    [("", "nothing to look for"), ("!!! ...", "nothing to look for"), ("-fox", "what not to find"),
     ("fo*", "too short"), ("x" * 2000, "2000 letters"), ("a " * 100, "100 words")],
)  # fmt: skip
def test_a_query_that_asks_nothing_says_what_to_type(found, query, message):
    with pytest.raises(ConfigError, match=message):
        found(query, ENGLISH)


def test_the_caption_that_says_it_most_densely_is_first(found):
    dense, thin = "A fox and a fox.", "A fox " + "and a tree " * 20
    assert found("fox", thin, dense) == [dense, thin]


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({"folders": (Path("/films/a"),)}, True),
        ({"folders": (Path("/films"),)}, True),
        ({"folders": (Path("/films/a/1.mp4"),)}, True),
        ({"folders": (Path("/film"),)}, False),
        ({"folders": (Path("/films/b"), Path("/films/a"))}, True),
        ({"prompts": ("default", "other")}, True),
        ({"prompts": ("other",)}, False),
        ({"models": ("tiny",)}, True),
        ({"models": ("large",)}, False),
        ({"since": "2026-03-05", "until": "2026-03-05"}, True),
        ({"since": "2026-03-06"}, False),
        ({"until": "2026-03-04"}, False),
        ({"min_duration_s": 10.0, "max_duration_s": 10.0}, True),
        ({"min_duration_s": 10.5}, False),
        ({"max_duration_s": 9.0}, False),
        ({"flags": ("no_end",)}, True),
        ({"flags": ("empty",)}, False),
        ({"no_flags": True}, False),
    ],
)
def test_filters_hold_back_what_does_not_pass(found, filters, passes):
    row = caption(1, ENGLISH, flags=["no_end", "looping"])
    assert found("fox", row, **filters) == [ENGLISH] * passes


@pytest.mark.parametrize(
    "filters",
    [{"since": "yesterday"}, {"since": "20260305"}, {"since": "2026-02-01", "until": "2026-01-01"},
     {"flags": ("empty",), "no_flags": True}],
)  # fmt: skip
def test_filters_that_make_no_sense_are_refused(filters):
    with pytest.raises(ConfigError):
        Selection(**filters)


def test_a_clip_to_the_end_of_its_video_has_the_videos_rest_as_duration(cache):
    video = dict.fromkeys(("fps", "width", "height", "total_num_frames", "codec"))
    video |= {"digest": "11" * 32, "path": "/films/a/1.mp4", "duration_s": 30.0, "size_bytes": 1}
    clip = {"feature_key": f"{1:064x}", "video_digest": "11" * 32, "video": "/films/a/1.mp4"}
    clip |= {"start_s": 20.0, "end_s": None, "family": "f", "model": "m", "num_frames": 1}
    clip |= {"size_bytes": 1, "decoder": "d", "settings": {}}
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.files.add_videos([video])
        catalog.clips.add([clip])
        catalog.captions.add([caption(1, ENGLISH, start_s=20.0, end_s=None)])
    with CaptionSearch(cache / "catalog.sqlite") as index:
        for shortest, hits in ((9.0, 1), (11.0, 0)):
            assert index.search("fox", Selection(min_duration_s=shortest)).num_ranked == hits


def test_snippets_mark_what_was_found(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.captions.add([caption(1, ENGLISH), caption(2, CHINESE)])
    with CaptionSearch(cache / "catalog.sqlite") as index:
        assert "A [red fox] trots" in index.search('"red fox"').hits[0].snippet
        marked = index.search("红色", marks=("<", ">")).hits[0].snippet
    assert marked == CHINESE.replace("红色", "<红色>")


def test_of_too_many_the_newest_are_ranked_and_that_is_said(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.captions.add([caption(n, "A fox.") for n in range(MAX_RANKED + 9)])
    with CaptionSearch(cache / "catalog.sqlite") as index:
        all_, some = (
            index.search("fox"),
            index.search("fox", Selection(folders=(Path("/films/a/7.mp4"),))),
        )
        assert all_.capped
        assert all_.hits[0].caption["video"] == f"/films/a/{MAX_RANKED + 8}.mp4"
        assert (some.num_ranked, some.capped) == (1, False)
        assert index.search("fox", limit=5, offset=5).hits == index.search("fox", limit=10).hits[5:]


def test_changed_and_removed_captions_are_found_as_they_are_now(found, cache):
    found("fox", ENGLISH, CHINESE)
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.captions.add([caption(1, CHINESE), caption(2, ENGLISH)], replace=True)
    assert (found("fox"), found("红色")) == ([ENGLISH], [CHINESE])
    with sqlite3.connect(cache / "catalog.sqlite") as connection:
        connection.execute("DELETE FROM captions")
    connection.close()
    assert (found("fox"), found("红色")) == ([], [])


def test_index_and_queries_set_the_same_letters_apart():
    connection = sqlite3.connect(":memory:")
    letters = [chr(n) for n in range(1, sys.maxunicode + 1) if not 0xD800 <= n < 0xE000]
    connection.execute("CREATE TABLE letters (letter TEXT)")
    connection.executemany("INSERT INTO letters VALUES (?)", [(c,) for c in letters])
    pattern = f"[{migrations.UNSPACED}]"
    rows = connection.execute("SELECT letter FROM letters WHERE letter GLOB ?", [pattern])
    assert {row[0] for row in rows} == {c for c in letters if queries.has_unspaced(c)}
    connection.close()


def test_a_catalog_of_the_first_version_is_indexed_when_opened(found, cache):
    path = cache / "catalog.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    migrations.apply(connection, stop_before="0002_search")
    for row in (caption(1, ENGLISH), caption(2, CHINESE)):
        cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
        names = ", ".join(cells)
        places = ", ".join(f":{name}" for name in cells)
        connection.execute(f"INSERT INTO captions ({names}) VALUES ({places})", cells)
    connection.execute("PRAGMA user_version = 1")
    connection.execute(f"PRAGMA application_id = {0x636F6763}")
    connection.close()
    assert (found("fox"), found("红色")) == ([ENGLISH], [CHINESE])


def test_the_command_prints_rows_with_the_names_of_all_listings(found, cache):
    found("fox", ENGLISH)
    done = CliRunner().invoke(
        main, ["search", "red", "fox", "--cache", str(cache), "--json", "--no-check"]
    )
    (row,) = json.loads(done.stdout)
    assert row["caption"] == ENGLISH
    assert {"video", "start_s", "end_s", "prompt_name", "model", "score", "snippet"} <= {*row}


def test_the_command_shows_a_table_and_takes_filters(found, cache):
    found("fox", ENGLISH)
    arguments = ["search", "fox", "--cache", str(cache), "--in", "/films", "--min-duration", "5"]
    done = CliRunner().invoke(main, [*arguments, "--no-check"])
    assert done.exit_code == 0
    assert re.search(r"\[fox\] trots", " ".join(done.stdout.split()))


def test_a_query_that_cannot_be_is_misuse(found, cache):
    found("fox", ENGLISH)
    done = CliRunner().invoke(main, ["search", "--cache", str(cache), "--", "-fox"])
    assert done.exit_code == 2
    assert "Hint:" in done.stderr
