"""What a cache remembers of the settings that it was made with, and where settings come from.

Later ones override earlier ones: defaults, the cache's profile, the TOML file, the environment,
options. A profile holds what the features depend on: the model, which frames, how videos are cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from cogcache.errors import ConfigError
from cogcache.settings import Leaf, Settings, leaves

Profile = Mapping[str, Any]
"""As a TOML table: `model` and `revision`, and the tables `sampling`, `clips` and `vision`."""
DEFAULT: Final = "default"
"""Name of the first profile of a cache."""
NO_MODEL: Final = "no model was named, and the cache remembers none"
MODELS: Final = """--model takes a folder, a hub id, or tiny; for example
  --config cogvlm2-caption         THUDM/cogvlm2-llama3-caption, 23.3 GiB to download
  --model Qwen/Qwen2.5-VL-3B-Instruct
  --model tiny                     the toy in the package: knows only moving coloured shapes
`cogcache configs` lists what there is to start from, `cogcache models` the families"""
_VISION: Final = ("vision_dtype", "cache_point", "compile")
"""Settings of stage one that a feature key holds; the others say how the work is done."""


def profiled() -> list[Leaf]:
    """Return the settings that a profile holds."""
    model = [leaf for leaf in leaves("model") if leaf.name in ("model", "revision")]
    vision = [leaf for leaf in leaves("vision") if leaf.name in _VISION]
    return [*model, *leaves("sampling", "clips"), *vision]


def profile_of(settings: Settings) -> Profile:
    """Return what a cache is to remember of settings; 0 and "" stand for None, as in TOML."""
    found: dict[str, Any] = {}
    for leaf in profiled():
        home = settings if leaf.table == "model" else getattr(settings, leaf.table)
        value = getattr(home, leaf.name)
        value = ("" if leaf.type is str else 0) if value is None else value
        place = found if leaf.table == "model" else found.setdefault(leaf.table, {})
        place[leaf.name] = value
    return found


def known_part(profile: Profile) -> dict[str, Any]:
    """Return the part of a profile that this version knows: a newer one may have written more."""
    found: dict[str, Any] = {}
    for leaf in profiled():
        if leaf.table == "model":
            source, target = profile, found
        else:
            source, target = profile.get(leaf.table) or {}, found.setdefault(leaf.table, {})
        if (value := source.get(leaf.name)) is not None:
            target[leaf.name] = value
    return found


def as_toml(name: str, profile: Profile) -> str:
    """Return a profile as the lines of a TOML file."""
    head = f"profile.{json.dumps(name)}"
    plain = {key: value for key, value in profile.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in profile.items() if isinstance(value, Mapping)}
    lines = [f"[{head}]", *_lines(plain)]
    for key, table in tables.items():
        lines += [f"[{head}.{key}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    # A JSON text, number or truth value is a TOML one, too.
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]


def choose_profile(
    profiles: Mapping[str, Profile], name: str | None, model: str | None
) -> tuple[str, Profile] | None:
    """Return the profile that settings are taken from, with its name; None where none fits.

    Args:
        profiles: those of the cache, by name.
        name: the one that was asked for.
        model: the model that was asked for: a profile of another one does not fit.

    Raises:
        ConfigError: the profile that was asked for is of another model.
    """
    if name:
        found = profiles.get(name)
        if found is not None and model and found.get("model") != model:
            raise ConfigError(
                f"the profile {name!r} of the cache is of {found.get('model')}, not of {model}",
                "leave out --model, or give the new profile another name",
            )
        return None if found is None else (name, found)
    fitting = {key: each for key, each in profiles.items() if model in (None, each.get("model"))}
    key = DEFAULT if DEFAULT in fitting else next(iter(fitting), None)
    return None if key is None else (key, fitting[key])


def described(profile: Profile) -> str:
    """Say in a few words what a profile is of: "tiny, up to 24 frames per_second"."""
    return ", ".join([str(profile.get("model") or "no model"), *_words(profile)])


def _words(profile: Profile) -> list[str]:
    sampling, clips = profile.get("sampling") or {}, profile.get("clips") or {}
    words = [sampling_words(sampling)] if sampling else []
    if clips.get("segment_s"):
        words.append(f"cut every {clips['segment_s']:g} s")
    return words + (["cut at scenes"] if clips.get("scenes") else [])


def sampling_words(sampling: Mapping[str, Any]) -> str:
    """Say in a few words which frames are taken: "24 frames spread"."""
    fps = f" at {sampling['fps']:g} fps" if sampling.get("fps") else ""
    return f"{sampling.get('max_frames')} frames {sampling.get('strategy')}{fps}"
