"""New videos are read and cut while clips of others are made."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenes import catalog_of, settings, write_scene

from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore

NUM_VIDEOS = 60


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> list[Path]:
    """Videos of different bytes, which is all that is asked of them until they are decoded."""
    folder = tmp_path_factory.mktemp("many")
    first = folder / "00.mp4"
    write_scene(first)
    for number in range(1, NUM_VIDEOS):
        (folder / f"{number:02}.mp4").write_bytes(first.read_bytes() + bytes([number]))
    return sorted(folder.iterdir())


@pytest.fixture
def cache(tmp_path) -> Path:
    FeatureStore.create_or_open(tmp_path / "cache")
    return tmp_path / "cache"


def num_read(videos: list[Path], cache: Path) -> int:
    with catalog_of(cache) as catalog:
        return len(catalog.files.digests_of({video: video.stat() for video in videos}))


def test_a_run_with_a_limit_does_not_read_all_videos(many, cache):
    report = extract(many, cache, settings(limit=1))
    assert (report.counts.done, report.stopped) == (1, "--limit 1")
    assert 1 <= num_read(many, cache) < NUM_VIDEOS / 2


def test_videos_that_are_not_read_yet_count_as_found(many, cache):
    assert extract(many, cache, settings(limit=1)).counts.found == NUM_VIDEOS
    assert extract([*many[:2], many[0]], cache, settings(limit=2)).counts.found == 2


def test_a_run_whose_time_is_over_reads_nothing(many, cache):
    report = extract(many, cache, settings(max_hours=1e-9))
    assert "--max-hours" in (report.stopped or "")
    assert num_read(many, cache) == 0


def test_every_second_shard_reads_all_and_makes_its_own(many, cache):
    few = many[:6]
    halves = [extract(few, cache, settings(shard=f"{number}/2")) for number in (1, 2)]
    counts = [report.counts for report in halves]
    assert sum(each.done for each in counts) == len(few)
    assert sum(each.found for each in counts) == len(few)
