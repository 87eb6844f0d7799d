"""Which clips a run has to make: what is there, what failed, what has changed since."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import catalog_of, settings, write_scene

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.readings import Reading, remember
from cogcache.catalog.rows import Failure
from cogcache.errors import VideoError
from cogcache.keys import FeatureKey
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.identity import identify
from cogcache.models.registry import family_of
from cogcache.settings.work_share import WorkShare
from cogcache.stages.clips.clip_claims import ClipClaims
from cogcache.stages.clips.digests import DigestReader
from cogcache.stages.clips.discovery import Finding
from cogcache.stages.clips.worklist import (
    Clip,
    Wanted,
    Worklist,
    list_work,
    num_unseen,
    unseen,
)
from cogcache.stages.encoding.clip_writer import ClipWriter
from cogcache.stages.runs.report import Counts, RunReport, Timings
from cogcache.store.claims import Claims
from cogcache.store.live import LiveRun
from cogcache.store.store import FeatureStore
from cogcache.system.signals import Stop
from cogcache.system.spool import Spool
from cogcache.video.cutting import WHOLE
from cogcache.video.file_state import file_digest
from cogcache.video.frame_index import index_frames

NO_SPOOL = Spool(Path(), 0)
BAD = VideoError("decode_failed", "it cannot be read", "fetch it anew")


class Desk:
    """A cache with its catalog, and a folder of videos."""

    def __init__(self, folder: Path, catalog: Catalog, store: FeatureStore) -> None:
        self.folder, self.catalog, self.store = folder, catalog, store
        family = family_of(Checkpoint.open("tiny"))
        self.wanted = Wanted(settings(), family, identify(family, "vision", catalog.files))

    def video(self, name: str, seed: int = 0) -> Path:
        path = self.folder / name
        write_scene(path, seed)
        return path

    def list(self, *videos: Path, **changed: object) -> Worklist:
        """List the clips of videos, of which the new ones are read and looked at first."""
        wanted = replace(self.wanted, **changed)
        for video in videos:
            if video.is_file():
                reading = Reading.of(index_frames(video).reading)
                remember(self.catalog.files, file_digest(video), reading)
        work = list_work(videos, wanted, self.store, self.catalog)
        digests = {}
        with DigestReader(work.unread, self.catalog, WorkShare(), NO_SPOOL) as reader:
            while reader.num_left:
                digests.update(reader.take(60.0))
        work.add_videos(digests, wanted, self.store, self.catalog)
        work.put_damaged_away(self.store, self.catalog)
        return work

    def find(self, *videos: Path, **changed: object) -> tuple[list[Clip], Counts]:
        """Find the clips of videos as a run does, and make none."""
        wanted = replace(self.wanted, **changed)
        work = list_work(videos, wanted, self.store, self.catalog)
        run = self.catalog.runs.start("extract", "tiny", {})
        report = RunReport(run, "extract", "tiny", Counts(found=work.num_clips), Timings())
        report.counts.skipped = len(work.known_failures)
        with LiveRun(self.store.root, dict).beating() as live:
            limit = wanted.settings.limits.limit
            sharing = ClipClaims(Claims(live), self.store, self.catalog, Stop(), limit)
            with Finding(work, wanted, sharing, report) as finding:
                return [clip for clip in finding.clips() if clip is not None], report.counts

    def fail(self, clip: Clip) -> None:
        row = Failure(clip.span, BAD, key=clip.key.digest).row(clip.video)
        self.catalog.failures.add(row)

    def seal(self, clip: Clip) -> None:
        """Write a feature file as stage one does, and leave the catalog as it is."""
        attributes = {
            **clip.key.fields(), "video": str(clip.video), "model": "tiny", "texts": {},
            "timestamps_s": [0.0, 1.0], "frame_indices": [0, 8], "fps": 8.0, "duration_s": 4.0,
            "total_num_frames": 32, "decoder": "decord",
        }  # fmt: skip
        self.store.write(clip.key.digest, {"features": torch.ones(2, 6, 96)}, attributes)


@pytest.fixture
def desk(tmp_path):
    store = FeatureStore.create_or_open(tmp_path / "cache")
    (tmp_path / "videos").mkdir()
    with catalog_of(tmp_path / "cache") as catalog:
        yield Desk(tmp_path / "videos", catalog, store)


def names(clips: list[Clip]) -> list[str]:
    return [clip.video.name for clip in clips]


def test_every_video_is_missing_from_an_empty_cache(desk):
    work = desk.list(desk.video("a.mp4"), desk.video("b.mp4", 1))
    assert names(work.missing) == ["a.mp4", "b.mp4"]
    assert work.num_clips == 2


def test_the_key_holds_all_fields_and_is_the_same_again(desk):
    video = desk.video("a.mp4")
    (first,), (second,) = desk.list(video).missing, desk.list(video).missing
    assert first.key == second.key
    assert isinstance(first.key, FeatureKey)
    assert len(first.key.digest) == 64


def test_files_with_the_same_bytes_are_made_once(desk):
    work = desk.list(desk.video("a.mp4"), desk.video("copy.mp4"))
    assert names(work.missing) == ["a.mp4"]
    ((_, (copy,)),) = work.copies.items()
    assert copy.name == "copy.mp4"


def test_the_same_part_named_twice_is_made_once_and_is_no_copy(desk):
    work = desk.list(desk.video("a.mp4"), spans=((1.0, 2.0), (1.0, 2.0)))
    assert [clip.span for clip in work.missing] == [(1.0, 2.0)]
    assert not work.copies


def test_a_file_that_is_gone_is_a_failure_with_a_reason(desk):
    (failure,) = desk.list(desk.folder / "gone.mp4").failures
    assert failure.error.reason == "missing"


def test_a_file_that_failed_is_not_missing_again_unless_asked(desk):
    video = desk.video("a.mp4")
    desk.fail(desk.list(video).missing[0])
    assert names(desk.list(video).known_failures) == ["a.mp4"]
    assert names(desk.list(video, retry_failed=True).missing) == ["a.mp4"]


def test_a_file_that_failed_and_was_changed_is_missing_and_its_failure_forgotten(desk):
    video = desk.video("a.mp4")
    desk.fail(desk.list(video).missing[0])
    desk.video("a.mp4", 1)
    assert names(desk.list(video).missing) == ["a.mp4"]
    assert desk.catalog.failures.rows() == []


def test_a_copy_that_is_read_after_its_clip_has_failed_is_listed_with_it(desk):
    (clip,) = desk.list(desk.video("a.mp4")).missing
    run = desk.catalog.runs.start("extract", "tiny", {})
    report = RunReport(run, "extract", "tiny", Counts(), Timings())
    with LiveRun(desk.store.root, dict).beating() as live:
        writer = ClipWriter("tiny", desk.catalog, report, Claims(live))
        writer.copies = copies = {}
        writer.take([(clip, BAD)])
        copies[clip.key.digest] = [desk.folder / "copy.mp4"]
        writer.note_late_copies()
    videos = [Path(row["video"]).name for row in desk.catalog.failures.rows()]
    assert videos == ["a.mp4", "copy.mp4"]
    assert report.counts.failed == 1


def test_a_file_that_was_gone_and_is_back_leaves_no_failure(desk):
    video = desk.video("a.mp4")
    desk.list(video)
    away = video.rename(video.with_suffix(".away"))
    (gone,) = desk.list(video).failures
    desk.catalog.failures.add(Failure(WHOLE, gone.error).row(video))
    away.rename(video)
    assert names(desk.list(video).missing) == ["a.mp4"]
    assert desk.catalog.failures.rows() == []


def test_the_failure_of_another_video_stays(desk):
    video, other = desk.video("a.mp4"), desk.video("b.mp4", 1)
    desk.fail(desk.list(video, other).missing[1])
    desk.video("a.mp4", 2)
    desk.list(video)
    assert len(desk.catalog.failures.rows()) == 1


def test_features_that_no_row_names_are_taken_into_the_catalog(desk):
    video = desk.video("a.mp4")
    (clip,) = desk.list(video).missing
    desk.seal(clip)
    assert names(desk.list(video).cached) == ["a.mp4"]
    (row,) = desk.catalog.clips.rows()
    assert (row["feature_key"], row["video"], row["num_frames"]) == (
        clip.key.digest, str(video), 2,
    )  # fmt: skip
    assert row["settings"] == clip.key.fields()


def test_damaged_features_that_no_row_names_are_put_away_and_made_anew(desk):
    video = desk.video("a.mp4")
    (clip,) = desk.list(video).missing
    desk.seal(clip)
    path = desk.store.path_of(clip.key.digest)
    path.write_bytes(path.read_bytes()[:100])
    assert names(desk.list(video).missing) == ["a.mp4"]
    assert list((desk.store.root / "quarantine").glob("*.h5"))


def test_a_renamed_video_is_cached_and_listed_under_its_new_name_alone(desk):
    video = desk.video("a.mp4")
    desk.seal(desk.list(video).missing[0])
    desk.list(video)
    renamed = video.rename(desk.folder / "b.mp4")
    assert names(desk.list(renamed).cached) == ["b.mp4"]
    assert [row["video"] for row in desk.catalog.clips.rows()] == [str(renamed)]


def test_a_copy_is_listed_beside_the_first(desk):
    video = desk.video("a.mp4")
    desk.seal(desk.list(video).missing[0])
    copy = shutil.copy(video, desk.folder / "copy.mp4")
    desk.list(video, copy)
    assert [row["video"] for row in desk.catalog.clips.rows()] == [str(video), str(copy)]


def test_a_caption_is_listed_for_each_file_that_holds_its_video(desk):
    video = desk.video("a.mp4")
    (clip,) = desk.list(video).missing
    desk.seal(clip)
    copy = shutil.copy(video, desk.folder / "copy.mp4")
    desk.list(video, copy)
    desk.catalog.captions.add(
        [
            {
                "caption_key": "1" * 64, "feature_key": clip.key.digest, "video": str(video),
                "start_s": 0.0, "end_s": None, "prompt_name": "color", "prompt": "What color?",
                "caption": "Red.", "model": "tiny", "quantization": "nf4", "flags": [],
                "num_tokens": 2, "seconds": 0.1, "settings": {},
            }
        ]
    )  # fmt: skip
    rows = desk.catalog.captions.rows()
    assert [(row["video"], row["caption"]) for row in rows] == [
        (str(video), "Red."), (str(copy), "Red."),
    ]  # fmt: skip
    assert [row["video"] for row in desk.catalog.captions.rows(video=str(copy))] == [str(copy)]


def test_a_video_that_cannot_be_cut_fails_once_and_is_known_then(desk):
    video = desk.folder / "text.mp4"
    video.write_text("no video")
    cutting = {"settings": settings(segment_s=2.0)}
    _, first = desk.find(video, **cutting)
    assert (first.found, first.failed) == (1, 1)
    (row,) = desk.catalog.failures.rows()
    assert row["reason"] == "not_a_video"
    _, again = desk.find(video, **cutting)
    assert (again.found, again.failed, again.skipped) == (1, 0, 1)
    _, retried = desk.find(video, **cutting, retry_failed=True)
    assert (retried.found, retried.failed) == (1, 1)


def test_a_long_video_is_cut_into_segments(desk):
    clips, counts = desk.find(desk.video("a.mp4"), settings=settings(segment_s=1.0))
    starts = [clip.key.start_s for clip in clips]
    assert starts == [float(second) for second in range(len(starts))]
    assert len(starts) >= 3
    assert clips[-1].key.end_s is None
    assert (counts.found, counts.unsearched) == (len(clips), 0)


def test_clips_of_which_the_end_is_not_seen_are_told(desk):
    video = desk.video("a.mp4")
    spans = ((0.0, 24.5), (0.0, 30.0), (1.0, 60.0))
    work = desk.list(video, spans=spans)
    (note,) = unseen(num_unseen(work.missing, settings()), settings())
    assert "first 24 s of a clip, and 2 are longer" in note
    assert unseen(num_unseen(work.missing, settings(strategy="spread")), settings()) == []
