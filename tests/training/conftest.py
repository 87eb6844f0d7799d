from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from trained_caches import NUM_CLIPS, import_set, trained

from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.stages.extract import extract


@pytest.fixture(scope="package")
def truths() -> dict[str, str]:
    """The true captions, by the video's name."""
    scenes = {f"{n}.mp4": draw_scene(np.random.default_rng(700 + n)) for n in range(NUM_CLIPS)}
    return {name: scene.answer("detail") for name, scene in scenes.items()}


@pytest.fixture(scope="package")
def made(tmp_path_factory, truths) -> Path:
    """A cache of `tiny` with a set of captions in other words."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "videos").mkdir()
    for number, name in enumerate(truths):
        scene = draw_scene(np.random.default_rng(700 + number))
        write_clip(scene, folder / "videos" / name)
    cache = folder / "cache"
    extract([str(folder / "videos")], cache, load_settings(None, {"decode_workers": 1}))
    import_set(cache, "other", lambda name: f"Slowly or quickly: {truths[name]}")
    return cache


@pytest.fixture
def cache(made, tmp_path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(made, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="package")
def done(made, tmp_path_factory) -> Path:
    """An adapter, trained without a break."""
    out = tmp_path_factory.mktemp("done") / "adapter"
    trained(made, out)
    return out
