"""Catalogs and sealed attributes from strangers: left out and counted, or a damaged file."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from caches import key_of, make_cache
from click.testing import CliRunner

from cogcache.catalog import Catalog
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.rebuild import rebuild
from cogcache.catalog.upkeep.verify import verify
from cogcache.catalog.values import misfits
from cogcache.cli import main
from cogcache.errors import CatalogError
from cogcache.store import FeatureStore

DEEP = "[" * 100_000 + "]" * 100_000
POISON = {
    "json_broken": "settings = '{\"a\": '",
    "json_is_a_number": "settings = '7'",
    "json_nan": "settings = '{\"a\": NaN}'",
    "json_deep": f"settings = '{DEEP}'",
    "json_half_a_letter": 'settings = \'{"a": "\\ud800"}\'',
    "flags_are_a_text": "flags = '\"empty\"'",
    "flags_are_numbers": "flags = '[7]'",
    "flags_are_a_blob": "flags = X'5B5D'",
    "caption_is_a_blob": "caption = X'00FF'",
    "caption_is_no_utf8": "caption = CAST(X'FFFE' AS TEXT)",
    "caption_is_endless": f"caption = printf('%.{2**21}c', 'x')",
    "video_is_a_blob": "video = X'2F61'",
    "video_has_a_nul": "video = 'a' || char(0) || 'b'",
    "start_is_a_text": "start_s = 'early'",
    "start_is_endless": "start_s = 9e999",
    "end_is_a_blob": "end_s = X'00'",
    "tokens_are_real": "num_tokens = 1.5",
    "tokens_are_a_text": "num_tokens = 'many'",
    "seconds_are_a_text": "seconds = 'few'",
    "made_at_no_time": "created_at = 'yesterday'",
    "model_is_a_blob": "model = X'41'",
    "key_is_a_path": "feature_key = '../../../etc/passwd'",
    "prompt_is_a_blob": "prompt = X'41'",
}
LISTINGS = (
    ["ls"], ["ls", "clips"], ["ls", "runs"], ["failures"], ["search", "ball"], ["status"],
    ["ls", "--json"], ["ls", "--side-by-side"],
)  # fmt: skip


def poisoned(cache: Path, statements: list[str]) -> None:
    """Write to a catalog past all that cogcache itself sees to; its schema stays as it was."""
    with closing(sqlite3.connect(cache / "catalog.sqlite")) as conn:
        made = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        triggers = conn.execute(made).fetchall()
        for name, _ in triggers:
            conn.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            conn.execute(statement)
        for _, sql in triggers:
            with suppress(sqlite3.OperationalError):  # its table is another by now
                conn.execute(sql)
        conn.commit()


def a_cache(root: Path) -> Path:
    make_cache(root, 1)
    return root / "cache"


def add_captions(cache: Path, count: int) -> None:
    with Catalog(cache / "catalog.sqlite") as catalog:
        clip = catalog.clips.rows()[0]
        row = {name: clip[name] for name in ("feature_key", "video", "start_s", "end_s", "model")}
        row |= {"prompt_name": "default", "prompt": "?", "caption": "A ball.", "flags": []}
        row |= {"quantization": "none", "num_tokens": 2, "seconds": 0.1, "settings": {}}
        catalog.captions.add({**row, "caption_key": f"k{number}"} for number in range(count))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Make a cache with a caption a kind of poison, and one that is good."""
    cache = a_cache(tmp_path_factory.mktemp("theirs"))
    add_captions(cache, len(POISON) + 1)
    changes = enumerate(POISON.values())
    poisoned(cache, [f"UPDATE captions SET {c} WHERE caption_key = 'k{n}'" for n, c in changes])
    return cache


def assert_listed(cache: Path, tmp_path: Path) -> None:
    cache_option = f"--cache={cache}"
    outs = [str(tmp_path / f"out.{form}") for form in ("jsonl", "csv", "txt")]
    commands = [
        *([*words, cache_option] for words in LISTINGS),
        *(["export", out, cache_option] for out in outs),
        ["gallery", str(tmp_path / "out.html"), cache_option],
    ]
    for command in commands:
        done = CliRunner().invoke(main, command)
        assert done.exit_code in (0, 1), (command, done.output)
        assert "Traceback" not in done.output, command


def test_poisoned_rows_are_left_out_of_a_merge_and_counted(source, tmp_path):
    merged = merge([source], tmp_path / "into")
    assert merged.misfits == len(POISON)
    assert merged.captions == 2
    assert f"{len(POISON)} rows left out" in "\n".join(merged.lines())
    assert_listed(tmp_path / "into", tmp_path)


def test_verify_names_poisoned_rows_and_takes_them_out(tmp_path):
    cache = a_cache(tmp_path / "theirs")
    add_captions(cache, len(POISON) + 1)
    changes = [f"UPDATE captions SET {c} WHERE caption_key = 'k{n}'"
               for n, c in enumerate(POISON.values())]  # fmt: skip
    poisoned(cache, changes)
    assert verify(cache)
    rebuild(cache)
    assert verify(cache) == []
    with Catalog(cache / "catalog.sqlite") as catalog:
        assert {row["caption_key"] for row in catalog.captions.rows()} >= {f"k{len(POISON)}"}
        assert len(catalog.captions.rows()) == 2
    assert_listed(cache, tmp_path)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


@pytest.mark.parametrize("table", ["failures", "captions", "runs", "files", "videos", "clips"])
def test_a_view_in_a_tables_place_is_refused(tmp_path, table):
    cache = a_cache(tmp_path / "theirs")
    poisoned(cache, [f"DROP TABLE {table}", f"CREATE VIEW {table} AS {ENDLESS}"])
    with pytest.raises(CatalogError, match=f"its {table}"):
        merge([cache], tmp_path / "into")
    done = CliRunner().invoke(main, ["failures", f"--cache={cache}"])
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_a_column_that_is_computed_is_refused(tmp_path):
    cache = a_cache(tmp_path / "theirs")
    poisoned(cache, ["ALTER TABLE captions ADD COLUMN more AS (hex(zeroblob(1000000)))"])
    with pytest.raises(CatalogError, match="its captions"):
        merge([cache], tmp_path / "into")


def test_a_trigger_of_theirs_does_not_act_in_a_merge(tmp_path):
    cache = a_cache(tmp_path / "theirs")
    add_captions(cache, 1)
    act = "INSERT INTO memory (name, value) VALUES ('a', '{}')"
    act = f"CREATE TRIGGER more AFTER DELETE ON captions BEGIN {act}; END"
    poisoned(cache, [act, "UPDATE captions SET flags = '7'"])
    merge([cache], tmp_path / "into")
    with Catalog(tmp_path / "into" / "catalog.sqlite") as catalog:
        assert catalog.files.recall("a") is None


ODD = {
    "no_video": {"video": None},
    "video_number": {"video": 7},
    "video_list": {"video": ["a"]},
    "video_nul": {"video": "json:" + json.dumps("a\0b")},
    "digest_list": {"video_digest": [1.5]},
    "digest_none": {"video_digest": None},
    "times_number": {"timestamps_s": 7},
    "times_text": {"timestamps_s": "early"},
    "times_none": {"timestamps_s": None},
    "start_text": {"start_s": "early"},
    "start_none": {"start_s": None},
    "start_list": {"start_s": [0.0, 1.0]},
    "end_text": {"end_s": "late"},
    "end_huge": {"end_s": 10**400},
    "duration_mapping": {"duration_s": {"a": 1}},
    "fps_text": {"fps": "fast"},
    "width_huge": {"width": 2**64},
    "frames_negative": {"total_num_frames": -1},
    "family_list": {"family": ["a"]},
    "model_none": {"model": None},
    "decoder_number": {"decoder": 7},
    "codec_list": {"codec": [1]},
    "sampling_text": {"sampling": "all"},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_sealed_attributes_are_a_damaged_file(tmp_path, name):
    import torch

    cache = a_cache(tmp_path / "theirs")
    store = FeatureStore.open(cache)
    (first,) = store.keys()
    told = store.describe(first)
    key = key_of("d" * 64)
    odd = ODD[name]
    store.write(key.digest, {"video": torch.zeros(3)}, {**told, **odd})
    assert [each.problem for each in verify(cache) if each.feature_key == key.digest]
    assert rebuild(cache).left_out in (0, 1)
    into = tmp_path / "into"
    merge([cache], into)
    for folder in (cache, into):
        done = CliRunner().invoke(main, ["ls", "clips", f"--cache={folder}"])
        assert done.exit_code == 0, done.output


def test_what_cogcache_writes_fits(source):
    with Catalog(source / "catalog.sqlite") as catalog:
        for row in catalog.clips.rows():
            assert misfits("clips", {**row, "settings": json.dumps(row["settings"])}) == []
