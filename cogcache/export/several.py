"""Chooses among several captions of a clip, for formats with room for one or for all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from cogcache.catalog import Catalog
from cogcache.errors import ConfigError
from cogcache.export.items import Item

_HINT = "write it as all, best:SCORE or random:SEED"


def by_clip(items: Sequence[Item]) -> list[list[Item]]:
    """Return the captions of each clip, in the order in which clips come first."""
    clips: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        clips.setdefault((item.video_digest or item.row["video"], item.span), []).append(item)
    return [*clips.values()]


def choose_several(items: Sequence[Item], how: str, catalog: Path) -> list[Item]:
    """Return the captions that `--captions-per-clip` chooses, in their order.

    Args:
        items: all that passed the filters.
        how: `all`; `best:SCORE`, the one with the highest score; `random:SEED`, one by chance, the
            same for the same seed and clip.
        catalog: has the scores.

    Raises:
        ConfigError: `how` is none of these, or no caption of a clip has the score.
    """
    kind, _, what = how.partition(":")
    if how == "all":
        return list(items)
    if kind == "best" and what:
        return _best(items, what, catalog)
    if kind == "random" and what.isdecimal():
        return [
            random.Random(f"{what} {some[0].video_digest} {some[0].span}").choice(some)
            for some in by_clip(items)
        ]
    raise ConfigError(f"--captions-per-clip {how!r} means nothing", _HINT)


def _best(items: Sequence[Item], name: str, catalog: Path) -> list[Item]:
    keys = [item.row["caption_key"] for item in items]
    with Catalog(catalog) as opened:
        rows = opened.scores.rows(names=[name], caption_keys=keys)
    scores = {row["caption_key"]: row["score"] for row in rows}
    found = []
    for some in by_clip(items):
        scored = [item for item in some if item.row["caption_key"] in scores]
        if not scored and len(some) > 1:
            problem = f"no caption of {some[0].row['video']} has the score {name!r}"
            raise ConfigError(problem, f"score them: `cogcache score {name}`")
        best = max(scored, key=lambda item: scores[item.row["caption_key"]], default=some[0])
        found.append(best)
    return found
