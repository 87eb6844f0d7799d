"""What is wrong with a caption, seen from its text alone, and which settings to change then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line names the flags, and needs no settings for that
    from cogcache.settings import Generation, Limits

FEWEST_TOKENS = 3
"""Shorter phrases are words: they have to come more often."""
MOST_LISTED = 8
"""A single token that comes this often in a row is a loop, whatever word it is of."""
FLAGS = (
    "empty",
    "no_end",
    "looping",
    "over_context",
    "too_long",
    "too_short",
    "invalid_json",
    "from_flagged",
    "gaps",
)
"""What a caption may be flagged with; the first six are seen by looking at it alone."""


def flags_of(
    text: str,
    token_ids: Sequence[int],
    *,
    ended: bool,
    over_context: bool = False,
    limits: Limits | None = None,
) -> tuple[str, ...]:
    """Return the flags of a caption, out of `FLAGS`; none is good.

    Args:
        text: the caption as stored.
        token_ids: its tokens, without the one that ends it.
        ended: whether the model ended it itself, before any limit.
        over_context: whether it was cut off because the context has no room for more.
        limits: how often what has to come for a loop; None for the defaults.
    """
    if limits is None:
        from cogcache.settings import Limits

        limits = Limits()
    found = {
        "empty": not text,
        "no_end": not ended,
        "looping": _has_loop(token_ids, limits.loop_phrases)
        or _repeats_word(text, limits.loop_words),
        "over_context": over_context,
        "too_long": limits.max_words is not None and num_words(text) > limits.max_words,
        "too_short": bool(text) and num_words(text) < limits.min_words,
    }
    return tuple(flag for flag, is_so in found.items() if is_so)


def changes_for(flags: Sequence[str], generation: Generation) -> dict[str, Any]:
    """Return which settings of `generation` another try should change; none where none helps.

    A loop is broken by making said tokens less likely, which lets a caption end as well. An empty
    caption is drawn, since the likeliest one is empty, and so is one that is too long or too short.
    One that has no end gets twice the room.
    Where the context is used up nothing helps but fewer frames.
    """
    if "looping" in flags:
        return {"repetition_penalty": round(max(1.0, generation.repetition_penalty) + 0.15, 4)}
    if {"empty", "too_long", "too_short"} & {*flags}:
        return {"do_sample": True, "seed": (generation.seed + 1) % 2**63}
    if "no_end" in flags and "over_context" not in flags:
        return {"max_new_tokens": 2 * generation.max_new_tokens}
    return {}


def num_words(text: str) -> int:
    """Return the number of words of a text; of scripts without blanks, that of its letters."""
    spaced = len(re.findall(r"[^\W\u0e00-\u0eff\u3040-\u9fff]+", text))
    return spaced + len(re.findall(r"[\u0e01-\u0eff\u3040-\u9fff]", text))


def _has_loop(token_ids: Sequence[int], repeats: int) -> bool:
    """Say whether one phrase comes several times in a row, anywhere in a caption.

    A phrase of ``width`` tokens does so where as many tokens in a row as ``repeats - 1`` phrases
    hold are each the same as the one ``width`` tokens later.

    Args:
        token_ids: of the caption.
        repeats: least times of a phrase of three or more tokens.
    """
    import numpy as np  # here: the command line names the flags, and loads no numpy

    ids = np.asarray(token_ids, np.int64)
    for width in range(1, len(ids) // 2 + 1):
        times = repeats if width >= FEWEST_TOKENS else max(repeats, -(-MOST_LISTED // width))
        if width * times > len(ids):
            if width >= FEWEST_TOKENS:
                return False
            continue
        same = ids[width:] == ids[:-width]
        breaks = np.flatnonzero(np.concatenate(([True], ~same, [True])))
        if int(np.diff(breaks).max()) - 1 >= width * (times - 1):
            return True
    return False


def _repeats_word(text: str, repeats: int) -> bool:
    """Say whether one word comes so often in a row: "no, no, no, no"."""
    words = [word for word in re.findall(r"\w+", text.lower()) if not word.isdecimal()]
    runs = (len(list(group)) for _, group in groupby(words))
    return max(runs, default=0) >= repeats
