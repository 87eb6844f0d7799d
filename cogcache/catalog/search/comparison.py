"""Two sets of captions held against each other, clip by clip and word by word."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from cogcache.catalog.database import CatalogFile
from cogcache.catalog.holders import Holders, Look
from cogcache.catalog.placed import Absent, Placing, Row
from cogcache.catalog.search.queries import SEPARATOR, separate
from cogcache.catalog.search.selection import Selection
from cogcache.errors import ConfigError

Status: TypeAlias = Literal["same", "different", "only_a", "only_b"]

STATUSES: Final[tuple[Status, ...]] = ("different", "same", "only_a", "only_b")
SELECTORS: Final = {
    "prompt": "prompts",
    "model": "models",
    "quantization": "quantizations",
    "run": "runs",
}
"""What a selector may name, and the field of a `Selection` that it sets."""
_MOST_LISTED: Final = 8
_PART: Final = re.compile(rf",(?=(?:{'|'.join(SELECTORS)})=)")
_QUERY: Final = """SELECT ifnull(c.video_digest, c.video) AS known_as, c.start_s, c.end_s,
    c.prompt_name, c.caption, c.video, c.video_digest,
    ifnull(json_extract(c.settings, '$.generation.draw'), 0) AS draw
    FROM whole_captions c {where} ORDER BY c.id"""
_SETS: Final = """SELECT prompt_name, model, quantization, count(*) AS captions
    FROM whole_captions GROUP BY 1, 2, 3 ORDER BY 4 DESC"""


class Change(NamedTuple):
    """A stretch of two captions."""

    one: str
    other: str
    is_same: bool
    """Whether the words are the same on both sides; blanks do not count."""


class _Place(NamedTuple):
    """What two captions that belong together have in common."""

    video: str
    """The digest of its bytes while places are held against each other; then its name."""
    start_s: float
    end_s: float | None
    prompt_name: str
    """Empty where the sets are of different prompts."""
    draw: int
    offset_s: float = 0.0
    """The time that a player shows at the video's first frame, from which the times count."""


@dataclass(frozen=True, slots=True)
class CaptionPair:
    """What two sets say of one clip; None where a set says nothing."""

    place: _Place
    a: str | None
    b: str | None

    @property
    def status(self) -> Status:
        """How they stand to each other."""
        if self.a is None or self.b is None:
            return "only_b" if self.a is None else "only_a"
        return "same" if self.a == self.b else "different"

    @property
    def similarity(self) -> float | None:
        """The share of words in common, from 0 to 1; None where one is missing."""
        if self.a is None or self.b is None:
            return None
        return _matcher(_words(self.a), _words(self.b)).ratio()

    def row(self) -> dict[str, Any]:
        """Return the pair as a row."""
        similarity = self.similarity
        return {
            **self.place._asdict(),
            "status": self.status,
            "a": self.a,
            "b": self.b,
            "similarity": None if similarity is None else round(similarity, 4),
        }

    def shown(self) -> dict[str, Any]:
        """Return the row with the words marked that the other side lacks."""
        a, b = (
            marked(self.a or "", self.b or "") if self.status == "different" else (self.a, self.b)
        )
        return {**self.row(), "a": a, "b": b}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of captions, side by side, by video and time."""

    pairs: list[CaptionPair]
    num_older: int
    """Captions left out, since a newer one of the same set speaks of the same clip."""
    absent: list[Absent] = field(default_factory=list)
    """Left out, as no file holds the bytes that they are of."""

    def summary(self) -> str:
        """Return the counts as a line."""
        counts = Counter(pair.status for pair in self.pairs)
        parts = [f"{counts[status]} {status.replace('_', ' in ')}" for status in STATUSES]
        similar = [pair.similarity or 0.0 for pair in self.pairs if pair.status == "different"]
        if similar:
            parts[0] += f" ({fmean(similar):.0%} of their words the same)"
        older = f"; {self.num_older} older captions left out" if self.num_older else ""
        return ", ".join(parts).replace("in a", "in A").replace("in b", "in B") + older


def parse_selector(text: str, base: Selection) -> Selection:
    """Return the captions that a selector means, out of those of ``base``.

    Args:
        text: a prompt's name, or `prompt=…,model=…,quantization=…,run=…`, any of them.
        base: filters over both sets; what the selector names takes their place.

    Raises:
        ConfigError: it names something else, or a run that is no number.
    """
    known = "write a prompt's name, or prompt=…, model=…, quantization=…, run=… with commas between"
    chosen: dict[str, Any] = {}
    for part in _PART.split(text):
        name, equals, value = part.partition("=")
        name, value = (name, value) if equals else ("prompt", part)
        if name not in SELECTORS or not value or SELECTORS[name] in chosen:
            raise ConfigError(f"{text!r} selects no set of captions", known)
        if name == "run" and not value.isdecimal():
            raise ConfigError(f"{text!r}: {value!r} is no run's number", "see `cogcache ls runs`")
        chosen[SELECTORS[name]] = (int(value) if name == "run" else value,)
    return replace(base, **chosen)


def compare(
    catalog: Path, one: Selection, other: Selection, look: Look | None = None
) -> Comparison:
    """Hold two sets of captions against each other.

    Captions belong together that speak of the same stretch of a video, are of the same draw and,
    unless both sets name a prompt, answer the same prompt. A video is its bytes, and is named by
    the file that holds them now.

    Raises:
        CatalogError: the catalog cannot be used.
        ConfigError: a set is empty.
        MissingVideosError: no file holds the bytes of one, and `look` says that is an error.
    """
    look = look or Look()
    by_prompt = not (one.prompts and other.prompts)
    with closing(CatalogFile(catalog)) as file:
        holders = Holders(file, check=look.check)
        if look.check:
            holders.look_in({*one.folders, *other.folders})
        names: dict[str, Row] = {}
        (a, older_a), (b, older_b) = (
            _captions(file, each, by_prompt, names) for each in (one, other)
        )
        for name, found in (("A", a), ("B", b)):
            if not found:
                raise ConfigError(f"the set {name} has no captions", _sets(file))
        placed = Placing(holders, look, (*one.folders, *other.folders)).one([*names.values()])
    if by_prompt and (one.prompts or other.prompts):
        prompts = {*one.prompts, *other.prompts}
        a, b = ({p: c for p, c in some.items() if p.prompt_name in prompts} for some in (a, b))
    now = {
        row["known_as"]: {name: row[name] for name in ("video", "offset_s")} for row in placed.rows
    }
    pairs = [
        CaptionPair(place._replace(**now[place.video]), a.get(place), b.get(place))
        for place in {**a, **b}
        if place.video in now
    ]
    return Comparison(sorted(pairs, key=_order), older_a + older_b, placed.absent)


def _order(pair: CaptionPair) -> tuple[Any, ...]:
    place = pair.place
    return (place.video or "", place.start_s, place.end_s or 0.0, *place[3:])


def _captions(
    file: CatalogFile, selection: Selection, by_prompt: bool, names: dict[str, Row]
) -> tuple[dict[_Place, str], int]:
    """Return the newest caption of each place, and how many older ones there are.

    Args:
        file: the catalog.
        selection: the set.
        by_prompt: whether captions of different prompts are of different places.
        names: takes up the name of each video.
    """
    where, values = selection.where()
    rows = file.query(_QUERY.format(where=f"WHERE {where}" if where else ""), values)
    names |= {
        row["known_as"]: {name: row[name] for name in ("known_as", "video", "video_digest")}
        for row in rows
    }
    found = {
        _Place(row[0], row[1], row[2], row["prompt_name"] if by_prompt else "", row["draw"]): row[
            "caption"
        ]
        for row in rows
    }
    return found, len(rows) - len(found)


def _sets(file: CatalogFile) -> str:
    rows = file.query(_SETS)
    sets = [f"prompt={row[0]},model={row[1]},quantization={row[2]}" for row in rows[:_MOST_LISTED]]
    more = f" and {len(rows) - _MOST_LISTED} more" if len(rows) > _MOST_LISTED else ""
    return f"there are {' and '.join(sets)}{more}" if sets else "make some with `cogcache caption`"


def changes(one: str, other: str) -> Iterator[Change]:
    """Yield the stretches of two texts in which they agree, and those in which they do not."""
    sides = _words(one), _words(other)
    for kind, start, end, other_start, other_end in _matcher(*sides).get_opcodes():
        texts = "".join(sides[0][start:end]), "".join(sides[1][other_start:other_end])
        yield Change(*texts, is_same=kind == "equal")


def _words(text: str) -> list[str]:
    """Return the words of a text, each with the blanks before it; unspaced letters one by one."""
    return re.findall(rf"\s*[^\s{SEPARATOR}]+", separate(text))


def _matcher(one: Sequence[str], other: Sequence[str]) -> difflib.SequenceMatcher[str]:
    bare = [[word.strip() for word in side] for side in (one, other)]
    return difflib.SequenceMatcher(None, bare[0], bare[1], autojunk=False)


def marked(one: str, other: str) -> tuple[str, str]:
    """Return two texts, with what only the first says as ``[-…-]``, only the second ``{+…+}``."""
    found = list(changes(one, other))
    return (
        _joined([(each.one, each.is_same) for each in found], "[-{}-]"),
        _joined([(each.other, each.is_same) for each in found], "{{+{}+}}"),
    )


def _joined(parts: Sequence[tuple[str, bool]], mark: str) -> str:
    made = ""
    for text, is_same in parts:
        bare = text.lstrip()
        blank = text[: len(text) - len(bare)]
        made += text if is_same or not bare else blank + mark.format(bare)
    return made.strip()
