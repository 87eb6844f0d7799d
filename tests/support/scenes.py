"""Clips that the bundled model knows, and the settings that tests of the stages share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cogcache.catalog.catalog import Catalog
from cogcache.selftest.shapes import Scene, draw_scene, write_clip
from cogcache.settings.settings import Settings, load_settings


def write_scene(path: Path, seed: int = 0, num_frames: int | None = None) -> Scene:
    """Write a clip of moving shapes as H.264 and return what it shows."""
    scene = draw_scene(np.random.default_rng(seed), num_frames)
    write_clip(scene, path)
    return scene


def settings(**overrides: object) -> Settings:
    """Settings of the bundled model, with one decode worker: processes cost seconds."""
    return load_settings(None, {"decode_workers": 1, **overrides})


def catalog_of(cache: Path) -> Catalog:
    """Open the catalog of a cache."""
    return Catalog(cache / "catalog.sqlite")


def partial_files(cache: Path) -> list[Path]:
    """Return what a writer left unfinished."""
    return [*cache.rglob("*.partial"), *cache.rglob(".*.partial")]
