"""Prompts with variables: `{name}`, `{start}`, … and captions of the same clip, `{caption.short}`.

A prompt that names a caption runs after the prompt that makes it. `{{` and `}}` are braces.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

from cogcache.errors import ConfigError

VARIABLES: Final = ("name", "start", "end", "duration")
"""The video's file name without its ending; seconds of the video; seconds of the clip."""
CAPTION: Final = "caption."

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_BRACES: Final = {"{{": "{", "}}": "}"}


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a prompt with its variables replaced; what is put in is not looked at again.

    Raises:
        KeyError: there is no value for one of them.
    """
    return _PIECE.sub(lambda found: _BRACES.get(found[0]) or values[found[1].strip()], text)


@lru_cache(maxsize=1024)
def variables(text: str) -> tuple[str, ...]:
    """Return the variables that a prompt names, each once.

    Raises:
        ValueError: there is no such variable, or a brace stands alone.
    """
    return tuple(dict.fromkeys(_variables(text)))


def _variables(text: str) -> Iterator[str]:
    for found in _PIECE.finditer(text):
        if found[0] in _BRACES:
            continue
        if found[1] is None:
            raise ValueError(f"a single {found[0]} has no meaning: write {found[0] * 2}")
        name = found[1].strip()
        if name not in VARIABLES and not name.startswith(CAPTION):
            raise ValueError(_unknown(found[0], name))
        yield name


def _unknown(written: str, name: str) -> str:
    known = ", ".join(f"{{{each}}}" for each in (*VARIABLES, f"{CAPTION}NAME"))
    nearest = difflib.get_close_matches(name.lower(), VARIABLES, n=1)
    meant = f"did you mean {{{nearest[0]}}}? " if nearest else ""
    return f"{written} is no variable: {meant}known are {known}; write {{{written}}} for the text"


def captions_in(text: str) -> list[str]:
    """Return the names of the prompts whose captions a prompt names."""
    return [name.removeprefix(CAPTION) for name in variables(text) if name.startswith(CAPTION)]


def check(prompts: dict[str, str]) -> dict[str, str]:
    """Return the prompts as they are, once it is clear that all of them can be filled in.

    Raises:
        ValueError: a variable is unknown, a caption is named that no prompt makes, or prompts
            wait for one another in a circle.
    """
    for name, text in prompts.items():
        try:
            needed = captions_in(text)
        except ValueError as error:
            raise ValueError(f"prompt {name!r}: {error}") from error
        for each in needed:
            if each not in prompts:
                raise ValueError(_no_such_caption(name, each, prompts))
    levels(prompts)
    return prompts


def _no_such_caption(name: str, missing: str, prompts: Mapping[str, str]) -> str:
    known = ", ".join(each for each in prompts if each != name) or "no other prompt"
    return (
        f"prompt {name!r} needs {{{CAPTION}{missing}}}, and no prompt is named {missing!r}: "
        f"there is {known}"
    )


def check_text_only(names: Sequence[str], sets: Sequence[Mapping[str, str]]) -> None:
    """Check that prompts which are asked without the video are made of captions.

    Raises:
        ValueError: there is no such prompt, or it names no caption.
    """
    for name in names:
        texts = [prompts[name] for prompts in sets if name in prompts]
        if not texts:
            known = ", ".join(dict.fromkeys(each for prompts in sets for each in prompts))
            raise ValueError(f"text_only names no prompt: {name!r}; there are {known}")
        if not all(map(captions_in, texts)):
            raise ValueError(
                f"prompt {name!r} is asked without the video (text_only) and names no caption: "
                f"write {{{CAPTION}NAME}} into it"
            )


def levels(prompts: Mapping[str, str]) -> list[list[str]]:
    """Return the names of prompts in the order of their making; those of a level need no other.

    Raises:
        ValueError: prompts wait for one another in a circle.
    """
    sorter = TopologicalSorter({name: captions_in(text) for name, text in prompts.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise ValueError(f"prompts wait for one another in a circle: {circle}") from error
    found: list[list[str]] = []
    while sorter.is_active():
        ready = set(sorter.get_ready())
        found.append([name for name in prompts if name in ready])
        sorter.done(*ready)
    return found


def union(sets: Any, chosen: Sequence[str]) -> dict[str, Any]:
    """Return the prompts of the sets that are named, which nobody has checked yet.

    Raises:
        ConfigError: there is no such set, or two of them have different prompts of one name.
    """
    found: dict[str, Any] = {}
    known = sets if isinstance(sets, Mapping) else {}
    for name in chosen:
        if not isinstance(known.get(name), Mapping):
            there = ", ".join(known) or "none"
            hint = f"write it as [prompt_sets.{name}] in the file of --config or --prompts"
            raise ConfigError(f"there is no set of prompts {name!r}; there is {there}", hint)
        for prompt, text in known[name].items():
            if found.setdefault(prompt, text) != text:
                problem = f"two of the sets {', '.join(chosen)} have a prompt {prompt!r}"
                raise ConfigError(problem, "give one of the two another name")
    return found
