"""Limits of pixels, for families that take frames at their own size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from scenes import settings, write_scene
from zoo import LLAVA_ONEVISION, QWEN2_VL, QWEN3_VL

from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.derived.pixels import published_pixels
from cogcache.models.describe import describe
from cogcache.models.registry import family_of
from cogcache.settings.stage_one import PixelLimits, Sampling
from cogcache.stages.extract import extract
from cogcache.stages.runs.remembered import with_published_pixels

SIDE = 16
"""Pixels of a token's side, in the small checkpoints."""


@pytest.fixture(scope="module", params=[QWEN2_VL, QWEN3_VL], ids=lambda animal: animal.name)
def qwen(request, tmp_path_factory) -> Path:
    return request.param.write(tmp_path_factory.mktemp(request.param.name))


def tokens(model: Path, pixels: PixelLimits | None, num_frames: int = 4) -> int:
    """Count the feature rows of a clip; two frames share theirs."""
    shown = describe(str(model), num_frames=num_frames, size=(160, 160), pixels=pixels)
    return json.loads(shown.cached["features"].partition(" ")[2])[0]


def test_a_frame_is_scaled_down_to_the_most_pixels(qwen):
    assert tokens(qwen, PixelLimits(frame_max=64 * 64)) == 2 * (64 // SIDE) ** 2
    assert tokens(qwen, PixelLimits(frame_max=32 * 32)) == 2 * (32 // SIDE) ** 2


def test_a_frame_is_scaled_up_to_the_least_pixels(qwen):
    limits = PixelLimits(frame_min=320 * 320, frame_max=640 * 640)
    assert tokens(qwen, limits) == 2 * (320 // SIDE) ** 2


def test_the_limit_of_a_clip_is_shared_among_its_frames(qwen):
    limits = PixelLimits(frame_min=256, frame_max=64 * 64, clip_max=8 * 32 * 32)
    assert tokens(qwen, limits, num_frames=8) == 4 * (32 // SIDE) ** 2
    assert tokens(qwen, limits, num_frames=2) == (64 // SIDE) ** 2


def test_a_family_of_one_size_refuses_limits_before_any_clip(tmp_path):
    model = LLAVA_ONEVISION.write(tmp_path / "model")
    write_scene(tmp_path / "a.mp4", 0, num_frames=4)
    for each in (str(model), "tiny"):
        with pytest.raises(ConfigError, match="takes frames of one size"):
            extract([tmp_path / "a.mp4"], tmp_path / "cache", settings(model=each, max_pixels=5000))


def test_the_authors_limits_are_those_of_qwen_vl_utils():
    assert published_pixels("qwen2_5_vl") == PixelLimits(100_352, 602_112, 180_633_600)
    assert published_pixels("llava_onevision") is None


def test_a_cache_without_features_gets_the_authors_limits_and_keeps_them(qwen, tmp_path):
    model = str(qwen)
    name = str(Checkpoint.open(model).config["model_type"])
    made = with_published_pixels(settings(model=model))
    assert made.sampling.pixels == published_pixels(name)
    left_alone = settings(model=model, max_pixels=0)
    assert with_published_pixels(left_alone) == left_alone
    assert family_of(Checkpoint.open(model)).published_pixels() == made.sampling.pixels


def test_a_cache_with_features_keeps_its_frames(qwen, tmp_path, monkeypatch):
    """What was made before there were limits is found again, by the same command."""
    monkeypatch.delenv("COGCACHE_MODEL")
    write_scene(tmp_path / "a.mp4", 0, num_frames=20)
    cache, asked = tmp_path / "cache", [f"--model={qwen}", "--decode-workers=1"]
    extract([tmp_path / "a.mp4"], cache, settings(model=str(qwen), max_frames=2))
    mark = cache / "cogcache.toml"
    mark.write_text(mark.read_text().partition("\n[profile")[0])  # as older versions wrote it
    run = CliRunner().invoke(main, ["extract", str(tmp_path / "a.mp4"), f"--cache={cache}", *asked])
    assert "0 clips made, 1 there already" in run.output
    assert "has no profile yet" in run.output


def test_limits_are_told_apart_in_the_key():
    assert Sampling(max_pixels=602_112).fields() != Sampling().fields()
