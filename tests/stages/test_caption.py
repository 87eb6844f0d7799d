"""Stage two on real feature files: captions from the cache, without videos or vision weights."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from scenes import catalog_of, settings, write_scene

from cogcache.catalog.rows import CaptionRow
from cogcache.errors import CacheError, ConfigError, MissingShardError
from cogcache.models.checkpoints.checkpoint import INDEX, Checkpoint
from cogcache.models.cogvlm2.modeling import CogVLM2VideoForConditionalGeneration
from cogcache.models.halves.waiting import Parked
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.stages.runs import opened
from cogcache.stages.runs.report_lines import report_lines
from cogcache.store.store import FeatureStore

COLOR = "What color is the shape?"
NUM_CLIPS = 3


def asked(**overrides: object):
    """Settings of stage two, unquantised unless said otherwise: that loads quicker."""
    defaults = {"quantization": "none", "max_new_tokens": 24, "prompts": {"color": COLOR}}
    return settings(**{**defaults, **overrides})


def captions(cache: Path) -> list[CaptionRow]:
    with catalog_of(cache) as catalog:
        return catalog.captions.rows()


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A cache without captions; its videos are gone."""
    folder = tmp_path_factory.mktemp("caption")
    (folder / "videos").mkdir()
    truths = {}
    for seed in range(NUM_CLIPS):
        path = folder / "videos" / f"{seed}.mp4"
        truths[str(path)] = write_scene(path, seed).answer("color")
    extract([folder / "videos"], folder / "cache", settings())
    shutil.rmtree(folder / "videos")
    return folder / "cache", truths


@pytest.fixture
def cache(extracted, tmp_path):
    return Path(shutil.copytree(extracted[0], tmp_path / "cache"))


def without_shards_of(half: str, folder: Path) -> Path:
    """Copy the bundled model without the shards that hold nothing but the other half."""
    tiny = Checkpoint.open("tiny")
    is_vision = {name: name.startswith("model.vision.") for name in tiny.weight_map}
    kept = tiny.shards_of([name for name, yes in is_vision.items() if yes == (half == "vision")])
    shutil.copytree(tiny.folder, folder)
    dropped = {*tiny.weight_map.values()} - {*kept}
    assert dropped
    for shard in dropped:
        (folder / shard).unlink()
    assert (folder / INDEX).is_file()
    return folder


# ---- captions -----------------------------------------------------------------------------------


def test_each_clip_gets_the_caption_that_is_true_of_it(cache, extracted):
    report = caption(cache, asked())
    assert (report.counts.found, report.counts.done) == (NUM_CLIPS, NUM_CLIPS)
    assert {row["video"]: row["caption"] for row in captions(cache)} == extracted[1]


def test_a_second_run_makes_nothing(cache):
    caption(cache, asked())
    report = caption(cache, asked())
    assert (report.counts.done, report.counts.cached) == (0, NUM_CLIPS)
    assert report.bytes_by_shard == {}
    assert len(captions(cache)) == NUM_CLIPS


def test_captions_that_another_run_makes_as_this_one_begins_are_counted(cache, monkeypatch):
    begin = opened.at_work

    def late(*arguments):
        monkeypatch.setattr(opened, "at_work", begin)
        caption(cache, asked())
        return begin(*arguments)

    monkeypatch.setattr(opened, "at_work", late)
    counts = caption(cache, asked()).counts
    assert counts.done == 0 < counts.found == counts.cached


def test_a_new_prompt_adds_captions_beside_the_old(cache):
    caption(cache, asked())
    both = {"color": COLOR, "shape": "What shape is it?"}
    report = caption(cache, asked(prompts=both))
    assert (report.counts.done, report.counts.cached) == (NUM_CLIPS, NUM_CLIPS)
    rows = captions(cache)
    assert {row["prompt_name"] for row in rows} == {"color", "shape"}
    assert len({row["caption"] for row in rows}) > 3


def test_other_settings_make_other_captions(cache):
    caption(cache, asked())
    report = caption(cache, asked(max_new_tokens=3, retry=False))
    assert report.counts.done == NUM_CLIPS
    assert len(captions(cache)) == 2 * NUM_CLIPS


def test_a_caption_without_an_end_is_flagged(cache):
    caption(cache, asked(max_new_tokens=1, retry=False))
    assert all("no_end" in row["flags"] for row in captions(cache))


def test_videos_that_are_named_are_captioned_alone_though_their_files_are_gone(cache, extracted):
    first, second, _ = extracted[1]
    caption(cache, asked(), videos=[first, Path(second)])
    assert [row["video"] for row in captions(cache)] == [first, second]


def test_a_folder_that_is_gone_stands_for_its_cached_videos(cache, extracted):
    folder = Path(next(iter(extracted[1]))).parent
    assert caption(cache, asked(), videos=[folder]).counts.done == NUM_CLIPS


def test_a_video_that_nobody_knows_is_misuse(cache):
    with pytest.raises(ConfigError, match="no such file"):
        caption(cache, asked(), videos=["other.mp4"])


def test_a_video_that_is_not_in_the_cache_is_said_to_be_missing(cache, tmp_path):
    write_scene(tmp_path / "other.mp4", 9)
    report = caption(cache, asked(), videos=[tmp_path / "other.mp4"])
    assert report.counts.found == 0
    assert "`cogcache extract`" in report_lines(report)[0]


# ---- the half and its machine -------------------------------------------------------------------


def test_the_shards_of_the_language_half_suffice(cache, extracted, tmp_path, caplog):
    model = without_shards_of("language", tmp_path / "model")
    report = caption(cache, asked(model=str(model)))
    assert {row["video"]: row["caption"] for row in captions(cache)} == extracted[1]
    assert set(report.bytes_by_shard) <= {path.name for path in model.iterdir()}
    assert "captioning features of tiny with" in caplog.text


def test_features_of_two_models_are_not_mixed_where_the_vision_half_is_not_there(cache, tmp_path):
    with catalog_of(cache) as catalog:
        first, *_ = catalog.clips.rows()
        other = {**first["settings"], "vision_digest": "0" * 64}
        row = {**first, "feature_key": "0" * 64, "model": "other", "settings": other}
        catalog.clips.add([{name: row[name] for name in row if name not in ("created_at", "run")}])
    model = without_shards_of("language", tmp_path / "model")
    with pytest.raises(CacheError, match="features of other and tiny"):
        caption(cache, asked(model=str(model)))


def test_the_shards_of_the_vision_half_do_not(cache, tmp_path):
    model = without_shards_of("vision", tmp_path / "model")
    with pytest.raises(MissingShardError, match="missing"):
        caption(cache, asked(model=str(model)))


def test_in_4_bits_the_report_says_what_was_verified(cache):
    report = caption(cache, asked(quantization="nf4"))
    assert "nf4: 21 of 22 linear layers" in report.quantization
    assert any("nf4" in line for line in report_lines(report, verbose=True))


def test_planned_and_measured_peaks_are_in_the_row_of_the_run(cache):
    caption(cache, asked())
    with catalog_of(cache) as catalog:
        row = catalog.runs.rows()[-1]
    assert (row["command"], row["status"]) == ("caption", "done")
    assert 0 < row["planned_peak_bytes"] < 2 * row["measured_peak_bytes"]
    assert set(row["split"]) >= {"load", "generate", "commit"}


# ---- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_frames": 5}, r"sampling\.max_frames is 24 in the cache, 5 in this run"),
        ({"vision_dtype": "float32"}, "dtype is 'bfloat16' in the cache, 'float32' in this run"),
    ],
)
def test_settings_of_stage_one_that_differ_are_named(cache, changed, message):
    with pytest.raises(CacheError, match=message):
        caption(cache, asked(**changed))


def test_of_clips_that_all_differ_the_nearest_is_told(tmp_path):
    write_scene(tmp_path / "a.mp4", 0)
    for vision_dtype in ("float32", "bfloat16"):
        extract([tmp_path / "a.mp4"], tmp_path / "cache", settings(vision_dtype=vision_dtype))
    with pytest.raises(CacheError, match=r"settings: sampling\.max_frames is") as told:
        caption(tmp_path / "cache", asked(max_frames=5))
    assert "dtype" not in told.value.problem


def test_a_folder_that_is_no_cache_is_misuse(tmp_path):
    with pytest.raises(CacheError, match="no cache"):
        caption(tmp_path / "nothing", asked())


def test_a_damaged_feature_file_fails_its_clip_and_is_made_anew_by_stage_one(tmp_path):
    video, cache = tmp_path / "a.mp4", tmp_path / "cache"
    write_scene(video, 0)
    write_scene(tmp_path / "b.mp4", 1)
    extract([tmp_path], cache, settings())
    store = FeatureStore.open(cache)
    with catalog_of(cache) as catalog:
        key = next(row["feature_key"] for row in catalog.clips.rows(video=str(video)))
    content = bytearray(store.path_of(key).read_bytes())
    content[len(content) // 2] ^= 1
    store.path_of(key).write_bytes(content)

    two = {"color": COLOR, "shape": "What shape is it?"}
    report = caption(cache, asked(prompts=two))
    assert (report.counts.done, report.counts.failed, report.exit_status) == (2, 2, 1)
    with catalog_of(cache) as catalog:
        (failure,) = catalog.failures.rows()
    assert (failure["reason"], failure["video"], failure["tries"]) == (
        "features_corrupt", str(video), 1,
    )  # fmt: skip
    assert (cache / "quarantine" / f"{key}.h5").is_file()

    assert extract([tmp_path], cache, settings()).counts.done == 1
    with catalog_of(cache) as catalog:
        assert catalog.failures.rows() == []
    assert caption(cache, asked(prompts=two)).counts.done == 2


class Fault:
    """Puts a fault into the model: `act` is called with the number of each pass through it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.lengths: list[int] = []
        real = CogVLM2VideoForConditionalGeneration.forward

        def forward(model, *arguments, **named):
            ids = named.get("input_ids", arguments[0] if arguments else None)
            self.model = model
            self.rows.append(len(ids) if ids is not None else 0)
            self.lengths.append(ids.shape[1] if ids is not None else 0)
            self.act(len(self.rows))
            return real(model, *arguments, **named)

        monkeypatch.setattr(CogVLM2VideoForConditionalGeneration, "forward", forward)

    def act(self, number: int) -> None:
        pass

    def unless_parked(self) -> None:
        """Run out of memory as long as no layer waits elsewhere."""
        hooks = (getattr(module, "_hf_hook", None) for module in self.model.modules())
        if not any(isinstance(hook, Parked) for hook in hooks):
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def fault(monkeypatch):
    return Fault(monkeypatch)


def test_out_of_memory_halves_the_batch_and_all_captions_are_made(cache, extracted, fault):
    def run_out(number: int) -> None:
        if number == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fault.act = run_out
    report = caption(cache, asked())
    assert report.counts.done == NUM_CLIPS
    assert {row["video"]: row["caption"] for row in captions(cache)} == extracted[1]


@pytest.mark.parametrize("batch", [8, 1])
@pytest.mark.parametrize("place", ["first batch", "mid-run", "decoding"])
def test_out_of_memory_anywhere_ends_with_all_captions(cache, extracted, fault, place, batch):
    raised = []

    def run_out(number: int) -> None:
        decoding = place == "decoding" and fault.lengths[-1] == 1
        if not raised and (decoding or number == {"first batch": 1, "mid-run": 5}.get(place)):
            raised.append(number)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fault.act = run_out
    report = caption(cache, asked(clips_per_batch=batch))
    assert report.counts.done == NUM_CLIPS
    assert raised
    made = {row["video"]: row["caption"] for row in captions(cache)}
    assert made == extracted[1] or batch == 1
    assert any("memory ran out" in line for line in report_lines(report, verbose=True))


def test_out_of_memory_with_one_caption_offloads_layers(cache, extracted, fault):
    fault.act = lambda number: fault.unless_parked()
    report = caption(cache, asked(clips_per_batch=1, quantization="nf4"))
    assert report.counts.done == NUM_CLIPS
    assert any(
        "loaded anew, with more of it elsewhere" in line
        for line in report_lines(report, verbose=True)
    )
    with catalog_of(cache) as catalog:
        assert catalog.failures.rows() == []


def test_a_caption_that_no_memory_suffices_for_fails_alone(cache, extracted, fault):
    def run_out(number: int) -> None:
        if fault.lengths[-1] == max(fault.lengths):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fault.act = run_out
    report = caption(cache, asked(clips_per_batch=1))
    assert report.counts.failed
    assert report.counts.done + report.counts.failed == NUM_CLIPS
    with catalog_of(cache) as catalog:
        assert {row["reason"] for row in catalog.failures.rows()} == {"out_of_memory"}


def test_a_signal_ends_the_run_in_order_and_the_next_run_does_the_rest(cache, fault):
    def ask_to_stop(number: int) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)

    fault.act = ask_to_stop
    first = caption(cache, asked(clips_per_batch=1))
    assert (first.stopped, first.exit_status) == ("SIGINT", 130)
    assert first.counts.done == len(captions(cache)) < NUM_CLIPS
    fault.act = lambda number: None
    second = caption(cache, asked(clips_per_batch=1))
    assert second.counts.cached + second.counts.done == NUM_CLIPS


def test_a_bug_ends_the_run(cache, fault):
    def break_off(number: int) -> None:
        raise ValueError("a fault of ours")

    fault.act = break_off
    with pytest.raises(ValueError, match="a fault of ours"):
        caption(cache, asked())
    with catalog_of(cache) as catalog:
        assert catalog.failures.rows() == []
