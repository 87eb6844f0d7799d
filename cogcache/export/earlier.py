"""Leaves out captions whose features come from other frames than a player shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from cogcache.catalog import Catalog, ClipRow, looked_at, read_otherwise
from cogcache.errors import CacheError
from cogcache.export.items import Item
from cogcache.video import look_at

ANEW = "`cogcache extract` makes its features anew, and `cogcache caption` its caption"


def as_shown(catalog: Path, items: Sequence[Item]) -> tuple[list[Item], list[tuple[str, str]]]:
    """Return the captions to hand on, with players' times, and the others with the reason.

    Videos that nobody has looked at since are looked at, where they are here.
    """
    digests = {item.video_digest for item in items if item.video_digest}
    with Catalog(catalog) as opened:
        known = looked_at(opened.files, digests, look_at)
    shown: list[Item] = []
    old: list[tuple[Item, str]] = []
    for item in items:
        reason = read_otherwise(_clip_of(item), known) if item.clip_settings else None
        if reason:
            old.append((item, reason))
            continue
        reading = known.get(item.video_digest or "")
        offset_s = item.offset_s if reading is None else reading.offset_s
        shown.append(replace(item, offset_s=offset_s, row={**item.row, "offset_s": offset_s}))
    # What has been made anew takes the place of the old, of which nothing is to be said then.
    there = {(item.video_digest, item.span, item.row["prompt_name"]) for item in shown}
    left_out = [
        (item.row["video"], f"its features are of another reading: {reason}; {ANEW}")
        for item, reason in old
        if (item.video_digest, item.span, item.row["prompt_name"]) not in there
    ]
    if left_out and not shown:
        video, reason = left_out[0]
        raise CacheError(f"no caption can be handed on; {video}: {reason}")
    return shown, left_out


def _clip_of(item: Item) -> ClipRow:
    settings: Mapping[str, Any] = json.loads(item.clip_settings or "{}")
    made = {"video_digest": item.video_digest, "end_s": item.span[1], "settings": settings}
    return cast(ClipRow, made)
