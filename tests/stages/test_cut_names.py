"""Clips know how their video was cut, whatever finds them again; cuts are filters, never mixed."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scenes import catalog_of, settings, write_scene

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.rebuild import rebuild
from cogcache.catalog.upkeep.verify import verify
from cogcache.cli import main
from cogcache.settings.stage_one import Clips
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore
from tests.support.caches import caption_of

QUICK = {"max_frames": 2, "quantization": "none"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def spans(cache: Path, *how: object, what: str = "clips") -> list[tuple[float, float | None]]:
    done = run("ls", what, "--cache", cache, "--json", *how)
    assert done.exit_code == 0, done.stderr
    return [(row["start_s"], row["end_s"]) for row in json.loads(done.stdout)]


def cuts(cache: Path) -> dict[tuple[float, float | None], set[str]]:
    with catalog_of(cache) as catalog:
        found = catalog.cuts.of({row["feature_key"] for row in catalog.clips.rows()})
        return {
            (row["start_s"], row["end_s"]): set(found.get(row["feature_key"], ()))
            for row in catalog.clips.rows()
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A film that was taken whole, in segments of 2 s and of 60 s, and a part of it."""
    root = tmp_path_factory.mktemp("cuts")
    write_scene(root / "film.mp4", num_frames=32)  # 4 s
    for how in ({}, {"segment_s": 2.0}, {"segment_s": 60.0}):
        extract(root / "film.mp4", root / "cache", settings(**QUICK, **how))
    extract(root / "film.mp4", root / "cache", settings(**QUICK), spans=[(1.0, 3.0)])
    with catalog_of(root / "cache") as catalog:
        catalog.captions.add([caption_of(clip) for clip in catalog.clips.rows()])
    return root


def test_a_clip_has_every_cut_that_it_came_of(made):
    found = cuts(made / "cache")
    assert found.pop((0.0, None)) == {"whole", "segment:60"}
    assert found.pop((1.0, 3.0)) == {"clip"}
    assert [*found.values()] == [{"segment:2"}] * 2


def test_rebuild_and_merge_keep_what_is_known(made, tmp_path):
    before = cuts(made / "cache")
    merge([made / "cache"], tmp_path / "merged")
    assert cuts(tmp_path / "merged") == before
    rebuild(tmp_path / "merged")
    assert cuts(tmp_path / "merged") == before
    assert verify(tmp_path / "merged") == []


def test_feature_files_alone_say_how_their_clip_was_cut(made, tmp_path):
    store = FeatureStore.open(made / "cache")
    told = {store.describe(key)["cut"] for key in list(store.keys())}
    assert told == {"whole", "segment:2", "clip"}
    merge([made / "cache"], tmp_path / "cache")
    for path in (tmp_path / "cache").glob("catalog*"):
        path.unlink()
    rebuild(tmp_path / "cache")
    with catalog_of(tmp_path / "cache") as catalog:
        known = catalog.cuts.of({row["feature_key"] for row in catalog.clips.rows()})
    assert sorted(known.values()) == [["clip"], ["segment:2"], ["segment:2"], ["whole"]]


@pytest.mark.parametrize("what", ["clips", "captions"])
def test_listings_are_filtered_by_cut(made, what):
    cache = made / "cache"
    assert spans(cache, "--cut", "whole", what=what) == [(0.0, None)]
    assert spans(cache, "--cut", "segment:60", what=what) == [(0.0, None)]
    assert spans(cache, "--cut", "clip", what=what) == [(1.0, 3.0)]
    assert len(spans(cache, "--cut", "segment:2", what=what)) == 2
    assert len(spans(cache, "--cut", "segment:2", "--cut", "clip", what=what)) == 3
    assert spans(cache, "--cut", "scenes", what=what) == []


def test_search_and_rows_are_filtered_by_cut(made, tmp_path):
    cache = made / "cache"
    found = json.loads(run("search", "seen", "--cache", cache, "--cut", "clip", "--json").stdout)
    assert [(row["start_s"], row["end_s"]) for row in found] == [(1.0, 3.0)]
    rows = run("export", "-", "--format", "jsonl", "--cache", cache, "--cut", "segment:2")
    assert len(rows.stdout.splitlines()) == 2


@pytest.mark.parametrize("suffix", ["vtt", "srt", "txt"])
def test_subtitles_of_a_film_that_was_cut_in_several_ways_ask_which(made, tmp_path, suffix):
    out = tmp_path / f"film.{suffix}"
    asked = run("export", out, "--cache", made / "cache")
    assert asked.exit_code == 2
    for name in ("--cut whole", "--cut segment:2", "--cut clip"):
        assert name in asked.stderr
    assert not out.exists()
    beside = run("export", "--beside", suffix, "--cache", made / "cache")
    assert beside.exit_code == 2
    assert "cut in several ways" in beside.stderr
    done = run("export", out, "--cache", made / "cache", "--cut", "segment:2")
    assert done.exit_code == 0, done.stderr
    text = out.read_text()
    assert text.count("What is seen") == 2


def test_a_summary_is_no_cut_of_its_own(tmp_path):
    write_scene(tmp_path / "film.mp4", num_frames=32)
    extract(tmp_path / "film.mp4", tmp_path / "cache", settings(**QUICK, segment_s=2.0))
    with catalog_of(tmp_path / "cache") as catalog:
        first, second = catalog.clips.rows()
        whole: Any = {**first, "start_s": 0.0, "end_s": None, "feature_key": "5" * 64}
        summary = {**caption_of(whole), "prompt_name": "summary", "caption": "All of it."}
        summary["video_digest"] = first["video_digest"]
        catalog.captions.add([caption_of(first), caption_of(second), summary])
    out = tmp_path / "film.vtt"
    done = run("export", out, "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.stderr
    assert out.read_text().count("What is seen") == 2
    assert "All of it." in out.read_text()


def test_a_failure_is_listed_under_its_cut(tmp_path):
    write_scene(tmp_path / "film.mp4", num_frames=40)

    extract(tmp_path / "film.mp4", tmp_path / "cache", settings(**QUICK))
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "film.mp4").read_bytes()[:3000])
    extract(tmp_path / "bad.mp4", tmp_path / "cache", settings(**QUICK))
    listed = run("failures", "--cache", tmp_path / "cache", "--json", "--in", tmp_path)
    (row,) = json.loads(listed.stdout)
    assert row["video"] == str(tmp_path / "bad.mp4")
    for how in (("--in", tmp_path / "nowhere"), ("--since", "2999-01-01"), ("--model", "other")):
        none = run("failures", "--cache", tmp_path / "cache", "--json", *how)
        assert json.loads(none.stdout) == [], none.stderr
    same = run("failures", "--cache", tmp_path / "cache", "--json", "--model", "tiny")
    assert len(json.loads(same.stdout)) == 1


def test_filters_of_captions_are_refused_for_clips(made):
    done = run("ls", "clips", "--cache", made / "cache", "--prompt-name", "default")
    assert done.exit_code == 2
    assert "--prompt-name chooses among captions" in done.stderr


def without_cuts(cache: Path) -> None:
    """Make a catalog one of version 10, which knew no cuts."""
    with closing(sqlite3.connect(cache / "catalog.sqlite")) as conn, conn:
        conn.execute("DROP TABLE cuts")
        conn.execute("DELETE FROM _sqlite_migrations WHERE name = '0011_cuts'")
        conn.execute("PRAGMA user_version = 10")


def test_an_older_catalog_learns_the_cuts_from_the_settings_of_its_runs(made, tmp_path):
    merge([made / "cache"], tmp_path / "cache")
    without_cuts(tmp_path / "cache")
    found = cuts(tmp_path / "cache")
    assert found.pop((0.0, None)) == {"whole"}
    assert found.pop((1.0, 3.0)) == set()  # a part that was named: its run does not say so
    assert [*found.values()] == [{"segment:2"}] * 2
    assert verify(tmp_path / "cache") == []


def test_whole_videos_of_which_nobody_knows_the_cut_are_whole(made, tmp_path):
    merge([made / "cache"], tmp_path / "cache")
    with closing(sqlite3.connect(tmp_path / "cache/catalog.sqlite")) as conn, conn:
        conn.execute("DELETE FROM cuts")
    assert spans(tmp_path / "cache", "--cut", "whole") == [(0.0, None)]


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({}, "whole"),
        ({"segment_s": 24}, "segment:24"),
        ({"segment_s": 7.5, "overlap_s": 2}, "segment:7.5,overlap:2"),
        ({"scenes": True}, "scenes"),
        ({"scenes": True, "segment_s": 24}, "scenes,segment:24"),
        (
            {"scenes": True, "scene_detector": "content", "scene_threshold": 30, "min_scene_s": 0},
            "scenes:content,threshold:30,min:0",
        ),
    ],
)
def test_cuts_are_named_by_the_settings_that_make_them(how: dict[str, Any], name: str):
    assert Clips(**how).cut == name
    from cogcache.catalog.later_migrations import _cut_of

    written = Clips(**how).model_dump(mode="json")
    assert _cut_of(json.dumps({"clips": written}))[0] == name


def test_what_is_added_twice_is_there_once(tmp_path):
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        for _ in range(2):
            catalog.cuts.add([("1" * 64, "whole"), ("1" * 64, "segment:24")])
        assert catalog.cuts.of(["1" * 64]) == {"1" * 64: ["segment:24", "whole"]}
