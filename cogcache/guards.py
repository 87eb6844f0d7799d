"""What is wrong with a caption, by looking at it alone."""

from __future__ import annotations

from collections.abc import Sequence

LOOP_TOKENS = 60
"""A caption's tail of this many tokens is looked at for loops."""
LOOP_REPEATS = 3


def flags_of(text: str, token_ids: Sequence[int], *, ended: bool) -> tuple[str, ...]:
    """Return the flags of a caption: `empty`, `no_end`, `looping`; none is good.

    Args:
        text: the caption as stored.
        token_ids: its tokens, without the one that ends it.
        ended: whether the model ended it itself, before `max_new_tokens`.
    """
    found = {
        "empty": not text,
        "no_end": not ended,
        "looping": _loops(list(token_ids)[-LOOP_TOKENS:]),
    }
    return tuple(flag for flag, is_so in found.items() if is_so)


def _loops(tail: list[int]) -> bool:
    """Say whether the tail ends in one phrase of 2 tokens or more, said three times over."""
    for width in range(2, len(tail) // LOOP_REPEATS + 1):
        phrase = tail[-width:]
        if len(set(phrase)) > 1 and tail[-width * LOOP_REPEATS :] == phrase * LOOP_REPEATS:
            return True
    return len(tail) >= 8 and len(set(tail[-8:])) == 1
