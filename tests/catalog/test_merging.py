"""Caches merge to what one run would have made, once or twice, whole or begun again."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.merge_rows import snapshot
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.verify import verify
from cogcache.cli import main
from cogcache.errors import CogcacheError
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore
from tests.support.caches import AS_VERSION_7, caption_of, make_cache

GIVEN = {"max_frames": 2, "max_new_tokens": 4, "quantization": "none", "decode_workers": 1}
OF_THE_RUN = {"id", "run", "created_at", "seconds", "first_at", "last_at"}


def content(cache: Path) -> dict[str, list[dict[str, object]]]:
    """All rows but what tells when and by which run they were made."""
    with Catalog(cache / "catalog.sqlite") as catalog:
        tables = {
            "videos": catalog.files.videos(),
            "clips": catalog.clips.rows(),
            "captions": catalog.captions.rows(),
            "failures": catalog.failures.rows(),
        }
    return {
        name: sorted(
            ({k: v for k, v in row.items() if k not in OF_THE_RUN} for row in rows), key=repr
        )
        for name, rows in tables.items()
    }


def dump(cache: Path) -> list[str]:
    with sqlite3.connect(cache / "catalog.sqlite") as conn:
        return [line for line in conn.iterdump() if "sqlite_sequence" not in line]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Caches of one run and of two shards; a video is bad, one has no bytes, one is there twice."""
    root = tmp_path_factory.mktemp("made")
    videos = root / "videos"
    videos.mkdir()
    for number in range(5):
        write_clip(draw_scene(np.random.default_rng(number), 4), videos / f"{number}.mp4")
    shutil.copy(videos / "0.mp4", videos / "again.mp4")
    (videos / "bad.mp4").write_bytes(b"no video")
    (videos / "empty.mp4").write_bytes(b"")
    for name, shard in (("whole", ""), ("one", "1/2"), ("two", "2/2")):
        settings = load_settings(None, {**GIVEN, "shard": shard})
        extract([videos], root / name, settings)
        caption(root / name, settings)
    merge([root / "one", root / "two"], root / "merged")
    return root


def test_shards_merge_to_what_one_run_makes(made):
    assert content(made / "merged") == content(made / "whole")


def test_the_features_are_those_of_one_run_byte_for_byte(made):
    stores = [FeatureStore.open(made / name) for name in ("merged", "whole")]
    assert stores[0].present() == stores[1].present()
    for key in stores[0].present():
        assert stores[0].path_of(key).read_bytes() == stores[1].path_of(key).read_bytes()


def test_a_merged_cache_verifies(made):
    assert verify(made / "merged") == []


def test_rows_name_the_runs_that_made_them(made):
    with Catalog(made / "merged/catalog.sqlite") as catalog:
        shard_of = {row["run"]: row["report"]["shard"] for row in catalog.runs.rows()}
        of_caption = {row["caption_key"]: shard_of[row["run"]] for row in catalog.captions.rows()}
    for name, shard in (("one", "1/2"), ("two", "2/2")):
        with Catalog(made / name / "catalog.sqlite") as catalog:
            for row in catalog.captions.rows():
                assert of_caption[row["caption_key"]] == shard


def test_merging_twice_changes_nothing(made, tmp_path):
    shutil.copytree(made / "merged", tmp_path / "merged")
    before = dump(tmp_path / "merged")
    again = merge([made / "two", made / "one"], tmp_path / "merged")
    assert dump(tmp_path / "merged") == before
    assert (again.files, again.clips, again.captions, again.runs) == (0, 0, 0, 0)


def test_the_order_of_the_sources_does_not_matter(made, tmp_path):
    merge([made / "two", made / "one"], tmp_path / "merged")
    assert content(tmp_path / "merged") == content(made / "merged")


def test_sources_are_left_as_they_are(made, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(made / "one", source)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    merge([source], tmp_path / "merged")
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_a_merged_cache_is_gone_on_from(made, tmp_path):
    shutil.copytree(made / "merged", tmp_path / "merged")
    settings = load_settings(None, GIVEN)
    report = extract([made / "videos"], tmp_path / "merged", settings)
    assert (report.counts.done, report.counts.cached) == (0, 5)
    assert caption(tmp_path / "merged", settings).counts.done == 0


def copy_of(cache: Path, name: str) -> Path:
    other = cache.parent / name
    shutil.copytree(cache, other)
    return other


def change(cache: Path, sql: str) -> None:
    with closing(CatalogFile(cache / "catalog.sqlite")) as file, file.transaction() as conn:
        conn.execute(sql)


def change_as_others_do(cache: Path, *statements: str) -> None:
    """Change a catalog without checksums."""
    with closing(sqlite3.connect(cache / "catalog.sqlite")) as conn, conn:
        for statement in statements:
            conn.execute(statement)


def test_merge_and_gc_list_the_times_that_a_player_shows(tmp_path):
    make_cache(tmp_path, 2)
    cache = tmp_path / "cache"
    change(cache, "UPDATE videos SET offset_s = 2.5")
    other = copy_of(cache, "other")
    change(other, "UPDATE captions SET caption = 'another' WHERE video LIKE '%/0.mp4'")
    merged = CliRunner().invoke(main, ["merge", str(other), "--into", str(cache)])
    assert re.search(r"\b2\.5\b", merged.stdout)  # as a row or as a record, by the paths' lengths
    for video in tmp_path.glob("*.mp4"):
        video.unlink()
    unused = CliRunner().invoke(main, ["gc", "--cache", str(cache)])
    assert len(re.findall(r"\b2\.5\b", unused.stdout)) == 2


@pytest.mark.parametrize("order", [1, -1])
def test_of_captions_that_differ_the_first_is_kept_and_the_other_listed(tmp_path, order):
    make_cache(tmp_path, 2)
    early, late = tmp_path / "cache", copy_of(tmp_path / "cache", "late")
    change(early, "UPDATE captions SET created_at = '2026-01-01T00:00:00+00:00'")
    change(late, "UPDATE captions SET caption = 'another' WHERE video LIKE '%/0.mp4'")
    sources = [early, late][::order]
    merged = merge(sources, tmp_path / "merged")
    ((video, kept, dropped),) = [(c.video, c.kept, c.dropped) for c in merged.conflicts]
    assert Path(video).name == "0.mp4"
    assert (kept, dropped) == (f"What is seen in {video}", "another")
    assert content(tmp_path / "merged") == content(early)
    shown = CliRunner().invoke(
        main, ["merge", *map(str, sources), "--into", str(tmp_path / "merged")]
    )
    assert shown.exit_code == 0
    assert "1 captions differed" in shown.output


def test_a_failure_is_cleared_where_another_made_the_clip_and_kept_where_none_did(tmp_path):
    keys = make_cache(tmp_path, 1)
    other = copy_of(tmp_path / "cache", "other")
    with Catalog(other / "catalog.sqlite") as catalog:
        catalog.clips.remove(keys)
        failure = {"start_s": 0.0, "end_s": None, "stage": "extract", "message": ""}
        made = str(tmp_path / "0.mp4")
        catalog.failures.add(
            {**failure, "video": made, "feature_key": keys[0], "reason": "timeout"}
        )
        catalog.failures.add(
            {**failure, "video": "b", "feature_key": "b" * 64, "reason": "timeout"}
        )
    FeatureStore.open(other).remove(keys[0])
    merge([other, tmp_path / "cache"], tmp_path / "merged")
    assert [row["video"] for row in content(tmp_path / "merged")["failures"]] == ["b"]
    merge([other], tmp_path / "merged")
    assert [row["tries"] for row in content(tmp_path / "merged")["failures"]] == [1]


def test_a_damaged_feature_file_is_not_taken(tmp_path):
    keys = make_cache(tmp_path, 2)
    path = FeatureStore.open(tmp_path / "cache").path_of(keys[0])
    path.write_bytes(path.read_bytes()[:-100])
    merged = merge([tmp_path / "cache"], tmp_path / "merged")
    assert merged.damaged == [path]
    assert verify(tmp_path / "merged") == []
    assert FeatureStore.open(tmp_path / "merged").present() == {keys[1]}


def test_a_clip_that_was_sealed_and_not_listed_is_entered(tmp_path):
    keys = make_cache(tmp_path, 2)
    before = content(tmp_path / "cache")["clips"]
    with Catalog(tmp_path / "cache/catalog.sqlite") as catalog:
        catalog.clips.remove([keys[1]])
    merged = merge([tmp_path / "cache"], tmp_path / "merged")
    assert merged.adopted == 1
    assert content(tmp_path / "merged")["clips"] == before


def test_captions_outlive_features_that_are_not_there(tmp_path):
    make_cache(tmp_path, 2)
    with snapshot(tmp_path / "cache/catalog.sqlite") as copy:
        merged = merge([copy], tmp_path / "merged")
    assert (merged.clips, merged.left_out, merged.captions) == (0, 2, 2)
    assert verify(tmp_path / "merged") == []


def test_catalogs_of_an_older_version_are_taken_and_stay_so(tmp_path):
    make_cache(tmp_path, 1)
    with Catalog(tmp_path / "cache/catalog.sqlite") as catalog:
        catalog.runs.start("extract", "made-up", {})
    change_as_others_do(
        tmp_path / "cache",
        "DROP INDEX runs_uid",
        "ALTER TABLE runs DROP COLUMN uid",
        *AS_VERSION_7,
        "DROP INDEX captions_video_digest",
        "DROP INDEX files_digest",
        "ALTER TABLE captions DROP COLUMN video_digest",
        "ALTER TABLE failures DROP COLUMN video_digest",
        "ALTER TABLE videos DROP COLUMN offset_s",
        "DELETE FROM _sqlite_migrations WHERE name >= '0005'",
        "PRAGMA user_version = 4",
    )
    for _ in range(2):
        merge([tmp_path / "cache"], tmp_path / "merged")
    with Catalog(tmp_path / "merged/catalog.sqlite") as catalog:
        assert len(catalog.runs.rows()) == 1
    conn = sqlite3.connect(tmp_path / "cache/catalog.sqlite")
    assert conn.execute("PRAGMA user_version").fetchone() == (4,)
    conn.close()


def test_a_catalog_in_use_is_merged_as_it_is_at_the_moment(tmp_path):
    make_cache(tmp_path, 2)
    with Catalog(tmp_path / "cache/catalog.sqlite") as catalog:
        (clip, _) = catalog.clips.rows()
        catalog.captions.add([{**caption_of(clip), "caption_key": "c" * 64}])
        merge([tmp_path / "cache"], tmp_path / "merged")
    assert len(content(tmp_path / "merged")["captions"]) == 3


@pytest.mark.parametrize("moment", [0.02, 0.1, 0.3])
def test_a_merge_that_was_killed_is_gone_on_with(tmp_path, moment):
    make_cache(tmp_path, 40)
    program = (
        "import sys; from pathlib import Path; from cogcache.catalog.upkeep.merge import merge\n"
        "print('ready', flush=True); merge([Path(sys.argv[1])], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, tmp_path / "cache", tmp_path / "merged"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child.stdout.readline()
    time.sleep(moment)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    merge([tmp_path / "cache"], tmp_path / "merged")
    assert content(tmp_path / "merged") == content(tmp_path / "cache")
    FeatureStore.open(tmp_path / "merged").remove_unfinished()
    assert verify(tmp_path / "merged") == []


@pytest.mark.parametrize("what", ["itself", "no cache", "no catalog", "nothing"])
def test_what_cannot_be_merged_is_refused_with_what_to_do(tmp_path, what):
    make_cache(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no catalog, and long enough to be taken for a file of pages")
    sources = {
        "itself": [tmp_path / "cache"],
        "no cache": [tmp_path / "empty"],
        "no catalog": [tmp_path / "text"],
        "nothing": [],
    }
    with pytest.raises(CogcacheError) as caught:
        merge(sources[what], tmp_path / "cache")
    assert caught.value.hint
