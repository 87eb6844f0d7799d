"""Compares two texts word by word, so that a page or a terminal can mark the differences."""

from __future__ import annotations

import difflib
import re
from typing import Final, Literal, NamedTuple

_WORDS: Final = re.compile(r"\s+|\w+|[^\w\s]")
_MOST_WORDS: Final = 4000
"""Longer texts are compared as a whole: time grows with the square of their length."""


class Part(NamedTuple):
    """A piece of the two texts."""

    kind: Literal["same", "gone", "new"]
    text: str


def differences(before: str, after: str) -> list[Part]:
    """Return the pieces of two texts in order: what both have, what is gone, and what is new.

    The pieces that are not new make up ``before``, those that are not gone make up ``after``.

    Example:
        >>> differences("a red ball", "a blue ball")
        [Part(kind='same', text='a '), Part(kind='gone', text='red'), \
Part(kind='new', text='blue'), Part(kind='same', text=' ball')]
    """
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    if len(old) + len(new) > _MOST_WORDS:
        return [] if before == after == "" else [Part("gone", before), Part("new", after)]
    parts: list[Part] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            parts.append(Part("same", "".join(old[i:j])))
            continue
        if i < j:
            parts.append(Part("gone", "".join(old[i:j])))
        if k < m:
            parts.append(Part("new", "".join(new[k:m])))
    return parts
