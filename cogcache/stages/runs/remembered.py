"""Settings that a cache remembers: in its profiles or, if it is older, in its last run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogcache.catalog import Catalog
from cogcache.models import Checkpoint, published_pixels
from cogcache.settings import DEFAULT, Profile, Settings, as_toml, choose_profile, profile_of
from cogcache.store import add_profile, read_profiles
from cogcache.system import CachePaths


def remembered(root: Path, name: str | None, model: str | None) -> tuple[str, Profile] | None:
    """Return the profile of a cache that settings are to be taken from, with its name.

    Args:
        root: folder of the cache, which need not be there yet.
        name: of the profile that was asked for.
        model: that was asked for.

    Raises:
        CacheError: the folder is a cache of another format.
        ConfigError: the profile that was asked for is of another model.
    """
    if not CachePaths(root).mark.is_file():
        return None
    profiles = read_profiles(root)
    if not profiles and (last := _last_run(root)) is not None:
        profiles = {DEFAULT: last}
    return choose_profile(profiles, name, model)


def with_published_pixels(settings: Settings) -> Settings:
    """Return settings for a cache without features: frames as large as the authors' code has them.

    What the user set stays, 0 included; caches that were made otherwise keep what they have.
    """
    sampling = settings.sampling
    if sampling.model_fields_set & {"max_pixels", "min_pixels", "max_video_pixels"}:
        return settings
    model_type = Checkpoint.open(settings.model, settings.revision).config.get("model_type", "")
    if (pixels := published_pixels(str(model_type))) is None:
        return settings
    limits = {
        "min_pixels": pixels.frame_min,
        "max_pixels": pixels.frame_max,
        "max_video_pixels": pixels.clip_max,
    }
    return settings.model_copy(update={"sampling": sampling.model_copy(update=limits)})


def is_written(root: Path) -> bool:
    """Say whether a cache has profiles of its own, or was made before there were any."""
    return bool(read_profiles(root))


def remember(root: Path, settings: Settings) -> None:
    """Have a cache remember settings, where it has no profile of this name or model yet."""
    profiles, asked = read_profiles(root), settings.profile
    models = {each.get("model") for each in profiles.values()}
    if asked in profiles or (not asked and settings.model in models):
        return
    name = asked or (_name_of(settings.model) if profiles else DEFAULT)
    add_profile(root, name, as_toml(name, profile_of(settings)))


def _name_of(model: str) -> str:
    words: list[str] = re.findall(r"[A-Za-z0-9.]+", model.rstrip("/").rpartition("/")[2])
    return "-".join(words).lower() or "model"


def _last_run(root: Path) -> Mapping[str, Any] | None:
    """Return the settings of the last stage one of a cache that has no profile."""
    if not CachePaths(root).catalog.is_file():
        return None
    with Catalog(CachePaths(root).catalog) as catalog:
        return catalog.runs.last_settings("extract")
