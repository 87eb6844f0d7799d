"""Compiled vision blocks: features of their own key, near the plain ones, or no run at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cogcache.catalog.catalog import Catalog
from cogcache.keys import computes_in
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.compiled import compile_blocks
from cogcache.models.halves.load import load_half
from cogcache.models.registry import family_of
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.stages.extract import extract
from cogcache.video.reading import read_clip

COMPILED = load_settings(None, {"compile": True})


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_clip(draw_scene(np.random.default_rng(7)), path)
    return path


def test_features_of_compiled_blocks_have_a_key_of_their_own():
    assert computes_in("bfloat16", compiled=True) == "bfloat16, compiled"
    assert computes_in("bfloat16", compiled=False) == "bfloat16"


def test_without_a_compiler_it_ends_before_the_run(video, tmp_path):
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "cogcache", "extract", str(video), "--cache", str(cache)]
    without = {"PATH": str(tmp_path), "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "code")}
    done = subprocess.run(
        [*command, "--compile", "--device", "cpu"],
        check=False, capture_output=True, text=True, env={**os.environ, **without},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "--compile: torch.compile cannot make code for cpu" in done.stderr
    assert "install a C++ compiler such as g++, or leave --compile out" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(cache.rglob("*.h5"))


@pytest.mark.slow
def test_compiled_features_are_near_the_plain_ones_whatever_the_batch(video):
    """Slow: compiling takes most of a minute."""
    family = family_of(Checkpoint.open("tiny"))
    plain, compiled = (load_half("tiny", "vision").model for _ in range(2))
    compile_blocks(compiled)
    clip = family.prepare(read_clip(video, COMPILED.sampling), torch.bfloat16)
    [wanted] = family.encode(plain, [clip], 48)
    found = [family.encode(compiled, [clip], count)[0].tensors["features"] for count in (48, 3, 2)]
    assert all(torch.equal(each, found[0]) for each in found)
    difference = (found[0].float() - wanted.tensors["features"].float()).norm()
    assert difference / wanted.tensors["features"].float().norm() < 0.02


@pytest.mark.slow
def test_compiled_and_plain_features_lie_side_by_side(video, tmp_path):
    """Slow: compiling takes most of a minute."""
    for settings in (COMPILED, load_settings(None, {})):
        assert extract([str(video)], tmp_path / "cache", settings).counts.done == 1
    again = extract([str(video)], tmp_path / "cache", COMPILED)
    assert (again.counts.cached, again.counts.done) == (1, 0)
    with Catalog(tmp_path / "cache" / "catalog.sqlite") as catalog:
        found = {clip["settings"]["dtype"] for clip in catalog.clips.rows()}
    assert found == {"bfloat16", "bfloat16, compiled"}
    assert len(list((tmp_path / "cache" / "features").rglob("*.h5"))) == 2
