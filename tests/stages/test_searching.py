"""The search for scenes is part of the run: beside the encoding, within its limits, seen by all."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from films import write_film
from scenes import catalog_of, settings

from cogcache.stages.extract import extract
from cogcache.stages.runs.report_lines import report_lines
from cogcache.stages.runs.status import shown, statuses
from cogcache.store.live import live_runs
from cogcache.store.store import FeatureStore

SCENES_EACH = 2
NUM_FILMS = 6
LONG_FRAMES = 20_000
"""Of a film whose search takes many times as long as to encode a clip."""
QUICK = {"scenes": True, "min_scene_s": 0.5}
OPTIONS = ["--scenes", "--min-scene", "0.5", "--decode-workers", "1"]
FEW = {"min-scene": str(LONG_FRAMES / 40)}
"""Makes some four clips of the long film, and one of each other."""


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [
        write_film(folder / f"{number}.mp4", (20, 20), seed=number) for number in range(NUM_FILMS)
    ]


@pytest.fixture(scope="module")
def long_film(tmp_path_factory) -> Path:
    """A film in the middle of whose search a test can do something."""
    return write_film(tmp_path_factory.mktemp("long") / "long.mp4", (50,) * (LONG_FRAMES // 50))


@pytest.fixture
def cache(tmp_path) -> Path:
    FeatureStore.create_or_open(tmp_path / "cache")
    return tmp_path / "cache"


def searched(cache: Path) -> set[str]:
    """Return the digests of the videos of which it is known where their scenes begin."""
    with catalog_of(cache) as catalog:
        rows = catalog._file.select("memory", "name")
    return {row["name"].split()[-1] for row in rows if row["name"].startswith("scenes ")}


def num_clips(cache: Path) -> int:
    with catalog_of(cache) as catalog:
        return len(catalog.clips.rows())


def searching(cache: Path) -> str:
    """Return what the runs at work say of their searches."""
    return "; ".join(row.get("searching", "") for row in live_runs(cache))


def start(cache: Path, *videos: Path, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cogcache", "extract", *map(str, videos), *OPTIONS]
    options = [word for name, value in more.items() for word in (f"--{name}", value)]
    return subprocess.Popen(
        [*command, *options, "--cache", str(cache)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    ends_s = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends_s
        time.sleep(0.1)


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended with the test, whatever becomes of it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@contextmanager
def stood_still(process: subprocess.Popen[str], cache: Path, film: Path) -> Iterator[None]:
    """Have a film's search stand still, once it has begun, until the block ends."""
    wait_until(lambda: f"of {LONG_FRAMES:,} frames of {film.name}" in searching(cache), process)
    readers: dict[int, psutil.Process] = {}
    try:
        # Between two pieces of a film a worker has no file open: it is caught at the next one.
        wait_until(lambda: suspend_readers(process, film, readers), process)
        for _ in range(5):
            time.sleep(0.05)
            suspend_readers(process, film, readers)
        yield
    finally:
        for each in readers.values():
            with suppress(psutil.NoSuchProcess):
                each.resume()


def suspend_readers(
    process: subprocess.Popen[str], film: Path, readers: dict[int, psutil.Process]
) -> bool:
    """Suspend workers that have a film open and were not yet; say whether there are any."""
    for each in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if each.pid not in readers and str(film) in str(each.open_files()):
                each.suspend()
                readers[each.pid] = each
    return bool(readers)


def test_clips_of_the_first_film_are_made_before_the_last_is_searched(films, cache):
    report = extract(films, cache, settings(limit=1, **QUICK))
    assert (report.counts.done, report.stopped) == (1, "--limit 1")
    assert 1 <= len(searched(cache)) <= 3 < NUM_FILMS
    assert report.counts.unsearched == NUM_FILMS - len(searched(cache))


def test_a_run_over_films_makes_all_their_clips_and_counts_right(films, cache):
    report = extract(films, cache, settings(**QUICK))
    counts = report.counts
    assert (counts.found, counts.done) == (SCENES_EACH * NUM_FILMS,) * 2
    assert (counts.searched, counts.unsearched, report.status) == (NUM_FILMS, 0, "done")
    assert report.state.searching == ""
    again = extract(films, cache, settings(**QUICK))
    assert (again.counts.cached, again.counts.searched) == (SCENES_EACH * NUM_FILMS, 0)


def test_what_is_known_is_made_while_the_rest_is_searched(films, cache):
    extract(films[:1], cache, settings(limit=1, **QUICK))
    report = extract([*films[1:3], films[0]], cache, settings(limit=1, **QUICK))
    assert report.counts.done == 1
    with catalog_of(cache) as catalog:
        assert {row["video"] for row in catalog.clips.rows()} == {str(films[0])}


def test_a_run_without_time_or_space_searches_nothing_and_says_what_is_left(films, cache):
    late = extract(films, cache, settings(max_hours=1e-9, **QUICK))
    assert (late.counts.done, searched(cache), late.exit_status) == (0, set(), 0)
    assert "--max-hours" in (late.stopped or "")
    assert f"  {NUM_FILMS} videos not cut into clips yet" in report_lines(late)
    full = extract(films, cache, settings(min_free_gib=1e9, **QUICK))
    assert (searched(cache), full.exit_status) == (set(), 1)


def test_the_time_is_over_in_the_middle_of_a_search(long_film, cache, monkeypatch):
    monkeypatch.setattr("cogcache.store.live.BEAT_S", 0.2)
    began_s = time.monotonic()
    report = extract([long_film], cache, settings(max_hours=2 / 3600, **QUICK))
    assert "--max-hours" in (report.stopped or "")
    assert (report.counts.done, report.counts.unsearched) == (0, 1)
    assert time.monotonic() - began_s < 30


def test_a_signal_ends_a_search_within_seconds_and_what_was_found_is_kept(
    films, long_film, cache, running
):
    process = start(cache, films[0], long_film)
    running.append(process)
    with stood_still(process, cache, long_film):
        wait_until(lambda: num_clips(cache) == SCENES_EACH, process)
        process.send_signal(signal.SIGINT)
    began_s = time.monotonic()
    output, error = process.communicate(timeout=60)
    assert time.monotonic() - began_s < 10
    assert process.returncode == 128 + signal.SIGINT, error
    assert f"{SCENES_EACH} clips made" in output
    assert "1 video not cut into clips yet" in output
    assert "Traceback" not in error
    assert len(searched(cache)) == 1
    assert not [*(cache / "claims").iterdir(), *(cache / "working").iterdir()]


@pytest.mark.slow
def test_a_second_signal_ends_a_search_at_once(long_film, cache, running):
    process = start(cache, long_film)
    running.append(process)
    wait_until(lambda: searching(cache), process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    began_s = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - began_s < 10
    assert process.returncode != 0
    assert searched(cache) == set()


def test_status_tells_how_far_the_search_is_and_what_is_left(films, long_film, cache, running):
    process = start(cache, films[0], long_film)
    running.append(process)

    def row() -> dict[str, Any]:
        return next(iter(statuses(cache)), {})

    with stood_still(process, cache, long_film):
        wait_until(lambda: row().get("done") == SCENES_EACH, process)
        seen = row()
    assert (seen["found"], seen["unsearched"], seen["searched"]) == (SCENES_EACH, 1, 1)
    # One film has given two clips, so the other is taken for two.
    assert seen["eta_s"] == pytest.approx(SCENES_EACH / seen["per_s"])
    told = shown(seen)
    assert told["progress"] == f"{SCENES_EACH} of {SCENES_EACH} and those of 1 to cut"
    assert told["left"].startswith("about ")
    assert told["state"].startswith("at work, searching: ")


def test_two_runs_search_no_film_twice_and_make_no_clip_twice(films, long_film, cache, running):
    running += [start(cache, long_film, *films, **FEW) for _ in range(2)]
    for process in running:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, output + error
    with catalog_of(cache) as catalog:
        counts = [row["counts"] for row in catalog.runs.rows()]
        clips = catalog.clips.rows()
    assert sum(each["searched"] for each in counts) == NUM_FILMS + 1
    assert sum(each["done"] for each in counts) == len(clips) > NUM_FILMS + 1
    assert [each["done"] + each["cached"] for each in counts] == [len(clips)] * 2
    assert not [*(cache / "claims").iterdir()]


@pytest.mark.slow
def test_a_film_is_searched_by_another_run_once_the_one_that_did_is_dead(long_film, cache, running):
    first = start(cache, long_film, **FEW)
    running.append(first)
    with stood_still(first, cache, long_film):
        second = start(cache, long_film, **FEW)
        running.append(second)
        wait_until(lambda: len(live_runs(cache)) == 2, second)
        assert not searched(cache)
        first.kill()
    output, error = second.communicate(timeout=120)
    assert second.returncode == 0, output + error
    with catalog_of(cache) as catalog:
        counts = catalog.runs.rows()[-1]["counts"]
    assert (counts["searched"], counts["done"]) == (1, num_clips(cache))


@pytest.mark.slow
def test_several_workers_make_clips_while_films_are_searched(films, long_film, cache, running):
    process = start(cache, films[0], long_film, devices="cpu,cpu")
    running.append(process)
    with stood_still(process, cache, long_film):
        wait_until(lambda: num_clips(cache) == SCENES_EACH, process)
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "1 video not cut into clips yet" in output


def test_several_workers_make_all_clips_of_films(films, cache):
    report = extract(films[:2], cache, settings(devices="cpu,cpu", **QUICK))
    counts = report.counts
    assert (counts.done, counts.searched, report.status) == (2 * SCENES_EACH, 2, "done")
