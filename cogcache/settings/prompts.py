"""Prompts by name, from the command line and from TOML files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cogcache.errors import ConfigError
from cogcache.settings.explain import explain
from cogcache.settings.fields import PROMPT_NAME, PromptName, PromptText
from cogcache.settings.settings import DEFAULT_PROMPT
from cogcache.settings.toml_files import read_toml

_SLUG_CHARACTERS = 40


class _File(BaseModel):
    """A file of prompts. Whether they can be filled in is checked once all of them are known."""

    model_config = ConfigDict(strict=True, defer_build=True)
    prompts: dict[PromptName, PromptText] = {}
    prompt_sets: dict[PromptName, dict[PromptName, PromptText]] = {}


def parse_prompts(texts: Sequence[str], file: Path | None = None) -> dict[str, str]:
    """Return prompts by name, from ``--prompt`` texts and a ``--prompts`` file.

    A text is ``name=the prompt``, or only the prompt: its first words then make the name.

    Raises:
        ConfigError: an empty prompt, two prompts of one name, or a file without ``[prompts]``.
    """
    prompts: dict[str, str] = {}
    for name, text in [*(_prompts_of(file) if file else ()), *map(_split_prompt, texts)]:
        if prompts.setdefault(name, text) != text:
            raise ConfigError(
                f"two prompts are named {name!r}: {prompts[name]!r} and {text!r}",
                f"give one of them another name: --prompt 'another-name={text}'",
            )
    return prompts


def _split_prompt(argument: str) -> tuple[str, str]:
    name, equals, text = (part.strip() for part in argument.partition("="))
    if not equals or not re.fullmatch(PROMPT_NAME, name):
        name, text = _slug(argument), argument.strip()
    if not text:
        raise ConfigError(
            f"--prompt {argument!r} holds no text", f"for example --prompt '{DEFAULT_PROMPT}'"
        )
    return name, text


def _slug(text: str) -> str:
    words = re.findall(r"[^\W_]+", text.lower())
    slug = ""
    for word in words:
        if slug and len(slug) + 1 + len(word) > _SLUG_CHARACTERS:
            break
        slug = f"{slug}-{word}" if slug else word[:_SLUG_CHARACTERS]
    return slug or "prompt"


def prompt_sets_of(file: Path) -> dict[str, dict[str, str]]:
    """Return the sets of prompts of a ``--prompts`` file.

    Raises:
        ConfigError: a prompt in it is none, or it holds other settings.
    """
    return _read(file).prompt_sets


def _prompts_of(file: Path) -> list[tuple[str, str]]:
    if prompts := _read(file).prompts:
        return list(prompts.items())
    raise ConfigError(f"{file} holds only sets of prompts", "choose some: --prompt-set NAME")


def _read(file: Path) -> _File:
    values = read_toml(file)
    tables = {name for name, value in values.items() if isinstance(value, dict) and value}
    if not values or {*values} - (tables & {"prompts", "prompt_sets"}):
        found = ", ".join(values) or "nothing"
        raise ConfigError(
            f"{file} should hold one table [prompts], or [prompt_sets.NAME], and holds {found}",
            'write [prompts] and under it lines like: colour = "Which colour is it?"; '
            "other settings belong into the file of --config",
        )
    try:
        return _File.model_validate(values)
    except ValidationError as error:
        raise explain(error, {}, source=str(file), given={}) from error
