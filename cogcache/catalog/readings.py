"""How videos are read: when their frames are shown, and which clips were once read otherwise.

It follows from a file's packets, is found by a look at the file, and is remembered by its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from cogcache.catalog.file_facts import FileFacts
from cogcache.catalog.rows import ClipRow, text_to_path
from cogcache.keys import Field
from cogcache.system import ObjectUrl

READER: Final = 2
"""In the sampling of the key of clips that an earlier reader read otherwise."""
_NAME: Final = "reading "

LookAt: TypeAlias = Callable[[Mapping[str, Path]], Iterable[tuple[str, Mapping[str, Any] | None]]]
"""Looks at files, by their digests; gives what is found, None where a file cannot be read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of a video that has been looked at."""

    offset_s: float = 0.0
    """The time that a player shows at the first frame."""
    shown_s: Sequence[Sequence[float]] = ()
    """From when to when frames are shown, from the first one's start; none: not known."""
    since_s: float | None = None
    """Clips that end later were once read otherwise; None: none were."""
    reason: str = ""
    """In which way."""

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return what was remembered."""
        return cls(**value)

    def was_other(self, end_s: float | None) -> bool:
        """Say whether a clip that ends at `end_s` was once read otherwise."""
        return self.since_s is not None and (end_s is None or end_s > self.since_s)

    def sampling(self, sampling: Mapping[str, Field], end_s: float | None) -> dict[str, Field]:
        """Return the sampling of a clip as its key has it."""
        return {**sampling, "reader": READER} if self.was_other(end_s) else {**sampling}


def readings(files: FileFacts, digests: Collection[str]) -> dict[str, Reading]:
    """Return what is remembered of videos, by digest."""
    found = files.recall_all([f"{_NAME}{each}" for each in digests])
    return {name.removeprefix(_NAME): Reading.of(value) for name, value in found.items()}


def remember(files: FileFacts, digest: str, reading: Reading) -> None:
    """Remember what was found of a video."""
    files.remember(f"{_NAME}{digest}", asdict(reading))
    files.note_offset(digest, reading.offset_s)


def looked_at(files: FileFacts, digests: Collection[str], look: LookAt) -> dict[str, Reading]:
    """Return what is known of videos, after a look at those that are not known and are here.

    Args:
        files: remembers what is found, if the catalog can be written.
        digests: of the videos.
        look: looks at files.
    """
    known = readings(files, digests)
    unknown = {each for each in digests if each not in known}
    here = dict(_unchanged(files, unknown)) if unknown else {}
    for digest, value in look(here) if here else ():
        if value is not None:
            known[digest] = Reading.of(value)
            if files.can_write:
                remember(files, digest, known[digest])
    return known


def read_otherwise(clip: ClipRow, known: Mapping[str, Reading]) -> str | None:
    """Return in which way the features of a clip are of other frames than are shown, or None."""
    reading = known.get(clip["video_digest"])
    sampling = clip["settings"].get("sampling")
    has_new = isinstance(sampling, Mapping) and "reader" in sampling
    if reading is None or has_new or not reading.was_other(clip["end_s"]):
        return None
    return reading.reason


def _unchanged(files: FileFacts, digests: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Yield a file of each digest that is here and has not changed since it was read."""
    seen = set[str]()
    for digest, text in files.paths_of(digests):
        path = text_to_path(text)
        if digest in seen or isinstance(path, ObjectUrl):
            continue
        try:
            stat = path.stat()
        except OSError:
            continue
        if files.known_digest(path, stat) == digest:
            seen.add(digest)
            yield digest, path
