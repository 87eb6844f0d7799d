"""Stage one on real files: what is made, what fails, what a second run does.

Each run with work to do starts a decode process, so claims share runs where they can.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from processes import child_processes
from scenes import catalog_of, partial_files, settings, write_scene
from videos import write_video

from cogcache.catalog.rows import FailureRow
from cogcache.errors import ConfigError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.cogvlm2.family import CogVLM2Family
from cogcache.stages.extract import extract
from cogcache.stages.runs.report import RunReport
from cogcache.stages.runs.report_lines import report_lines
from cogcache.store.reader import StoredFeatures
from cogcache.store.store import FeatureStore


@dataclass
class Made:
    """A folder of good and bad videos, a cache, and the report of the first run."""

    videos: Path
    cache: Path
    report: RunReport

    def features(self) -> dict[str, StoredFeatures]:
        """Features of the whole videos, by the video's name."""
        store = FeatureStore.open(self.cache)
        found = [store.read(key) for key in store]
        return {Path(each.attributes["video"]).name: each for each in found}

    def failures(self) -> dict[str, FailureRow]:
        with catalog_of(self.cache) as catalog:
            return {Path(row["video"]).name: row for row in catalog.failures.rows()}

    def listed(self) -> list[str]:
        with catalog_of(self.cache) as catalog:
            return [Path(row["video"]).name for row in catalog.clips.rows()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extract")
    videos = folder / "videos"
    videos.mkdir()
    write_scene(videos / "a.mp4", 0)
    write_scene(videos / "b.mp4", 1)
    shutil.copy(videos / "a.mp4", videos / "copy.mp4")
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("this is no video")
    (videos / "textcopy.mp4").write_text("this is no video")
    (videos / "link.mp4").symlink_to("nowhere.mp4")
    cut = (videos / "b.mp4").read_bytes()[:2000]
    (videos / "cut.mp4").write_bytes(cut)
    return Made(videos, folder / "cache", extract([videos], folder / "cache", settings()))


class Fault:
    """Puts a fault into the vision half's pass: `act` is called before each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[int] = []
        real = CogVLM2Family.encode

        def encode(family, model, clips, frames_per_batch):
            self.passes.append(frames_per_batch)
            found = self.act(real, family, model, clips, frames_per_batch)
            return real(family, model, clips, frames_per_batch) if found is None else found

        monkeypatch.setattr(CogVLM2Family, "encode", encode)

    def act(self, real, *arguments):
        return None


@pytest.fixture
def fault(monkeypatch):
    return Fault(monkeypatch)


# ---- one run over good and bad ------------------------------------------------------------------


def test_the_good_videos_are_made_and_the_bad_are_counted(made):
    counts = made.report.counts
    assert (counts.found, counts.done, counts.failed, counts.copies) == (6, 2, 4, 2)
    assert made.report.exit_status == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.mp4", "empty_file"),
        ("text.mp4", "not_a_video"),
        ("link.mp4", "missing"),
        ("cut.mp4", "not_a_video"),
    ],
)
def test_a_bad_video_is_a_row_with_its_reason(made, name, reason):
    row = made.failures()[name]
    assert (row["reason"], row["stage"], row["run"]) == (reason, "extract", made.report.run)
    assert str(made.videos / name) in row["message"]


def test_a_copy_of_a_bad_video_is_listed_too(made):
    assert "textcopy.mp4" in made.failures()


def test_a_copy_of_a_good_video_is_listed_too(made):
    assert made.listed() == ["a.mp4", "b.mp4", "copy.mp4"]


def test_features_are_those_of_the_vision_half(made):
    for stored in made.features().values():
        features = stored.tensors["features"]
        assert features.dtype == torch.bfloat16
        assert features.shape[0] == len(stored.attributes["timestamps_s"])
        assert stored.thumbnail[:2] == b"\xff\xd8"


def test_nothing_unfinished_is_left(made):
    assert partial_files(made.cache) == []


def test_only_shards_with_vision_weights_were_read(made):
    checkpoint = Checkpoint.open("tiny")
    vision = [name for name in checkpoint.weight_map if name.startswith("model.vision.")]
    assert sorted(made.report.bytes_by_shard) == checkpoint.shards_of(vision)
    described = checkpoint.tensors(vision).values()
    assert sum(made.report.bytes_by_shard.values()) == sum(each.num_bytes for each in described)


def test_planned_and_measured_peaks_are_in_the_row_of_the_run(made):
    with catalog_of(made.cache) as catalog:
        row = catalog.runs.rows()[0]
    assert row["status"] == "failures"
    assert 0 < row["planned_peak_bytes"] < 2 * row["measured_peak_bytes"]
    assert set(row["split"]) >= {"digest", "load", "wait_for_frames", "encode"}
    assert row["counts"]["done"] == 2
    assert row["report"]["bytes_by_shard"] == dict(made.report.bytes_by_shard)


def test_the_report_says_what_was_done_in_one_line(made):
    first = report_lines(made.report)[0]
    assert first.startswith(
        "extract: 2 clips made, 0 there already, 2 the same as others, 4 failed"
    )


def test_a_second_run_makes_nothing_and_tries_nothing_again(made, fault):
    tries = {name: row["tries"] for name, row in made.failures().items()}
    report = extract([made.videos], made.cache, settings())
    assert (report.counts.done, report.counts.cached) == (0, 2)
    assert report.counts.skipped == 2  # text.mp4 and cut.mp4, whose bytes are the same
    assert made.failures()["text.mp4"]["tries"] == tries["text.mp4"]
    assert report.exit_status == 1
    assert report.bytes_by_shard == {}
    assert fault.passes == []


# ---- repaired files, and what failed tried again ------------------------------------------------


def test_a_repaired_file_is_made_unasked_and_what_failed_only_when_asked(made):
    write_scene(made.videos / "empty.mp4", 3)
    write_scene(made.videos / "text.mp4", 4)
    before = made.failures()["cut.mp4"]["tries"]
    report = extract([made.videos], made.cache, settings(), retry_failed=True)
    assert report.counts.done == 2
    after = made.failures()
    assert after["cut.mp4"]["tries"] == before + 1
    assert set(after) == {"cut.mp4", "link.mp4", "textcopy.mp4"}


# ---- parts of videos, and faults of the machine -------------------------------------------------


def test_a_part_of_a_video_has_the_times_of_the_whole(made, tmp_path):
    cache = tmp_path / "cache"
    report = extract([made.videos / "a.mp4"], cache, settings(), spans=[(2.0, 4.0), (90.0, None)])
    assert (report.counts.done, report.counts.failed) == (1, 1)
    store = FeatureStore.open(cache)
    (stored,) = [store.read(key) for key in store]
    times = stored.attributes["timestamps_s"]
    assert 2.0 <= times[0] <= times[-1] < 4.0
    assert (stored.attributes["start_s"], stored.attributes["end_s"]) == (2.0, 4.0)
    with catalog_of(cache) as catalog:
        (failure,) = catalog.failures.rows()
    assert (failure["reason"], failure["start_s"]) == ("clip_outside", 90.0)


def test_out_of_memory_halves_the_frames_of_a_pass_and_the_run_goes_on(made, fault, tmp_path):
    def run_out(real, family, model, clips, frames_per_batch):
        if frames_per_batch > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fault.act = run_out
    videos, cache = [made.videos / "a.mp4", made.videos / "b.mp4"], tmp_path / "cache"
    report = extract(videos, cache, settings(frames_per_batch=12))
    assert report.counts.done == 2
    assert fault.passes == [12, 6, 3]
    again = Made(made.videos, cache, report).features()
    for name, stored in again.items():
        first = made.features()[name].tensors["features"]
        assert torch.allclose(stored.tensors["features"].float(), first.float(), atol=0.05)


def test_out_of_memory_with_one_frame_offloads_blocks_and_the_run_goes_on(made, fault, tmp_path):
    def run_out(real, family, model, clips, frames_per_batch):
        blocks = [m for m in model.modules() if getattr(getattr(m, "_hf_hook", None), "offload", 0)]
        if not blocks:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fault.act = run_out
    videos, cache = [made.videos / "a.mp4", made.videos / "b.mp4"], tmp_path / "cache"
    report = extract(videos, cache, settings(frames_per_batch=2))
    assert report.counts.done == 2
    assert fault.passes[:2] == [2, 1]
    assert any(
        "loaded anew, with more of it elsewhere" in line
        for line in report_lines(report, verbose=True)
    )
    again = Made(made.videos, cache, report).features()
    for name, stored in again.items():
        first = made.features()[name].tensors["features"]
        assert torch.allclose(stored.tensors["features"].float(), first.float(), atol=0.05)


def test_a_clip_that_no_memory_suffices_for_fails_alone(made, fault, tmp_path):
    first = []

    def run_out(real, family, model, clips, frames_per_batch):
        brightness = float(clips[0].tensors["pixel_values_videos"].float().sum())
        first.append(brightness)
        if len(clips) > 1 or brightness == first[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fault.act = run_out
    videos, cache = [made.videos / "a.mp4", made.videos / "b.mp4"], tmp_path / "cache"
    report = extract(videos, cache, settings(frames_per_batch=100))
    assert (report.counts.done, report.counts.failed) == (1, 1)
    with catalog_of(cache) as catalog:
        assert [row["reason"] for row in catalog.failures.rows()] == ["out_of_memory"]


def test_features_that_are_no_numbers_fail_their_clip_alone(made, fault, tmp_path):
    def spoil(real, *arguments):
        encoded = real(*arguments)
        encoded[0].tensors["features"][0] = torch.nan
        return encoded

    fault.act = spoil
    videos, cache = [made.videos / "a.mp4", made.videos / "b.mp4"], tmp_path / "cache"
    report = extract(videos, cache, settings(frames_per_batch=100))
    assert (report.counts.done, report.counts.failed) == (1, 1)
    with catalog_of(cache) as catalog:
        assert [row["reason"] for row in catalog.failures.rows()] == ["not_finite"]


def test_a_signal_ends_the_run_in_order_and_the_next_run_does_the_rest(made, fault, tmp_path):
    def ask_to_stop(real, *arguments):
        if len(fault.passes) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    fault.act = ask_to_stop
    cache, cut = tmp_path / "cache", settings(segment_s=0.5, frames_per_batch=1)
    first = extract([made.videos / "a.mp4"], cache, cut)
    assert first.stopped == "SIGTERM"
    assert first.exit_status == 128 + signal.SIGTERM
    assert 0 < first.counts.done < first.counts.found
    assert partial_files(cache) == []
    second = extract([made.videos / "a.mp4"], cache, cut)
    assert second.stopped is None
    assert (second.counts.cached, second.counts.done) == (
        first.counts.done, first.counts.found - first.counts.done,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("a fault of ours"), "error"), (KeyboardInterrupt(), "running")],
)
def test_a_bug_and_a_second_ctrl_c_end_the_run_at_once_and_leave_nothing_unfinished(
    made, fault, tmp_path, error, status
):
    def break_off(real, *arguments):
        if len(fault.passes) == 2:
            raise error

    fault.act = break_off
    cache = tmp_path / "cache"
    videos = [made.videos / "a.mp4", made.videos / "b.mp4"]
    before = set(child_processes())
    with pytest.raises(type(error)) as held:
        extract(videos, cache, settings(frames_per_batch=1))
    assert held.value is error
    assert not set(child_processes()) - before
    assert partial_files(cache) == []
    with catalog_of(cache) as catalog:
        assert catalog.runs.rows()[-1]["status"] == status
        assert catalog.failures.rows() == []


def test_a_folder_without_videos_is_misuse(tmp_path):
    with pytest.raises(ConfigError, match="holds no video"):
        extract([tmp_path], tmp_path / "cache", settings())


def test_a_jump_of_the_time_stamps_is_cut_into_no_clips(tmp_path):
    times_s = [begin_s + number / 10 for begin_s in (0.0, 1e9) for number in range(25)]
    film = write_video(tmp_path / "jump.mkv", times_s=times_s)
    report = extract([film], tmp_path / "cache", settings(segment_s=1000.0))
    with catalog_of(tmp_path / "cache") as catalog:
        spans = sorted(row["start_s"] for row in catalog.clips.rows())
        # The frame before the jump is held for an hour at most.
        assert spans[:-1] == [0.0, 1000.0, 2000.0, 3000.0]
        assert spans[-1] == pytest.approx(1e9, abs=1000.0)
        assert catalog.failures.rows() == []
    assert report.counts.done == report.counts.found == len(spans)
