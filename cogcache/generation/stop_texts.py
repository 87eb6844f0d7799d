"""Stop texts: they end a caption even if their ends do not fall on ends of tokens."""

from __future__ import annotations

from collections.abc import Sequence

_MARGIN = 8
"""Tokens more than the text can take: its first may begin before it, and some say nothing."""


def window(stops: Sequence[str]) -> int:
    """Return how many of the newest tokens can hold a stop text.

    No token that says anything says less than a byte.
    """
    return max((len(stop.encode()) for stop in stops), default=0) + _MARGIN


def holds(text: str, stops: Sequence[str]) -> bool:
    """Say whether any of the stop texts is in a text."""
    return any(stop in text for stop in stops)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return what stands before the first stop text, blanks at the ends left out."""
    return text[: min(text.index(stop) for stop in stops if stop in text)].strip()
