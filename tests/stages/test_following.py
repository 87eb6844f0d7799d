"""Stage two beside stage one, and both within their limits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from scenes import catalog_of, settings, write_scene

from cogcache.catalog.upkeep.verify import verify
from cogcache.errors import CacheError
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.store.live import LiveRun
from cogcache.store.store import FeatureStore
from cogcache.system.atomic_files import seal

QUICK = {"quantization": "none", "max_new_tokens": 2, "frames_per_batch": 1}


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    return [
        tmp_path / "videos" / f"{number}.mp4"
        for number in range(3)
        if write_scene(tmp_path / "videos" / f"{number}.mp4", number, 4)
    ]


@pytest.fixture
def cache(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    return tmp_path / "cache"


def num_captions(cache: Path) -> int:
    with catalog_of(cache) as catalog:
        return len(catalog.captions.rows())


def test_a_limit_is_the_most_that_one_run_makes_and_the_next_goes_on(videos, cache):
    first = extract(videos, cache, settings(limit=2, **QUICK))
    assert (first.counts.done, first.stopped, first.exit_status) == (2, "--limit 2", 0)
    assert extract(videos, cache, settings(limit=2, **QUICK)).counts.done == 1
    made = caption(cache, settings(limit=2, **QUICK))
    assert (made.counts.done, made.stopped) == (2, "--limit 2")
    assert caption(cache, settings(limit=2, **QUICK)).counts.done == 1


def test_a_run_without_time_or_space_makes_nothing_and_says_why(videos, cache):
    full = extract(videos, cache, settings(min_free_gib=1e9))
    assert full.counts.done == 0
    assert "free on the cache's disk" in full.stopped
    assert full.exit_status == 1
    late = extract(videos, cache, settings(max_hours=1e-9))
    assert (late.counts.done, late.exit_status) == (0, 0)
    assert "--max-hours" in late.stopped


@contextmanager
def follower(cache, *options):
    """Caption what is added to a cache until the stage one that is played here ends."""
    options = [*options, "--quantization", "none", "--max-new-tokens", "2"]
    command = [sys.executable, "-m", "cogcache", "caption", "--follow", "--cache", cache]
    with LiveRun(cache, lambda: {"command": "extract"}).beating():
        process = subprocess.Popen(
            [*command, *options, "--frames-per-batch", "1"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        yield process
    process.output, process.error = process.communicate(timeout=90)


def wait_for_captions(cache, number):
    ends_s = time.monotonic() + 90
    while num_captions(cache) < number and time.monotonic() < ends_s:
        time.sleep(0.2)
    assert num_captions(cache) == number


def test_following_captions_what_is_added_and_ends_when_stage_one_does(videos, cache):
    with follower(cache) as process:
        extract(videos[:1], cache, settings(**QUICK))
        wait_for_captions(cache, 1)
        assert process.poll() is None
        extract(videos, cache, settings(**QUICK))
    assert process.returncode == 0, process.error
    assert "3 captions made" in process.output
    assert num_captions(cache) == 3


@pytest.mark.slow
def test_following_makes_whole_chains_of_the_clips_that_are_added(videos, cache, tmp_path):
    prompts = tmp_path / "prompts.toml"
    prompts.write_text(
        "[prompts]\nlast = 'And {caption.words}?'\nwords = 'Say {caption.first} again'\n"
        "first = 'What is it?'\n"
    )
    with follower(cache, "--prompts", prompts, "--text-only", "words") as process:
        extract(videos[:1], cache, settings(**QUICK))
        wait_for_captions(cache, 3)
        assert process.poll() is None
        extract(videos, cache, settings(**QUICK))
    assert process.returncode == 0, process.error
    assert "9 captions made, 0 there already" in process.output
    with catalog_of(cache) as catalog:
        rows = {(row["video"], row["prompt_name"]): row for row in catalog.captions.rows()}
    assert len(rows) == 9
    for (video, name), row in rows.items():
        if name != "first":
            before = rows[video, "words" if name == "last" else "first"]["caption"]
            assert before in row["prompt"]


def test_without_following_stage_two_ends_at_once(cache):
    with LiveRun(cache, lambda: {"command": "extract"}).beating():
        assert caption(cache, settings()).counts.found == 0


def test_a_disk_that_is_full_all_the_same_ends_the_run_and_keeps_what_was_done(
    videos, cache, monkeypatch
):
    sealed = []

    def full_at_the_second(path, content, check=None):
        sealed.append(path)
        if len(sealed) == 2:
            raise CacheError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")
        seal(path, content, check)

    monkeypatch.setattr("cogcache.store.places.seal", full_at_the_second)
    with pytest.raises(CacheError, match="No space left"):
        extract(videos, cache, settings(**QUICK))
    monkeypatch.undo()
    assert not [*(cache / "claims").iterdir(), *(cache / "working").iterdir()]
    report = extract(videos, cache, settings(**QUICK))
    assert report.counts.cached + report.counts.done == 3
    assert report.counts.cached >= 1
    assert verify(cache) == []
