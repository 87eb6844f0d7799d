"""What is wrong with a caption, by looking at it alone, and what to change before another try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cogcache.settings import Generation

LOOP_TOKENS = 240
"""A caption's tail of this many tokens is looked at for loops."""
LOOP_REPEATS = 3
MOST_LISTED = 8
"""A single token said this often in a row is a loop."""
FLAGS = (
    "empty",
    "no_end",
    "looping",
    "over_context",
    "invalid_json",
    "from_flagged",
    "gaps",
)
"""What a caption may be flagged with; the first four are seen by looking at it alone."""


def flags_of(
    text: str, token_ids: Sequence[int], *, ended: bool, over_context: bool = False
) -> tuple[str, ...]:
    """Return the flags of a caption, out of `FLAGS`; none is good.

    Args:
        text: the caption as stored.
        token_ids: its tokens, without the one that ends it.
        ended: whether the model ended it itself, before any limit.
        over_context: whether it was cut off because the context has no room for more.
    """
    found = {
        "empty": not text,
        "no_end": not ended,
        "looping": _loops(list(token_ids)[-LOOP_TOKENS:], ended=ended),
        "over_context": over_context,
    }
    return tuple(flag for flag, is_so in found.items() if is_so)


def changes_for(flags: Sequence[str], generation: Generation) -> dict[str, Any]:
    """Return which settings of `generation` another try should change; none where none helps.

    A loop is broken by making said tokens less likely, which lets a caption end as well. An empty
    caption is drawn, since the likeliest one is empty. One that has no end gets twice the room.
    Where the context is used up nothing helps but fewer frames.
    """
    if "looping" in flags:
        return {"repetition_penalty": round(max(1.0, generation.repetition_penalty) + 0.15, 4)}
    if "empty" in flags:
        return {"do_sample": True, "seed": (generation.seed + 1) % 2**63}
    if "no_end" in flags and "over_context" not in flags:
        return {"max_new_tokens": 2 * generation.max_new_tokens}
    return {}


def _loops(tail: list[int], *, ended: bool) -> bool:
    """Say whether the tail ends in one phrase said three times over.

    A caption that was cut off may stop anywhere in a phrase; one that ended did so at its end.
    Lists of short things ("red, red, red") are let pass unless they go on and on.
    """
    for width in range(1, len(tail) // LOOP_REPEATS + 1):
        repeats = LOOP_REPEATS if len(set(tail[-width:])) > 1 else -(-MOST_LISTED // width)
        periodic = _periodic_tail(tail, width)
        partial = 0 if ended else periodic % width
        if periodic - partial >= repeats * width:
            return True
    return False


def _periodic_tail(tail: list[int], width: int) -> int:
    """Return the length of the longest tail that repeats itself every `width` tokens."""
    same = 0
    while same + width < len(tail) and tail[-1 - same] == tail[-1 - same - width]:
        same += 1
    return same + width
