"""Videos are cut where scenes begin, at the video's own times; what was found is remembered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from films import FPS, LENGTHS, write_film
from scenes import catalog_of, settings
from videos import real_videos

from cogcache.catalog.catalog import Catalog
from cogcache.errors import ConfigError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.identity import identify
from cogcache.models.registry import family_of
from cogcache.stages.clips.clip_claims import ClipClaims
from cogcache.stages.clips.cuts import known_spans
from cogcache.stages.clips.discovery import Finding
from cogcache.stages.clips.worklist import Clip, Wanted, list_work
from cogcache.stages.extract import extract
from cogcache.stages.runs.report import Counts, RunReport, Timings
from cogcache.store.claims import Claims
from cogcache.store.live import LiveRun
from cogcache.store.store import FeatureStore
from cogcache.system.distribution import extra_hint
from cogcache.system.signals import Stop
from cogcache.video import scenes
from cogcache.video.cutting import Span, spans_of
from cogcache.video.file_state import file_digest
from cogcache.video.scenes import THRESHOLDS, Piece, extent_of, pieces_of, search

FIRSTS = tuple(int(n) for n in np.cumsum(LENGTHS)[:-1])
STEPS_S = (0.1, 0.25, 0.04, 0.5)
SETTINGS = settings(scenes=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4")


def searched(path: Path, detector: str = "adaptive") -> list[float]:
    """Return where scenes begin, found in one pass over all frames."""
    count = extent_of(path).num_frames
    return search(Piece(path, 0, count, detector, THRESHOLDS[detector]))


@dataclass
class Found:
    """What a search gave."""

    counts: Counts
    clips: list[Clip]
    catalog: Catalog

    @property
    def spans(self) -> list[Span]:
        return [clip.span for clip in self.clips]


@pytest.fixture
def search_all(tmp_path) -> Iterator[Callable[..., Found]]:
    """Search videos as stage one does, and make none of the clips."""
    cache = tmp_path / "cache"
    store = FeatureStore.create_or_open(cache)
    family = family_of(Checkpoint.open("tiny"))

    def do(*videos: Path, retry_failed: bool = False, **options: object) -> Found:
        asked = settings(scenes=True, **options)
        wanted = Wanted(asked, family, identify(family, "vision", catalog.files), (), retry_failed)
        work = list_work(videos, wanted, store, catalog)
        counts = Counts(found=work.num_clips, skipped=len(work.known_failures))
        run_id = catalog.runs.start("extract", "tiny", {})
        report = RunReport(run_id, "extract", "tiny", counts, Timings())
        with LiveRun(cache, dict).beating() as run:
            sharing = ClipClaims(Claims(run), store, catalog, Stop(), asked.limits.limit)
            with Finding(work, wanted, sharing, report) as finding:
                clips = [clip for clip in finding.clips() if clip is not None]
        return Found(counts, clips, catalog)

    with catalog_of(cache) as catalog:
        yield do


@pytest.mark.parametrize("detector", THRESHOLDS)
def test_scenes_begin_at_their_first_frames(film, detector):
    assert searched(film, detector) == [first / FPS for first in FIRSTS]


def test_the_cuts_of_a_filmed_video_are_found_to_the_frame():
    """They were checked by eye: the frame before each shows another place."""
    (bikes,) = [path for path in real_videos() if path.stem == "bikes"]
    assert searched(bikes) == [1.2, 3.04, 5.48, 7.48, 9.68]


def test_times_are_the_videos_own_at_a_variable_frame_rate(tmp_path):
    times_s = np.cumsum([0.0, *np.resize(STEPS_S, sum(LENGTHS) - 1)]).round(3)
    path = write_film(tmp_path / "uneven.mkv", times_s=times_s.tolist())
    assert searched(path) == pytest.approx(times_s[[*FIRSTS]], abs=1e-4)


@pytest.mark.parametrize("size", [1, 7, 30, 37])
@pytest.mark.parametrize(
    "kind", [("b.mkv", "libx264", 2), ("c.avi", "mpeg4", 0), ("d.ts", "libx264", 0)]
)
def test_pieces_find_what_one_pass_finds(tmp_path, monkeypatch, kind, size):
    name, codec, max_b_frames = kind
    path = write_film(tmp_path / name, codec=codec, max_b_frames=max_b_frames)
    monkeypatch.setattr(scenes, "PIECE_FRAMES", size)
    pieces = list(pieces_of(path, extent_of(path), "adaptive", 3.0))
    assert [time_s for piece in pieces for time_s in search(piece)] == searched(path)
    assert searched(path)


def test_a_clip_has_the_frames_of_its_scene_and_no_others(film, tmp_path):
    report = extract([film], tmp_path / "cache", settings(scenes=True, min_scene_s=0.5))
    assert report.counts.done == len(LENGTHS)
    with Catalog(tmp_path / "cache" / "catalog.sqlite") as catalog:
        spans = [(clip["start_s"], clip["end_s"]) for clip in catalog.clips.rows()]
    begins = [0.0, *(first / FPS for first in FIRSTS)]
    assert spans == list(zip(begins, [*begins[1:], None], strict=True))


def test_short_scenes_join_the_one_before_them():
    assert spans_of([3.0, 8.0, 9.0, 12.0], 30.0, 2.0) == [
        (0.0, 3.0), (3.0, 8.0), (8.0, 12.0), (12.0, None),
    ]  # fmt: skip
    assert spans_of([1.0], 30.0, 2.0) == [(0.0, None)]


def test_a_short_last_scene_joins_its_neighbour():
    assert spans_of([3.0, 10.0, 29.5], 30.0, 2.0) == [(0.0, 3.0), (3.0, 10.0), (10.0, None)]


def test_long_scenes_are_cut_further_and_no_second_is_lost():
    spans = spans_of([7.3], 50.0, 2.0, segment_s=10.0)
    assert spans[:2] == [(0.0, 7.3), (7.3, 17.3)]
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert spans[-1] == (37.3, None)


def test_clips_overlap_within_a_scene_only():
    spans = spans_of([20.0], 40.0, 2.0, segment_s=11.0, overlap_s=2.0)
    assert spans == [(0.0, 11.0), (9.0, 20.0), (20.0, 31.0), (29.0, None)]


def test_a_video_without_cuts_is_one_clip():
    assert spans_of([], 30.0, 2.0) == [(0.0, None)]


def test_what_was_found_is_remembered_with_how_it_was_found(film, search_all):
    found = search_all(film)
    value = found.catalog.files.recall(f"scenes adaptive 3 {file_digest(film)}")
    assert value["begins_s"] == [first / FPS for first in FIRSTS]
    assert value["made_with"].startswith("scenedetect")
    known = known_spans([file_digest(film)], SETTINGS.clips, found.catalog)
    assert known == {file_digest(film): found.spans}


def test_a_second_run_decodes_nothing(film, tmp_path):
    video = tmp_path / "film.mp4"
    video.write_bytes(film.read_bytes())
    first = extract([video], tmp_path / "cache", SETTINGS)
    facts = video.stat()
    with video.open("r+b") as file:
        file.write(bytes(facts.st_size))  # the same file by all that is looked at
    os.utime(video, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = extract([video], tmp_path / "cache", SETTINGS)
    assert (second.counts.cached, second.counts.failed) == (first.counts.done, 0)


def test_other_lengths_of_scenes_need_no_second_search(film, search_all, monkeypatch):
    assert search_all(film).counts.searched == 1
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    again = search_all(film, min_scene_s=0.1, segment_s=2.0)
    assert again.counts.searched == 0
    assert len(again.clips) > len(LENGTHS)


def test_a_video_that_cannot_be_searched_is_one_failure(film, tmp_path, search_all):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 100)
    found = search_all(bad, film)
    (row,) = found.catalog.failures.rows()
    assert (row["video"], row["reason"], row["stage"]) == (str(bad), "not_a_video", "extract")
    assert (found.counts.failed, found.counts.searched) == (1, 1)
    assert found.counts.found == len(found.clips) + 1
    again = search_all(bad, film)
    assert (again.counts.skipped, again.counts.failed) == (1, 0)
    once_more = search_all(bad, film, retry_failed=True)
    assert (once_more.counts.skipped, once_more.counts.failed) == (0, 1)


def test_files_with_the_same_bytes_are_searched_once(film, tmp_path, search_all):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(film.read_bytes())
    found = search_all(film, copy)
    assert found.counts.searched == 1
    assert found.counts.found == len(found.clips) == found.counts.copies


def test_without_the_extra_the_error_says_how_to_install_it(film, search_all, monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ConfigError, match="needs PySceneDetect") as caught:
        search_all(film)
    assert caught.value.hint == extra_hint("scenes")


def test_a_search_takes_one_thread(film):
    """What a worker may take of the processor is counted over all its threads."""
    script = (
        "import sys, cv2; from pathlib import Path\n"
        "from cogcache.video.scenes import Piece, search\n"
        "cv2.setNumThreads(8); search(Piece(Path(sys.argv[1]), 0, 9, 'adaptive', 3.0));"
        "print(cv2.getNumThreads())"
    )
    command = [sys.executable, "-c", script, str(film)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
