"""A run captions the clips that it was asked for, in the time that both stages have together."""

from __future__ import annotations

import subprocess
import sys

import pytest
from scenes import catalog_of, settings, write_scene

from cogcache.catalog.catalog import Catalog
from cogcache.settings.settings import load_settings
from cogcache.stages.both import Hours, second_limits
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract

WHOLE, FIRST, SECOND = (0.0, None), (0.0, 0.5), (0.5, None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that holds a video whole, in two segments, and a part that is neither."""
    root = tmp_path_factory.mktemp("asked")
    write_scene(root / "a.mp4", 0, num_frames=8)
    for spans, more in (([WHOLE, (0.25, 0.75)], {}), ([], {"segment_s": 0.5})):
        extract([root / "a.mp4"], root / "cache", settings(**more), spans=spans)
    with catalog_of(root / "cache") as catalog:
        spans = {(clip["start_s"], clip["end_s"]) for clip in catalog.clips.rows()}
    assert spans == {WHOLE, FIRST, SECOND, (0.25, 0.75)}
    return root / "cache"


@pytest.mark.parametrize(
    ("spans", "segment_s", "expected"),
    [
        ([WHOLE], 0, {WHOLE}),
        ([(0.25, 0.75)], 0, {(0.25, 0.75)}),
        ([], 0.5, {FIRST, SECOND}),
        ([], 60, {WHOLE}),
        ([], 0, {WHOLE, FIRST, SECOND, (0.25, 0.75)}),
    ],
    ids=["whole", "a part", "segments", "longer segments", "all"],
)
def test_only_the_clips_asked_for_are_captioned(cache, spans, segment_s, expected):
    how = {"quantization": "none", "max_new_tokens": 1, "retry": False, "segment_s": segment_s}
    prompt = {"prompts": {"x": f"{spans} {segment_s}?"}}
    report = caption(cache, settings(**how, **prompt), spans=spans)
    assert report.counts.done == len(expected)
    with Catalog(cache / "catalog.sqlite") as catalog:
        rows = [row for row in catalog.captions.rows() if row["prompt"] == prompt["prompts"]["x"]]
    assert {(row["start_s"], row["end_s"]) for row in rows} == expected


def test_the_second_stage_has_what_the_first_leaves_of_the_time():
    hours = Hours(2.0)
    limits = second_limits(load_settings(None, {"max_hours": 2.0}), hours)
    assert 1.99 < limits.max_hours < 2.0
    assert second_limits(load_settings(), Hours(None)).max_hours is None


def test_a_limit_of_clips_lets_each_have_all_its_captions():
    given = {"limit": 3, "prompts": {"a": "A?", "b": "B?"}, "n": 2, "do_sample": True}
    assert second_limits(load_settings(None, given), Hours(None)).limit == 12


def test_a_run_whose_time_is_over_does_not_begin_the_second_stage(tmp_path):
    write_scene(tmp_path / "a.mp4", 0, num_frames=4)
    command = ["run", tmp_path / "a.mp4", f"--cache={tmp_path / 'cache'}", "--max-hours=1e-9"]
    done = subprocess.run(
        [sys.executable, "-m", "cogcache", *map(str, command)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stopped early (--max-hours 1e-09 are over)" in done.stdout
    assert "caption: not begun" in done.stdout
