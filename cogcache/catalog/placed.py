"""Rows of the catalog under the names that their videos have now, and those that have none.

Each row says of which bytes it is (``video_digest``); its ``video`` is the name under which these
were seen when it was made. Here it becomes the name of a file that holds them now. A row whose
bytes no file holds is left out, and told with the reason. Each row also gets `offset_s`, the time
that a player shows at its video's first frame, from which a row's own times count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

from cogcache.catalog.holders import REPLACED, Holders, Look, folder_names, is_in
from cogcache.errors import MissingVideosError
from cogcache.system import Location

Row = dict[str, Any]
_QUOTED: Final = 3
"""Names that an error tells."""
EARLIER: Final = "an earlier version of what is there now"


@dataclass(frozen=True, slots=True)
class Absent:
    """Rows that are left out, as no file holds the bytes that they are of."""

    video: str
    """Where the bytes were last seen."""
    reason: str
    number: int = 1
    """Of rows."""
    is_superseded: bool = False
    """Whether what took the file's place is shown: then nothing is missing that there could be."""


@dataclass(frozen=True, slots=True)
class PlacedRows:
    """What can be shown, and what cannot."""

    rows: list[Row] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)


class Placing:
    """Gives rows the names of today; looks at each file once.

    Args:
        holders: look at the files.
        look: what becomes of rows whose bytes no file holds.
        folders: only files in these, or of these names; none: all.
    """

    def __init__(self, holders: Holders, look: Look, folders: Sequence[Location] = ()) -> None:
        self._holders, self._look = holders, look
        self._folders = folder_names(folders)

    def one(self, rows: Sequence[Mapping[str, Any]]) -> PlacedRows:
        """Return each row once, under the name that it bears if that is right.

        Raises:
            MissingVideosError: a row has no place, and that is to be an error.
        """
        return self._all([(row, self._names(row)[:1]) for row in self._looked_at(rows)])

    def each(self, rows: Sequence[Mapping[str, Any]], same: Sequence[str]) -> PlacedRows:
        """Return each row once for each file that holds its bytes, in the order of names.

        Args:
            rows: some of which may be the same row under several names.
            same: columns by which these are told.

        Raises:
            MissingVideosError: as for `one`.
        """
        found = self._all([(row, self._names(row)) for row in self._looked_at(rows)])
        shared = itemgetter("video", *same)
        by_file: dict[tuple[object, ...], Row] = {}
        for row in found.rows:
            by_file.setdefault(shared(row), row)
        return PlacedRows([*by_file.values()], found.absent)

    def names(self, row: Mapping[str, Any]) -> list[str]:
        """Return all names of a row that was placed."""
        return self._names(row)

    def _looked_at(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        self._holders.look((row["video_digest"], row["video"]) for row in rows)
        return rows

    def _names(self, row: Mapping[str, Any]) -> list[str]:
        digest, own = row["video_digest"], row["video"]
        if digest is None and (not self._look.check or "stage" in row):
            return [own]  # a failure without a digest is of the name itself
        names = self._holders.names(digest)
        if self._folders:
            names = [n for n in names if is_in(n, self._folders)]
        if len(names) < 2 or own not in names:
            return names
        return [own, *(n for n in names if n != own)]

    def _all(self, rows: Sequence[tuple[Mapping[str, Any], list[str]]]) -> PlacedRows:
        placed = [self._placed(row, name) for row, names in rows for name in names]
        lost = [row for row, names in rows if not names and self._is_lost(row)]
        if not lost:
            return PlacedRows(placed)
        if self._look.missing == "keep":
            return PlacedRows(placed + [self._kept(row) for row in lost])
        absent = self._absent(lost, {row["video"] for row in placed})
        if self._look.missing == "error" and (wanted := still_missing(absent)):
            raise missing_videos(wanted)
        return PlacedRows(placed, absent)

    def _is_lost(self, row: Mapping[str, Any]) -> bool:
        """Say whether no file holds a row's bytes; else one does that was not asked for."""
        return not self._holders.names(row["video_digest"])

    def _placed(self, row: Mapping[str, Any], name: str | None) -> Row:
        return {**row, "video": name, "offset_s": self._holders.offset_s(row["video_digest"])}

    def _kept(self, row: Mapping[str, Any]) -> Row:
        is_free = self._holders.is_free(row["video"])
        return self._placed(row, row["video"] if is_free else None)

    def _absent(self, rows: Iterable[Mapping[str, Any]], shown: set[str]) -> list[Absent]:
        numbers = Counter((row["video"], row["video_digest"]) for row in rows)
        found = []
        for (video, digest), number in numbers.items():
            reason = self._holders.reason(digest, video)
            superseded = reason == REPLACED and video in shown
            found.append(Absent(video, EARLIER if superseded else reason, number, superseded))
        return found


def still_missing(absent: Iterable[Absent]) -> list[Absent]:
    """Return those for which nothing is shown in their place."""
    return [each for each in absent if not each.is_superseded]


def missing_videos(absent: Sequence[Absent]) -> MissingVideosError:
    """Return the error that says which videos no file holds."""
    told = "; ".join(f"{each.video}: {each.reason}" for each in absent[:_QUOTED])
    problem = f"of {len(absent)} videos no file holds the bytes: {told}"
    return MissingVideosError(problem, "run `cogcache extract` on the folders they are in now")
