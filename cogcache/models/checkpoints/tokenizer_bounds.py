"""Bounds on a tokenizer.json: what it may make of a text, before a text is given to it.

A normalizer or a decoder that replaces a letter by ten, twenty times over, fills any memory. What
is not covered: patterns that take long, and the tables of a normalizer of the kind Precompiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cogcache.errors import CheckpointError
from cogcache.models.checkpoints.bounds import MAX_DEPTH, MAX_FILE_BYTES, read_json

MAX_GROWTH: Final = 1024
"""How many times as long a text may become; those of known tokenizers become twice as long."""
MAX_ADDED: Final = 4096
"""Tokens that may be put around a text."""
MAX_PADDED: Final = 2**17
"""Tokens that a text may be filled up to."""
_HINT: Final = "fetch it anew, or name another model"


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer.json whose steps would fill the memory; pass over one that is not there.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: it would, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    content = read_json(path, MAX_FILE_BYTES)
    for name in ("normalizer", "decoder"):
        growth = 1
        for step in _steps(content.get(name)):
            growth *= _growth(step)
            if growth > MAX_GROWTH:
                problem = f"{path}: its {name} makes texts over {MAX_GROWTH:,} times as long"
                raise CheckpointError(problem, _HINT)
    for step in _steps(content.get("post_processor")):
        if _num_added(step) > MAX_ADDED:
            raise CheckpointError(f"{path} puts over {MAX_ADDED:,} tokens around a text", _HINT)
    if _num_padded(content.get("padding")) > MAX_PADDED:
        raise CheckpointError(f"{path} fills texts up to over {MAX_PADDED:,} tokens", _HINT)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part, those within sequences too."""
    level = [part]
    for _ in range(MAX_DEPTH):
        steps = [step for step in level if isinstance(step, dict)]
        yield from steps
        inner = [
            step.get(name) for step in steps for name in ("normalizers", "decoders", "processors")
        ]
        level = [step for steps in inner if isinstance(steps, list) for step in steps]


def _growth(step: dict[str, Any]) -> int:
    """Return how many times as long a text of one letter may become."""
    match step:
        case {"type": "Prepend", "prepend": str(text)}:
            return 1 + len(text)
        case {"type": "Replace", "content": str(text), "pattern": {"String": str(found)}} if found:
            return max(1, -(-len(text) // len(found)))
        case {"type": "Replace", "content": str(text)}:  # a pattern may fit between any two letters
            return 1 + len(text)
        case _:
            return 1


def _num_added(step: dict[str, Any]) -> int:
    """Return how many tokens are put around a text, or two, at most."""
    templates = [step[name] for name in ("single", "pair") if isinstance(step.get(name), list)]
    known = step.get("special_tokens")
    marks = known.values() if isinstance(known, dict) else ()
    ids = [mark.get("ids") for mark in marks if isinstance(mark, dict)]
    longest = max((len(each) for each in ids if isinstance(each, list)), default=1)
    return max(map(len, templates), default=0) * longest


def _num_padded(padding: Any) -> int:
    match padding:
        case {"strategy": {"Fixed": int(number)}}:
            fixed = number
        case _:
            fixed = 0
    match padding:
        case {"pad_to_multiple_of": int(number)}:
            return max(fixed, number)
        case _:
            return fixed
