"""Times and names in listings: those that a player shows, and those of the files of today."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogcache.catalog import Catalog

Rows = list[dict[str, Any]]


def as_players_show(rows: Sequence[Any]) -> Rows:
    """Return rows for people to read, with times as a player shows them; programs add `offset_s`.

    Args:
        rows: whose `start_s` and `end_s` count from the first frame of a video, which a player
            shows at `offset_s`; rows without times stay as they are.
    """
    return [_shown(row) if row.get("offset_s") else {**row} for row in rows]


def under_names_of_today(catalog: Catalog, rows: Sequence[Any]) -> Rows:
    """Return rows of captions under the files that hold their videos now, in the same order.

    Where no file holds a video, its row keeps the name; None where other bytes have it by now.
    """
    from cogcache.catalog import Look, Placing

    numbered = [{**row, "place": place} for place, row in enumerate(rows)]
    placed = Placing(catalog.holders(), Look("keep")).one(numbered).rows
    return [
        {name: value for name, value in row.items() if name != "place"}
        for row in sorted(placed, key=lambda row: int(row["place"]))
    ]


def _shown(row: Any) -> dict[str, Any]:
    times = {name: row[name] for name in ("start_s", "end_s") if row.get(name) is not None}
    return {**row, **{name: row["offset_s"] + time_s for name, time_s in times.items()}}


def with_notes(catalog: Catalog, rows: Sequence[Any]) -> Rows:
    """Return rows of clips with `note`: in which way features are of other frames than shown.

    Videos that nobody has looked at since are looked at, where they are here.
    """
    from cogcache.catalog import looked_at, read_otherwise
    from cogcache.video import look_at

    known = looked_at(catalog.files, {row["video_digest"] for row in rows}, look_at)
    notes = [read_otherwise(row, known) for row in rows]
    return [
        {**row, "note": f"of another reading: {note}" if note else None}
        for row, note in zip(rows, notes, strict=True)
    ]
