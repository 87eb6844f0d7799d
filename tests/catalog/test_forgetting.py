"""Captions that are deleted are listed first, kept for thirty days, and come back as they were."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cogcache.catalog.backup import back_up
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.search.full_text import CaptionSearch
from cogcache.catalog.search.selection import Selection
from cogcache.catalog.upkeep.forgotten import forget, kept_captions, take_back
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.rebuild import rebuild
from cogcache.catalog.upkeep.unused import collect
from cogcache.catalog.upkeep.verify import verify
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.export.importing import import_captions
from tests.support.caches import caption_of, make_cache

COLOURS = Selection(prompts=("color",))


@pytest.fixture
def cache(tmp_path) -> Path:
    """Three clips, each with a caption of the prompt `default` and one of `color`."""
    make_cache(tmp_path)
    with Catalog(tmp_path / "cache/catalog.sqlite") as catalog:
        catalog.captions.add(
            {**caption_of(clip), "caption_key": f"{n:064x}", "prompt_name": "color",
             "caption": f"turquoise {n}"}
            for n, clip in enumerate(catalog.clips.rows())
        )  # fmt: skip
    return tmp_path / "cache"


def path_of(cache: Path) -> Path:
    return cache / "catalog.sqlite"


def captions(cache: Path) -> list[dict[str, Any]]:
    with Catalog(path_of(cache)) as catalog:
        return sorted((dict(row) for row in catalog.captions.rows()), key=lambda row: row["id"])


def told(cache: Path) -> set[str]:
    return {row["caption"] for row in captions(cache)}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def kept_texts(cache: Path) -> set[str]:
    return {row["caption"] for row in kept_captions(path_of(cache), Selection()).captions}


def test_captions_are_listed_and_stay_until_yes_is_said(cache):
    before = captions(cache)
    listed = run("forget", "--cache", cache, "--prompt-name", "color", "--json")
    assert {row["caption"] for row in json.loads(listed.stdout)} == {
        "turquoise 0", "turquoise 1", "turquoise 2"
    }  # fmt: skip
    shown = run("forget", "--cache", cache, "--prompt-name", "color")
    assert "3 captions: --yes deletes them" in shown.stdout
    assert captions(cache) == before


def test_scores_come_back_with_their_caption_and_not_with_another_of_its_key(cache):
    with Catalog(path_of(cache)) as catalog:
        keys = [row["caption_key"] for row in catalog.captions.rows(prompt_name="color")]
        score = {"name": "swap", "feature_key": "", "score": 0.25, "model": "m", "prompt": "p",
                 "epoch": 1, "details": {"others": 2}}  # fmt: skip
        catalog.scores.add([{**score, "caption_key": key} for key in keys])
        before = catalog.scores.rows()
    forget(path_of(cache), COLOURS, remove=True)
    with Catalog(path_of(cache)) as catalog:
        assert catalog.scores.rows() == []
    assert len(take_back(path_of(cache), Selection()).captions) == 3
    with Catalog(path_of(cache)) as catalog:
        assert catalog.scores.rows() == before
    assert verify(cache) == []
    forget(path_of(cache), COLOURS, remove=True)
    with closing(CatalogFile(path_of(cache))) as file:
        file.write("UPDATE forgotten SET forgotten_at = '2020-01-01'", {})
    collect(cache, remove=True)
    with closing(CatalogFile(path_of(cache))) as file:
        assert not file.query("SELECT 1 FROM memory WHERE name LIKE 'scores of%'")


def test_deleted_captions_are_in_no_listing_search_or_sum_and_come_back_as_they_were(cache):
    before = captions(cache)
    done = run("forget", "--cache", cache, "--prompt-name", "color", "--yes")
    assert "3 captions: deleted" in done.stdout
    assert {row["prompt_name"] for row in captions(cache)} == {"default"}
    with CaptionSearch(path_of(cache)) as index:
        assert not index.search("turquoise").hits
    assert verify(cache) == []
    with closing(CatalogFile(path_of(cache), derived=True)) as file:
        assert file.query("SELECT sum(captions) FROM caption_totals")[0][0] == 3
    back = run("forget", "--cache", cache, "--undo")
    assert "3 captions: taken back" in back.stdout
    assert captions(cache) == before
    assert kept_texts(cache) == set()
    with CaptionSearch(path_of(cache)) as index:
        assert len(index.search("turquoise").hits) == 3
    assert verify(cache) == []


def test_without_a_filter_nothing_is_forgotten(cache):
    done = run("forget", "--cache", cache, "--yes")
    assert done.exit_code == 2
    assert "not said which captions" in done.stderr
    with pytest.raises(ConfigError, match="not said which"):
        forget(path_of(cache), Selection(), remove=True)
    assert len(captions(cache)) == 6


def test_a_caption_of_later_stays_the_newer_one(cache):
    forget(path_of(cache), Selection(prompts=("color",)), remove=True)
    with Catalog(path_of(cache)) as catalog:
        catalog.captions.add(
            {**caption_of(clip), "caption_key": f"{n + 9:064x}", "prompt_name": "color",
             "caption": f"cyan {n}"}
            for n, clip in enumerate(catalog.clips.rows())
        )  # fmt: skip
    take_back(path_of(cache), Selection())
    ordered = [row["caption"] for row in captions(cache) if row["prompt_name"] == "color"]
    assert ordered == [f"{colour} {n}" for colour in ("turquoise", "cyan") for n in range(3)]


def test_a_caption_that_was_made_again_stays_as_it_is(cache):
    forget(path_of(cache), COLOURS, remove=True)
    with Catalog(path_of(cache)) as catalog:
        (clip, *_) = catalog.clips.rows()
        row = {**caption_of(clip), "caption_key": f"{0:064x}", "caption": "made again"}
        catalog.captions.add([row])
    back = take_back(path_of(cache), Selection())
    assert (len(back.captions), back.still_there) == (2, 1)
    assert "made again" in told(cache)
    assert kept_texts(cache) == {"turquoise 0"}


def test_undo_takes_back_what_was_deleted_last_or_what_passes_the_filters(cache):
    forget(path_of(cache), COLOURS, remove=True)
    forget(path_of(cache), Selection(prompts=("default",)), remove=True)
    take_back(path_of(cache), Selection())
    assert {row["prompt_name"] for row in captions(cache)} == {"default"}
    take_back(path_of(cache), COLOURS)
    assert len(captions(cache)) == 6


def test_thirty_days_later_they_are_gone(cache):
    forget(path_of(cache), Selection(prompts=("color",)), remove=True)
    ago = (datetime.now(UTC) - timedelta(days=30, seconds=9)).isoformat(timespec="microseconds")
    with closing(CatalogFile(path_of(cache))) as file:
        file.write("UPDATE forgotten SET forgotten_at = :ago WHERE caption LIKE '%1'", {"ago": ago})
    collect(cache, remove=True)
    assert kept_texts(cache) == {"turquoise 0", "turquoise 2"}


def test_rebuild_keeps_them_out_of_a_damaged_catalog(cache):
    before = captions(cache)
    forget(path_of(cache), COLOURS, remove=True)
    rebuild(cache)
    assert len(captions(cache)) == 3
    take_back(path_of(cache), Selection())
    assert captions(cache) == before
    assert verify(cache) == []


def test_a_deleted_caption_whose_row_is_damaged_does_not_come_back(cache):
    forget(path_of(cache), COLOURS, remove=True)
    with closing(sqlite3.connect(path_of(cache))) as conn, conn:
        conn.execute("UPDATE forgotten SET caption = 'another' WHERE caption = 'turquoise 1'")
    assert len(take_back(path_of(cache), Selection()).captions) == 2
    assert not {"another", "turquoise 1"} & told(cache)


def test_merge_takes_them_over_and_forgets_nothing_of_its_own(cache, tmp_path):
    forget(path_of(cache), COLOURS, remove=True)
    for _ in range(2):
        merge([cache], tmp_path / "merged")
    assert len(captions(tmp_path / "merged")) == 3
    assert len(take_back(path_of(tmp_path / "merged"), Selection()).captions) == 3
    assert verify(tmp_path / "merged") == []


def test_export_and_import_leave_them_where_they_are(cache, tmp_path):
    forget(path_of(cache), COLOURS, remove=True)
    rows = tmp_path / "rows.jsonl"
    assert run("export", rows, "--cache", cache).exit_code == 0
    assert "turquoise" not in rows.read_text()
    import_captions(rows, path_of(cache), "edited")
    assert kept_texts(cache) == {"turquoise 0", "turquoise 1", "turquoise 2"}
    forgotten = forget(path_of(cache), Selection(models=("edited",)), remove=True)
    assert len(forgotten.captions) == 3
    assert len(take_back(path_of(cache), Selection()).captions) == 3


@pytest.mark.parametrize("backed_up", [False, True], ids=["no backup", "a backup gives way"])
def test_on_a_full_disk_they_are_listed_and_none_is_lost(cache, tmp_path, backed_up):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs leave to mount a disk")
    try:
        shutil.copytree(cache, disk / "cache")
        if backed_up:
            back_up(disk / "cache/catalog.sqlite")
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        how = ("forget", "--cache", disk / "cache", "--prompt-name", "color")
        assert "3 captions" in run(*how).stdout
        done = run(*how, "--yes")
        assert done.exit_code == 0 if backed_up else done.exit_code in (0, 2), done.stderr
        assert "Traceback" not in done.stderr
        (disk / "filler").unlink()
        there = told(disk / "cache") | kept_texts(disk / "cache")
        assert there == told(cache)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_deleted_caption_stays_deleted_where_the_backup_still_has_it(cache):
    back_up(path_of(cache))
    forget(path_of(cache), COLOURS, remove=True)
    rebuild(cache, from_backup=True)
    assert not any(text.startswith("turquoise") for text in told(cache))
    assert len(kept_captions(path_of(cache), COLOURS).captions) == 3


def test_nothing_of_a_deleted_row_stays_in_the_file(cache):
    with closing(CatalogFile(path_of(cache))) as file, file.transaction() as conn:
        conn.execute("DELETE FROM captions WHERE prompt_name = 'color'")
    assert b"turquoise 1" not in path_of(cache).read_bytes()
