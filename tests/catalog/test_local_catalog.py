"""Machines with catalogs of their own over one shared folder lose nothing and do nothing twice."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.nodes import unshare
from cogcache.catalog import published as local_catalog
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.published import open_catalog, published
from cogcache.catalog.upkeep.merge import merge
from cogcache.errors import CacheError
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore
from cogcache.system.host import machine
from tests.support.caches import caption_of, make_cache

ROOT = Path(__file__).parents[2]
GIVEN = {"max_frames": 2, "max_new_tokens": 2, "quantization": "none", "decode_workers": 1}


def runs_of(path: Path) -> int:
    with Catalog(path) as catalog:
        return len(catalog.runs.rows())


def fail_with_a_run_begun(cache: Path, own: Path) -> None:
    with open_catalog(cache, own, None) as catalog:
        catalog.runs.start("extract", "made-up", {})
        raise ZeroDivisionError


def test_a_copy_is_left_when_a_run_ends_and_when_it_fails(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    own = tmp_path / "disk/catalog.sqlite"
    with open_catalog(tmp_path / "cache", own, None) as catalog:
        catalog.runs.start("extract", "made-up", {})
    (copy,) = published(tmp_path / "cache")
    assert runs_of(copy) == 1
    with pytest.raises(ZeroDivisionError):
        fail_with_a_run_begun(tmp_path / "cache", own)
    assert published(tmp_path / "cache") == [copy]
    assert runs_of(copy) == 2


def test_a_copy_is_left_every_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(local_catalog, "PUBLISH_EVERY_S", 0.05)
    FeatureStore.create_or_open(tmp_path / "cache")
    with open_catalog(tmp_path / "cache", tmp_path / "own.sqlite", "1/2") as catalog:
        catalog.runs.start("extract", "made-up", {})
        end_s = time.monotonic() + 20
        while not published(tmp_path / "cache") and time.monotonic() < end_s:
            time.sleep(0.02)
        (copy,) = published(tmp_path / "cache")
        assert copy.name.startswith(f"1-of-2.{machine()}.")


def test_that_a_copy_cannot_be_left_is_said(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    with (
        pytest.raises(CacheError, match="cannot write"),
        open_catalog(tmp_path / "cache", tmp_path / "own.sqlite", None),
    ):
        (tmp_path / "cache/catalogs").write_text("in the way")


def test_two_machines_leave_copies_of_different_names(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    for name in ("one", "two"):
        with open_catalog(tmp_path / "cache", tmp_path / name, None):
            pass
    assert len(published(tmp_path / "cache")) == 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards, each with a catalog of its own; then the first again on an empty disk."""
    root = tmp_path_factory.mktemp("shards")
    (root / "videos").mkdir()
    for number in range(6):
        write_clip(draw_scene(np.random.default_rng(number), 4), root / f"videos/{number}.mp4")
    reports = {}
    for disk, shard in (("a", "1/2"), ("b", "2/2"), ("c", "1/2")):
        settings = load_settings(None, {**GIVEN, "shard": shard})
        own = root / disk / "catalog.sqlite"
        reports[disk] = [
            extract([root / "videos"], root / "cache", settings, catalog_path=own),
            caption(root / "cache", settings, catalog_path=own),
        ]
    return root, reports


def test_no_catalog_is_made_in_the_shared_folder(shards):
    root, _ = shards
    assert len(published(root / "cache")) == 3
    assert not [*(root / "cache").glob("*.sqlite")]


def test_a_shard_on_an_empty_disk_goes_on_from_the_copies(shards):
    _, reports = shards
    assert [report.counts.done for report in reports["c"]] == [0, 0]
    assert [r.counts.cached for r in reports["c"]] == [r.counts.done for r in reports["a"]]


def test_a_caption_run_sees_its_shard_alone(shards):
    _, reports = shards
    for disk in ("a", "b"):
        assert reports[disk][1].counts.found == reports[disk][0].counts.done


def test_a_later_array_of_other_shards_begins_with_what_was_merged(shards):
    root, _ = shards
    merge([], root / "cache")
    done = []
    for number in range(1, 4):
        settings = load_settings(None, {**GIVEN, "shard": f"{number}/3"})
        own = root / f"later-{number}/catalog.sqlite"
        done.append(caption(root / "cache", settings, catalog_path=own).counts)
    assert [counts.done for counts in done] == [0, 0, 0]
    assert sum(counts.cached for counts in done) == 6


def test_a_merged_catalog_is_nobodys_name(tmp_path):
    make_cache(tmp_path, 1)
    with open_catalog(tmp_path / "cache", tmp_path / "own.sqlite", None) as catalog:
        catalog.captions.add([caption_of(clip) for clip in catalog.clips.rows()])
    merge([], tmp_path / "cache")
    for _ in range(2):
        with open_catalog(tmp_path / "cache", tmp_path / "next.sqlite", None):
            pass
    assert len(published(tmp_path / "cache")) == 3


@pytest.mark.slow  # four runs of both stages, each in processes of its own
def test_machines_of_one_array_make_what_one_run_makes_though_one_is_lost():
    if not unshare():
        pytest.skip("the system allows no name spaces")
    command = [sys.executable, "-m", "benchmarks.nodes", "--clips=8", "--tasks=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node2 lost" in done.stdout
    assert "the same rows and, byte for byte, the same features" in done.stdout
