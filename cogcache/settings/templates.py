"""Prompts with variables: `{name}`, `{start}`, … and captions of the same clip, `{caption.short}`.

A prompt that names a caption runs after the prompt that makes it. `{{` and `}}` are braces.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Return a prompt with its variables replaced; braces in the values are left as they are.

    Raises:
        KeyError: there is no value for one of them.
    """
    if (messages := _messages(text)) is not None:
        if not variables(text):  # as it was written: it stands in the caption's key
            return text
        return json.dumps(_mapped(messages, lambda each: fill(each, values)), ensure_ascii=False)
    return _PIECE.sub(lambda found: _BRACES.get(found[0]) or values[found[1].strip()], text)


def _messages(text: str) -> list[Any] | None:
    """Return a prompt that is a JSON list of messages; its own braces mean nothing to us."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    is_conversation = isinstance(found, list) and all(
        isinstance(each, dict) and {"role", "content"} <= each.keys() for each in found
    )
    return found if found and is_conversation else None


def _mapped(messages: Any, change: Callable[[str], str]) -> Any:
    """Return messages with the words in them changed, and nothing else."""
    if isinstance(messages, list):
        return [_mapped(each, change) for each in messages]
    if not isinstance(messages, dict):
        return messages
    return {
        name: change(value)
        if name in ("text", "content") and isinstance(value, str)
        else _mapped(value, change)
        for name, value in messages.items()
    }


def _words(messages: list[Any]) -> list[str]:
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _mapped(messages, note)
    return found


@lru_cache(maxsize=1024)
def variables(text: str) -> tuple[str, ...]:
    """Return the variables that a prompt names, each once.

    Raises:
        ValueError: there is no such variable, or a brace stands alone.
    """
    messages = _messages(text)
    texts = [text] if messages is None else _words(messages)
    return tuple(dict.fromkeys(name for each in texts for name in _variables(each)))


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

    A caption that no prompt makes may be in the catalog: stage two looks there.

    Raises:
        ValueError: a variable is unknown, or prompts wait for one another in a circle.
    """
    for name, text in prompts.items():
        try:
            captions_in(text)
        except ValueError as error:
            raise ValueError(f"prompt {name!r}: {error}") from error
    levels(prompts)
    return prompts


def made_elsewhere(prompts: Mapping[str, str]) -> dict[str, str]:
    """Return the captions that prompts name and none of them makes, each with who names it."""
    return {
        needed: name
        for name, text in prompts.items()
        for needed in captions_in(text)
        if needed not in prompts
    }


def no_such_caption(missing: str, name: str, known: Sequence[str]) -> ConfigError:
    """Return the error to show where a caption is neither made nor in the catalog."""
    near = difflib.get_close_matches(missing, known, n=1)
    problem = f"prompt {name!r} needs {{{CAPTION}{missing}}}: no prompt is named so, and the cache"
    hint = f"did you mean {{{CAPTION}{near[0]}}}?" if near else "make them first, or name another"
    there = ", ".join(known) or "none"
    return ConfigError(f"{problem} has no captions of it; there are {there}", hint)


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
