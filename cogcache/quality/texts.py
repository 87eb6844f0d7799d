"""Scores a caption by its words alone: copies, repetition, length, openings, sentence ends.

Each score is 1 for a caption without anything odd, and smaller for one that needs a check.
"""

from __future__ import annotations

import re
import statistics
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from cogcache.quality.duplicates import clusters

TEXT_EPOCH: Final = 1
TEXT_SCORES: Final = ("unique", "distinct", "length", "repetition", "opening", "finished")
"""unique: 1 / captions of other clips in the same or nearly the same words, and this one.
distinct: share of the pairs of words that are different.
length: 1 near the usual number of words, 0 far from it.
repetition: 1 less the share of words in phrases that stand there again at once.
opening: 0 for refusals and for openings that say nothing.
finished: 0 where the last sentence has no end."""

_APOSTROPHES: Final = "'\N{RIGHT SINGLE QUOTATION MARK}"
_MARKS: Final = (
    ".!?\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH EXCLAMATION MARK}\N{FULLWIDTH QUESTION MARK}"
)
_WORD: Final = re.compile(rf"\w+(?:[{_APOSTROPHES}]\w+)?")
_SENTENCE: Final = re.compile(f"[^{_MARKS}]+[{_MARKS}]*")
_CLOSING: Final = "\"')\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT CORNER BRACKET}"
"""Characters allowed after the mark that ends a sentence."""
_OPENING: Final = re.compile(
    r"""(?: (?:in\ )? (?:the|this) \ (?:video|clip|footage|scene|image)s? (?:\ clip)?
        (?: ,?\ we\ (?:see|can\ see) | \ (?:shows?|depicts?|features?|captures?|begins?|starts?
        |opens?|presents?|is\ of|consists\ of|appears\ to) \b | , )
      | caption \s* : | (?:sure|certainly|of\ course) [,!] | here\ (?:is|'s)\ (?:a|the)\ )""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL: Final = re.compile(
    rf"""\b (?: I(?:[{_APOSTROPHES}]m|\ am)\ (?:sorry|unable|not\ able)
      | I\ (?:can[{_APOSTROPHES}]?t|cannot|could\ not)
        \ (?:see|help|assist|provide|describe|determine|view|watch)
      | as\ an\ AI\b | unable\ to\ (?:view|see|watch)\ (?:the|this|any) )""",
    re.IGNORECASE | re.VERBOSE,
)
_LONGEST_PHRASE: Final = 12
_HASHED: Final = 256
_NEARLY_SAME: Final = 0.95
"""Cosine of two captions' counts of word triples from which on they are near-duplicates."""


class TextRow(NamedTuple):
    """The parts of a caption that its text scores need."""

    caption_key: str
    clip: str
    """Identifies the clip; captions of the same clip do not count as copies."""
    group: str
    """Captions of one group, for example of one prompt and model, are compared with each other."""
    text: str


class TextScore(NamedTuple):
    """A score of a caption and the reason for it."""

    caption_key: str
    name: str
    value: float
    details: Mapping[str, Any]


def score_texts(rows: Sequence[TextRow]) -> Iterator[TextScore]:
    """Yield the scores of all captions; copies and lengths are judged against the other captions.

    Example:
        >>> rows = [TextRow("key", "clip", "group", "A dog.")]
        >>> {score.name: score.value for score in score_texts(rows)}["finished"]
        1.0
    """
    groups: dict[str, list[TextRow]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    for group in groups.values():
        yield from _copies(group)
        yield from _lengths(group)
        for row in group:
            yield from _alone(row)


def _alone(row: TextRow) -> Iterator[TextScore]:
    key, words = row.caption_key, words_of(row.text)
    yield TextScore(key, "distinct", distinct(words, 2), {})
    value, phrase = repetition(words)
    yield TextScore(key, "repetition", value, {"phrase": phrase} if phrase else {})
    found = _REFUSAL.search(row.text) or _OPENING.match(row.text.lstrip("\"'* "))
    yield TextScore(key, "opening", float(found is None), {"words": found[0]} if found else {})
    end = row.text.rstrip().rstrip(_CLOSING)[-1:]
    yield TextScore(key, "finished", float(end in {*_MARKS, "\N{HORIZONTAL ELLIPSIS}"}), {})


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters; of scripts without blanks, each letter."""
    return _WORD.findall(text.lower()) if not _is_unspaced(text) else list(text.replace(" ", ""))


def _is_unspaced(text: str) -> bool:
    return any("\u3040" <= letter <= "\u9fff" or "\u0e01" <= letter <= "\u0eff" for letter in text)


def distinct(words: Sequence[str], length: int) -> float:
    """Return how many of a text's runs of `length` words are different, as a share: distinct-n."""
    runs = [tuple(words[n : n + length]) for n in range(len(words) - length + 1)]
    return len({*runs}) / len(runs) if runs else 1.0


def repetition(words: Sequence[str]) -> tuple[float, str]:
    """Return 1 less the share of words in phrases repeated immediately, and the phrase.

    Example:
        >>> repetition("a dog a dog a dog runs".split())
        (0.42857142857142855, 'a dog')
    """
    best, phrase = 0, ""
    for length in range(1, min(_LONGEST_PHRASE, len(words) // 2) + 1):
        place = 0
        while place + 2 * length <= len(words):
            own, times = words[place : place + length], 1
            while words[place + times * length : place + (times + 1) * length] == own:
                times += 1
            # Two of one word stand in good sentences, too: "had had", "that that".
            if times > 1 and (length > 1 or times > 2) and (times - 1) * length > best:
                best, phrase = (times - 1) * length, " ".join(own)
            place += max(1, (times - 1) * length)
    return (1 - best / len(words), phrase) if words else (1.0, "")


def _copies(group: Sequence[TextRow]) -> Iterator[TextScore]:
    """Yield how many clips have the same or nearly the same caption."""
    plain = [" ".join(words_of(row.text)) for row in group]
    first = {text: number for number, text in reversed([*enumerate(plain)])}
    texts = [*dict.fromkeys(plain)]
    near = clusters(_hashed(texts), _NEARLY_SAME) if len(texts) > 1 else []
    cluster_of = {texts[n]: number for number, each in enumerate(near) for n in each.members}
    exact: dict[str, set[str]] = defaultdict(set)
    about: dict[str, set[str]] = defaultdict(set)
    for row, text in zip(group, plain, strict=True):
        exact[text].add(row.clip)
        about[_name(cluster_of, text)].add(row.clip)
    for row, text in zip(group, plain, strict=True):
        same, alike = len(exact[text]), len(about[_name(cluster_of, text)])
        number = max(same, alike, 1)
        details = {"same": same, "alike": alike, "first": group[first[text]].caption_key}
        yield TextScore(row.caption_key, "unique", 1 / number, details if number > 1 else {})


def _name(cluster_of: Mapping[str, int], text: str) -> str:
    return f"cluster {cluster_of[text]}" if text in cluster_of else f"text {text}"


def _hashed(texts: Sequence[str]) -> Any:
    """Return how often the texts have each triple of words, hashed: float32 [texts, _HASHED]."""
    counts = np.zeros((len(texts), _HASHED), np.float32)
    for number, text in enumerate(texts):
        words = text.split()
        for n in range(max(len(words) - 2, 1)):
            counts[number, _place(" ".join(words[n : n + 3]))] += 1
    return counts


def _place(phrase: str) -> int:
    return zlib.crc32(phrase.encode()) % _HASHED


def _lengths(group: Sequence[TextRow]) -> Iterator[TextScore]:
    """Yield how normal each caption's length is: its distance from the median number of words."""
    lengths = [len(words_of(row.text)) for row in group]
    median = statistics.median(lengths)
    # The median of the distances is not led astray by the outliers that are looked for.
    spread = max(statistics.median(abs(length - median) for length in lengths), 0.1 * median, 1.0)
    for row, length in zip(group, lengths, strict=True):
        far = abs(length - median) / (1.4826 * spread)
        value = max(0.0, 1 - far / 6)
        yield TextScore(row.caption_key, "length", value, {"words": length, "usual": median})


def claims_of(text: str) -> list[str]:
    """Return a caption's claims: its sentences, each without the mark that ends it.

    Example:
        >>> claims_of("A dog runs. It is brown!")
        ['A dog runs', 'It is brown']
    """
    sentences = (match.strip(f" \n\t{_MARKS}") for match in _SENTENCE.findall(text))
    return [*dict.fromkeys(sentence for sentence in sentences if sentence)]
