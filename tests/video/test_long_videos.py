"""A video of hours is cut, seen in each part, and gone on with in its middle."""

from __future__ import annotations

import numpy as np
import pytest
from scenes import catalog_of, settings
from videos import write_video

from benchmarks.long_videos import FPS, held_by_process
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore
from cogcache.system.memory_monitor import sample
from cogcache.video.reading import read_clip

HOURS = 3
SEGMENT_S = 600.0
PARTS = int(HOURS * 3600 / SEGMENT_S)
OPTIONS = {"segment_s": SEGMENT_S, "strategy": "spread", "max_frames": 6}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(path, num_frames=HOURS * 3600, fps=1, size=(32, 32), codec="mpeg4", gop=60)


@pytest.fixture(scope="module")
def reports_and_features(video, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache") / "cache"
    reports = [
        extract([video], cache, settings(limit=limit, **OPTIONS)) for limit in (PARTS // 2, None)
    ]
    store = FeatureStore.open(cache)
    found = sorted((store.describe(key) for key in store), key=lambda told: told["start_s"])
    return reports, found, cache


def test_the_second_run_goes_on_in_the_middle(reports_and_features):
    first, second = reports_and_features[0]
    assert (first.counts.done, first.counts.found) == (PARTS // 2, PARTS)
    assert (second.counts.cached, second.counts.done) == (PARTS // 2, PARTS - PARTS // 2)


def test_times_are_those_of_the_whole_video(reports_and_features):
    for number, told in enumerate(reports_and_features[1]):
        assert told["start_s"] == number * SEGMENT_S
        assert told["timestamps_s"][0] == number * SEGMENT_S


def test_each_part_is_seen_from_its_beginning_to_its_end(reports_and_features):
    times = np.array([told["timestamps_s"] for told in reports_and_features[1]])
    assert times.shape == (PARTS, 6)
    assert np.diff(times, axis=1).max() <= SEGMENT_S / 5
    assert (times[:, -1] - times[:, 0]).min() >= SEGMENT_S - 1


def test_captions_go_on_in_the_middle_and_are_summed_up_at_the_end(reports_and_features):
    cache = reports_and_features[2]
    told = {**OPTIONS, "summarize": True, "max_new_tokens": 8, "retry": False}
    first, second = (caption(cache, settings(limit=limit, **told)) for limit in (PARTS // 2, None))
    assert (first.counts.done, second.counts.cached) == (PARTS // 2, PARTS // 2)
    assert second.counts.done == PARTS - PARTS // 2 + 1
    with catalog_of(cache) as catalog:
        rows = catalog.captions.rows()
    assert [row["start_s"] for row in rows if row["prompt_name"] == "default"] == [
        number * SEGMENT_S for number in range(PARTS)
    ]
    (summary,) = [row for row in rows if row["prompt_name"] == "summary"]
    assert (summary["start_s"], summary["end_s"]) == (0.0, None)


def test_memory_does_not_grow_from_part_to_part(video):
    rule = settings(**OPTIONS).sampling
    read_clip(video, rule, 0.0, SEGMENT_S)
    before = sample().anonymous_bytes
    for number in range(PARTS):
        read_clip(video, rule, number * SEGMENT_S, (number + 1) * SEGMENT_S)
    assert sample().anonymous_bytes - before < 20 * 2**20


def test_three_hours_take_no_more_memory_than_the_tables_of_libav():
    short, long = held_by_process(10), held_by_process(180)
    frames_more = (180 - 10) * 60 * FPS
    assert (long.peak_mib - short.peak_mib) * 2**20 / frames_more < 200  # bytes
