"""What is wrong in a cache is found, and mended without losing anything."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from caches import key_of, make_cache, write_clip_features
from click.testing import CliRunner
from scenes import settings, write_scene

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.upkeep.rebuild import rebuild
from cogcache.catalog.upkeep.unused import collect
from cogcache.catalog.upkeep.verify import verify
from cogcache.cli import main
from cogcache.errors import CacheError, CatalogError, DamagedCatalogError
from cogcache.stages.extract import extract
from cogcache.store.live import LiveRun, live_runs
from cogcache.store.store import FeatureStore


@pytest.fixture
def keys(tmp_path):
    return make_cache(tmp_path)


@pytest.fixture
def cache(tmp_path, keys):
    return tmp_path / "cache"


def damage(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


def found(cache, *, fix=False):
    return [(each.problem, each.feature_key) for each in verify(cache, fix=fix)]


def clips(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        return {row["feature_key"] for row in catalog.clips.rows()}


def captions(cache):
    with Catalog(cache / "catalog.sqlite") as catalog:
        return [row["caption"] for row in catalog.captions.rows()]


def test_nothing_is_found_in_a_sound_cache(cache):
    assert found(cache) == []


class TestAFlippedBit:
    def test_is_found(self, cache, keys):
        damage(FeatureStore.open(cache).path_of(keys[1]))
        assert found(cache) == [("corrupt", keys[1])]

    def test_changes_nothing_without_fix(self, cache, keys):
        damage(FeatureStore.open(cache).path_of(keys[1]))
        verify(cache)
        assert keys[1] in FeatureStore.open(cache)

    def test_is_moved_to_the_quarantine_with_the_reason(self, cache, keys):
        damage(FeatureStore.open(cache).path_of(keys[1]))
        verify(cache, fix=True)
        assert (cache / "quarantine" / f"{keys[1]}.h5").exists()
        assert "damaged" in (cache / "quarantine" / f"{keys[1]}.txt").read_text()

    def test_is_gone_from_the_catalog_once_fixed_and_its_caption_is_not(self, cache, keys):
        damage(FeatureStore.open(cache).path_of(keys[1]))
        verify(cache, fix=True)
        assert clips(cache) == {keys[0], keys[2]}
        assert len(captions(cache)) == 3
        assert found(cache) == []


def test_a_file_that_is_gone_is_found_and_its_row_forgotten(cache, keys):
    FeatureStore.open(cache).path_of(keys[0]).unlink()
    assert found(cache, fix=True) == [("file_missing", keys[0])]
    assert found(cache) == []


def test_a_folder_in_the_place_of_a_file_does_not_hide_what_else_is_wrong(cache, keys):
    paths = [FeatureStore.open(cache).path_of(key) for key in keys[:2]]
    paths[0].unlink()
    paths[0].mkdir()
    damage(paths[1])
    assert sorted(found(cache)) == [("corrupt", keys[1]), ("file_missing", keys[0])]


def test_a_file_that_the_catalog_lacks_is_found_and_listed_again(cache, keys):
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.clips.remove([keys[2]])
    assert found(cache, fix=True) == [("not_in_catalog", keys[2])]
    assert clips(cache) == set(keys)


@pytest.mark.parametrize(
    "change", ["num_frames = 99", "start_s = 3.5", "settings = '{}'", "family = 'other'"]
)
def test_a_row_that_says_otherwise_than_its_file_is_found_and_corrected(cache, keys, change):
    with closing(CatalogFile(cache / "catalog.sqlite")) as file, file.transaction() as conn:
        conn.execute(f"UPDATE clips SET {change} WHERE feature_key = ?", [keys[0]])
    assert found(cache, fix=True) == [("row_differs", keys[0])]
    assert found(cache) == []


def test_features_under_the_name_of_others_are_found(cache, keys):
    store = FeatureStore.open(cache)
    shutil.copy(store.path_of(keys[0]), store.path_of(keys[1]))
    assert found(cache) == [("corrupt", keys[1])]


def test_features_of_another_key_than_their_fields_give_are_found(cache, keys, tmp_path):
    class Other:
        digest = "ab" * 32

        def fields(self):
            return key_of("cd" * 32).fields()

    store = FeatureStore.open(cache)
    write_clip_features(store, tmp_path / "0.mp4", Other())
    assert found(cache, fix=True) == [("wrong_key", Other.digest)]
    assert Other.digest not in store


def test_a_file_that_does_not_belong_is_named_and_left(cache):
    stranger = cache / "features" / "ab" / "notes.txt"
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("mine")
    assert [each.path for each in verify(cache, fix=True)] == [stranger]
    assert stranger.exists()


def test_a_damaged_catalog_is_found(cache):
    path = cache / "catalog.sqlite"
    path.write_bytes(path.read_bytes()[:8192] + b"\xff" * 4096 + path.read_bytes()[12288:])
    assert {problem for problem, _ in found(cache)} == {"catalog_damaged"}


def test_an_error_from_a_damaged_catalog_names_the_command_that_makes_it_anew(cache):
    (cache / "catalog.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(DamagedCatalogError) as raised:
        Catalog(cache / "catalog.sqlite")
    assert "cogcache rebuild" in raised.value.hint


def test_a_catalog_of_a_newer_version_is_not_called_damaged(cache):
    with sqlite3.connect(cache / "catalog.sqlite") as conn:
        conn.execute("PRAGMA user_version = 9999")
    conn.close()
    with pytest.raises(CatalogError, match="of version 9999"):
        verify(cache, fix=True)


def test_a_catalog_that_is_none_at_all_is_found(cache):
    (cache / "catalog.sqlite").write_bytes(b"nothing" * 1000)
    assert found(cache) == [("catalog_damaged", None)]


class TestTheCommandVerify:
    def verify(self, cache, *options):
        return CliRunner().invoke(main, ["verify", "--cache", str(cache), *options])

    def test_ends_with_0_where_all_is_well(self, cache):
        assert self.verify(cache).exit_code == 0

    def test_ends_with_1_where_something_is_wrong(self, cache, keys):
        FeatureStore.open(cache).path_of(keys[0]).unlink()
        assert self.verify(cache).exit_code == 1

    def test_ends_with_0_once_it_is_mended(self, cache, keys):
        FeatureStore.open(cache).path_of(keys[0]).unlink()
        assert self.verify(cache, "--fix").exit_code == 0

    def test_prints_json(self, cache, keys):
        FeatureStore.open(cache).path_of(keys[0]).unlink()
        (row,) = json.loads(self.verify(cache, "--json").output)
        assert (row["problem"], row["fixed"]) == ("file_missing", False)


class TestGc:
    def test_lists_nothing_while_all_videos_are_there(self, cache):
        assert collect(cache) == []

    def test_lists_the_clips_of_a_video_that_is_gone(self, cache, keys, tmp_path):
        (tmp_path / "1.mp4").unlink()
        assert [each.feature_key for each in collect(cache)] == [keys[1]]

    def test_lists_the_clips_of_a_video_that_has_changed(self, cache, keys, tmp_path):
        (tmp_path / "1.mp4").write_bytes(b"another video")
        assert [each.feature_key for each in collect(cache)] == [keys[1]]

    def test_keeps_the_clips_of_a_video_of_which_a_copy_was_seen(self, cache, tmp_path):
        shutil.move(tmp_path / "1.mp4", tmp_path / "moved.mp4")
        with Catalog(cache / "catalog.sqlite") as catalog:
            catalog.files.digest_of(tmp_path / "moved.mp4")
        assert collect(cache) == []

    @pytest.mark.parametrize("options", [[], ["--dry-run"], ["--dry-run", "--yes"]])
    def test_deletes_nothing_without_yes(self, cache, keys, tmp_path, options):
        (tmp_path / "1.mp4").unlink()
        done = CliRunner().invoke(main, ["gc", "--cache", str(cache), *options])
        assert "1.mp4" in done.output
        assert keys[1] in FeatureStore.open(cache)

    def test_deletes_features_and_row_with_yes_and_keeps_the_caption(self, cache, keys, tmp_path):
        (tmp_path / "1.mp4").unlink()
        CliRunner().invoke(main, ["gc", "--cache", str(cache), "--yes"])
        assert set(FeatureStore.open(cache)) == clips(cache) == {keys[0], keys[2]}
        assert len(captions(cache)) == 3


class TestRebuild:
    def test_lists_the_clips_of_a_lost_catalog(self, cache, keys):
        (cache / "catalog.sqlite").unlink()
        rebuild(cache)
        assert clips(cache) == set(keys)
        assert found(cache) == []

    def test_keeps_captions_runs_and_failures(self, cache):
        def told():
            with Catalog(cache / "catalog.sqlite") as catalog:
                return (
                    catalog.captions.rows(),
                    catalog.runs.rows(),
                    catalog.failures.rows(),
                    catalog.files.videos(),
                )

        with Catalog(cache / "catalog.sqlite") as catalog:
            run = catalog.runs.start("extract", "tiny", {})
            failure = {"video": "x.mp4", "start_s": 0.0, "end_s": None, "stage": "extract"}
            catalog.failures.add(
                {**failure, "feature_key": None, "reason": "missing", "message": "", "run": run}
            )
        before = told()
        rebuild(cache)
        assert told() == before

    def test_reads_captions_that_still_lie_in_the_log(self, cache):
        # Open all the while, as by a run that was killed: nothing has been moved out of the log.
        with Catalog(cache / "catalog.sqlite") as catalog:
            (row,) = catalog.captions.rows()[:1]
            del row["id"]
            catalog.captions.add([{**row, "caption_key": "new", "caption": "the last word"}])
            assert (cache / "catalog.sqlite-wal").stat().st_size
            copy = shutil.copytree(cache, cache.with_name("copy"))
        rebuild(copy)
        assert "the last word" in captions(copy)

    def test_keeps_the_old_catalog_in_the_quarantine(self, cache):
        before = (cache / "catalog.sqlite").read_bytes()
        assert rebuild(cache).old.read_bytes() == before

    def test_saves_captions_around_a_damaged_page(self, cache):
        with Catalog(cache / "catalog.sqlite") as catalog:
            (row,) = catalog.captions.rows()[:1]
            del row["id"]
            catalog.captions.add(
                {**row, "caption_key": f"k{n}", "caption": f"{n:04} " + "x" * 500}
                for n in range(200)
            )
        path = cache / "catalog.sqlite"
        content = bytearray(path.read_bytes())
        page = content.index(b"0100 xxx") // 4096
        content[page * 4096 : page * 4096 + 8] = b"\xff" * 8
        path.write_bytes(bytes(content))
        made = rebuild(cache)
        kept = {caption[:4] for caption in captions(cache)}
        assert made.lost["captions"] == 203 - len(captions(cache))
        assert {"0001", "0199"} <= kept
        assert len(kept) > 180

    def test_makes_a_catalog_where_the_old_one_is_no_database(self, cache, keys):
        (cache / "catalog.sqlite").write_bytes(b"nothing" * 1000)
        rebuild(cache)
        assert clips(cache) == set(keys)

    def test_leaves_out_and_counts_damaged_files(self, cache, keys):
        FeatureStore.open(cache).path_of(keys[1]).write_bytes(b"no HDF5")
        assert rebuild(cache).left_out == 1
        assert clips(cache) == {keys[0], keys[2]}

    def test_refuses_while_a_run_is_at_work(self, cache):
        with LiveRun(cache, dict).beating(), pytest.raises(CacheError, match="at work"):
            rebuild(cache)

    def test_refuses_while_a_run_has_yet_to_begin(self, cache, tmp_path):
        write_scene(tmp_path / "late.mp4", 77)
        run = threading.Thread(
            target=extract, args=([tmp_path / "late.mp4"], cache, settings(limit=1))
        )
        with closing(sqlite3.connect(cache / "catalog.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # it waits to note that it begins
            run.start()
            while not live_runs(cache):
                time.sleep(0.01)
            with pytest.raises(CacheError, match="at work"):
                rebuild(cache)
            other.execute("COMMIT")
        run.join()
        assert len(clips(cache)) == 4

    def test_refuses_a_catalog_of_a_newer_version_and_leaves_it(self, cache):
        path = cache / "catalog.sqlite"
        with closing(sqlite3.connect(path)) as catalog, catalog:
            catalog.execute("PRAGMA user_version = 999")
        with pytest.raises(CatalogError, match="version 999"):
            rebuild(cache)
        assert path.is_file()
        assert not [*cache.glob("quarantine/catalog*")]

    def test_refuses_a_catalog_that_cannot_be_opened_and_leaves_it(self, cache):
        path = cache / "catalog.sqlite"
        path.rename(path.with_suffix(".away"))
        path.mkdir()
        with pytest.raises(CatalogError, match="cannot be opened"):
            rebuild(cache)
        assert path.is_dir()


def test_a_file_whose_row_a_run_at_work_has_yet_to_write_is_no_finding(cache, keys):
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.clips.remove(keys[:1])
    path = FeatureStore.open(cache).path_of(keys[0])
    with LiveRun(cache, lambda: {"command": "extract"}).beating():
        os.utime(path)
        assert found(cache) == []
        os.utime(path, (1, 1))  # it was there before the run
        assert found(cache) == [("not_in_catalog", keys[0])]
    os.utime(path)
    assert found(cache) == [("not_in_catalog", keys[0])]


def test_a_stranger_is_told_by_its_name(cache, keys):
    folder = FeatureStore.open(cache).path_of(keys[0]).parent
    for name in ("notes.txt", f"{keys[0]}.h5.bak", f"{'0' * 64}.h5"):
        (folder / name).touch()
    (folder / f".{keys[0]}.h5.partial").touch()
    assert len([each for each in verify(cache) if each.problem == "stranger"]) == 3
