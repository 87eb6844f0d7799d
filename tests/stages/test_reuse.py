"""Frames that clips share are encoded once, and their features are those of a run without that."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from scenes import catalog_of, settings, write_scene

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import ClipTensors
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of
from cogcache.stages.extract import extract
from cogcache.stages.runs.report import RunReport
from cogcache.stages.runs.report_lines import report_lines
from cogcache.store.store import FeatureStore
from cogcache.video.reading import read_clip

FIRST, SECOND = (0.0, 4.0), (2.0, 6.0)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_scene(path, 3, 60)
    return path


@pytest.fixture(scope="module")
def alone(video, tmp_path_factory) -> Path:
    """A cache with the second clip and no other, in bfloat16."""
    cache = tmp_path_factory.mktemp("alone") / "cache"
    assert reused(extract([video], cache, settings(), spans=[SECOND])) is None
    return cache


def reused(report: RunReport) -> tuple[int, int] | None:
    """Return how many of how many frames the report says were encoded before."""
    found = re.search(
        r"(\d+) of (\d+) frames were encoded before", "\n".join(report_lines(report, verbose=True))
    )
    return (int(found[1]), int(found[2])) if found else None


def features(cache: Path) -> dict[tuple[float, float | None], torch.Tensor]:
    store = FeatureStore.open(cache)
    with catalog_of(cache) as catalog:
        rows = catalog.clips.rows()
    return {
        (row["start_s"], row["end_s"]): store.read(row["feature_key"]).tensors["features"]
        for row in rows
    }


def test_a_later_run_encodes_only_frames_that_no_clip_has(video, alone, tmp_path):
    cache = tmp_path / "cache"
    assert reused(extract([video], cache, settings(), spans=[FIRST])) is None
    assert reused(extract([video], cache, settings(), spans=[SECOND])) == (2, 5)
    assert torch.equal(features(cache)[SECOND], features(alone)[SECOND])


@pytest.mark.parametrize("frames_per_batch", [1, 48])
def test_clips_of_one_run_share_frames_whatever_the_batch(video, alone, tmp_path, frames_per_batch):
    asked = settings(frames_per_batch=frames_per_batch)
    report = extract([video], tmp_path / "cache", asked, spans=[FIRST, SECOND, (1.0, 5.0)])
    assert reused(report) == (6, 15)
    assert torch.equal(features(tmp_path / "cache")[SECOND], features(alone)[SECOND])


def test_a_denser_sampling_encodes_only_what_is_between(video, tmp_path):
    thin, dense = (settings(strategy="uniform", max_frames=n, window_s=5.0) for n in (3, 5))
    fresh = tmp_path / "fresh"
    extract([video], fresh, dense)
    extract([video], tmp_path / "cache", thin)
    shared = indices(video, thin) & indices(video, dense)
    assert reused(extract([video], tmp_path / "cache", dense)) == (len(shared), 5)
    dense_ones = [f for f in features_by_length(tmp_path / "cache") if len(f) == 5]
    assert torch.equal(dense_ones[0], features_by_length(fresh)[0])


def indices(video, asked) -> set[int]:
    return {*read_clip(video, asked.sampling, 0.0, None).frame_indices.tolist()}


def features_by_length(cache: Path) -> list[torch.Tensor]:
    store = FeatureStore.open(cache)
    return [store.read(key).tensors["features"] for key in store]


@pytest.mark.parametrize("changes", [{"vision_dtype": "float32"}, {"cache_point": "pooled"}])
def test_features_of_another_kind_are_not_taken(video, alone, tmp_path, changes):
    cache = Path(shutil.copytree(alone, tmp_path / "cache"))
    assert reused(extract([video], cache, settings(**changes), spans=[FIRST])) is None


def test_a_damaged_neighbour_costs_no_clip(video, alone, tmp_path, caplog):
    cache = Path(shutil.copytree(alone, tmp_path / "cache"))
    store = FeatureStore.open(cache)
    [key] = store
    path = store.path_of(key)
    path.write_bytes(path.read_bytes()[:-4000])
    report = extract([video], cache, settings(), spans=[FIRST])
    assert (report.counts.done, reused(report)) == (1, None)
    assert "encoded anew" in caplog.text
    assert path.exists(), "it is for a run that wants it to set it aside"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_of_a_frame_do_not_depend_on_the_frames_beside_it(video, dtype):
    """On the CPU. In float32 few rows may go through other arithmetic, last bits apart: MKL decides
    that by the processor."""
    family = family_of(Checkpoint.open("tiny"))
    assert family.frames_alone
    model = load_half(WholeModel.of(family.checkpoint), "vision", dtype=dtype).model
    clip = read_clip(video, settings(strategy="uniform", max_frames=24).sampling, 0.0, None)
    pixels = family.prepare(clip, dtype).tensors["pixel_values_videos"]

    def encoded(part: torch.Tensor) -> torch.Tensor:
        [made] = family.encode(model, [ClipTensors({"pixel_values_videos": part})], 48)
        return made.tensors["features"]

    whole = encoded(pixels)
    most = 1e-4 if dtype == torch.float32 else 0.0
    for count in (1, 2, 3, 5, 8, 13, 23):
        assert torch.allclose(encoded(pixels[:count]), whole[:count], rtol=0, atol=most), count
        assert torch.allclose(encoded(pixels[-count:]), whole[-count:], rtol=0, atol=most), count
