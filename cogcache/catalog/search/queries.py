"""What a user types into a search, as queries of SQLite's full text index.

Words have to be there all; ``OR`` parts alternatives, ``-word`` excludes, ``"in quotes"`` is a
phrase, ``shor*`` a beginning. An English word is found with and without its final -s: captions say
that a ball "moves" and that balls "move". Whatever else is typed is looked for as it is, never run
as syntax.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cogcache.errors import ConfigError

MAX_LETTERS: Final = 1000
MAX_TERMS: Final = 32
MIN_PREFIX: Final = 3
"""Shorter beginnings fit so many words that the index would take seconds."""
SEPARATOR: Final = "\N{ZERO WIDTH SPACE}"

_UNSPACED: Final = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_TERM: Final = re.compile(r'(-?)(?:"([^"]*)(?:"|$)|([^\s"]+))')
_WORD: Final = re.compile(r"\w")
_ENGLISH: Final = re.compile("[A-Za-z]{3,}")
_ENDS_OF_S: Final = {
    "ies": "y", "sses": "ss", "xes": "x", "zzes": "zz", "ches": "ch", "shes": "sh", "ss": "sses",
    "s": "",
}  # fmt: skip
"""Ends of words with an -s, and what they are without; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query of one of the two indexes."""

    table: str
    match: str


def parse(text: str) -> list[Query]:
    """Return the queries whose results together answer ``text``.

    Raises:
        ConfigError: nothing to look for is left, or it is too long.
    """
    if len(text) > MAX_LETTERS:
        raise ConfigError(f"the query has {len(text)} letters; {MAX_LETTERS} are the most")
    matches: dict[str, list[str]] = {}
    terms = list(_TERM.finditer("".join(c if c.isprintable() else " " for c in text)))
    if len(terms) > MAX_TERMS:
        raise ConfigError(f"the query has {len(terms)} words; {MAX_TERMS} are the most")
    for group in _alternatives(terms):
        table = "captions_unspaced" if any(map(_is_unspaced, group)) else "captions_fts"
        if match := _conjunction(group):
            matches.setdefault(table, []).append(match)
    if not matches:
        problem = f"{text!r} names nothing to look for"
        raise ConfigError(problem, 'type words, "a phrase", a begin*, -without or this OR that')
    return [Query(table, " OR ".join(f"({m})" for m in some)) for table, some in matches.items()]


def separate(text: str) -> str:
    """Return ``text`` with each letter of an unspaced script set off, as the index holds it."""
    return _UNSPACED.sub(rf"{SEPARATOR}\g<0>{SEPARATOR}", text)


def has_unspaced(text: str) -> bool:
    """Return whether ``text`` has letters of a script without blanks between words."""
    return _UNSPACED.search(text) is not None


def _is_unspaced(term: re.Match[str]) -> bool:
    return not term[1] and has_unspaced(term[0])


def _alternatives(terms: list[re.Match[str]]) -> list[list[re.Match[str]]]:
    groups: list[list[re.Match[str]]] = [[]]
    for term in terms:
        if term[0] == "OR":
            groups.append([])
        elif term[0] != "AND" and _WORD.search(term[0]):
            groups[-1].append(term)
    return [group for group in groups if group]


def _conjunction(group: list[re.Match[str]]) -> str:
    wanted = [_in_both_forms(term) or _term(term) for term in group if not term[1]]
    unwanted = [_term(term) for term in group if term[1]]
    if not wanted:
        problem = f"{' '.join(term[0] for term in group)!r} says only what not to find"
        raise ConfigError(problem, "add a word that has to be there")
    without = f" NOT ({' OR '.join(unwanted)})" if unwanted else ""
    return f"({' AND '.join(wanted)}){without}"


def _in_both_forms(term: re.Match[str]) -> str | None:
    """Return a word with -s and without; None for what is no plain English word."""
    word = term[3] or ""
    if not _ENGLISH.fullmatch(word):
        return None
    return f'("{word}" OR "{other_form(word.lower())}")'


def other_form(word: str) -> str:
    """Return a word without its -s, or with one.

    Example:
        >>> [other_form(word) for word in ("moves", "square", "boxes", "sky", "flies")]
        ['move', 'squares', 'box', 'skies', 'fly']
    """
    for end, other in _ENDS_OF_S.items():
        if word.endswith(end):
            return word.removesuffix(end) + other
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    after_consonant = word[-1] == "y" and word[-2] not in "aeiou"
    return f"{word[:-1]}ies" if after_consonant else f"{word}s"


def _term(term: re.Match[str]) -> str:
    text = term[2] if term[2] is not None else term[3]
    stem = text.rstrip("*")
    quoted = '"' + separate(stem) + '"'
    if term[2] is not None or stem == text or has_unspaced(stem[-1:]):
        return quoted
    last = re.findall(r"\w+", stem)[-1]
    if len(last) < MIN_PREFIX:
        problem = f"{text!r} is too short a beginning"
        raise ConfigError(problem, f"type {MIN_PREFIX} letters or more before the *")
    return f"{quoted} *"
