"""Times in listings: those that a player shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogcache.catalog import Catalog

Rows = list[dict[str, Any]]


def with_offsets(catalog: Catalog, rows: Sequence[Any], *, add: bool) -> Rows:
    """Return rows of clips or captions with `offset_s`, the time of their video's first frame.

    Args:
        catalog: knows the videos.
        rows: with `start_s` and `end_s`, which count from the first frame.
        add: whether it is added to these, for people to read; programs add it themselves.
    """
    offsets = {row["digest"]: row["offset_s"] or 0.0 for row in catalog.files.videos()}
    if not any(offsets.values()) and add:
        return [*rows]
    digests = {row["feature_key"]: row["video_digest"] for row in catalog.clips.rows()}
    found: Rows = []
    for row in rows:
        digest = digests.get(row["feature_key"]) or row["settings"].get("video_digest")
        offset_s = offsets.get(digest, 0.0)
        times = {"start_s": row["start_s"], "end_s": row["end_s"]}
        if add:
            times = {k: each if each is None else each + offset_s for k, each in times.items()}
        found.append({**row, **times, "offset_s": offset_s})
    return found


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
