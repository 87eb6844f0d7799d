"""Captions that reviewers rejected and that are made once more (`remake_rejected`).

The rejected caption is kept among the forgotten ones, and its history goes on: the new caption is
one that nobody has reviewed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from cogcache.catalog import CaptionRow, Catalog, forget
from cogcache.review import Reviews, reopen

if TYPE_CHECKING:
    from cogcache.generation import Request

_SEED_STEP: Final = 0x9E3779B97F4A7C15
"""Odd, so that each try of a caption has a seed of its own."""


def rejections(catalog: Catalog, caption_keys: Collection[str]) -> dict[str, int]:
    """Return, of captions that are rejected now, how often they were; by key."""
    keys = catalog.edits.rejected(caption_keys)
    histories = {key: catalog.edits.history(key) for key in keys}
    return {
        key: max(1, sum(each["action"] == "reject" for each in versions))
        for key, versions in histories.items()
    }


def drawn_anew(request: Request, rejected: int) -> Request:
    """Return the request that draws another caption: the same settings would give the rejected one.

    Args:
        request: for the caption.
        rejected: how often it was; 0 for a caption that was not.
    """
    if not rejected:
        return request
    seed = (request.seed + rejected * _SEED_STEP) % 2**63
    generation = request.generation.model_copy(update={"do_sample": True})
    return replace(request, seed=seed, generation=generation)


def said_of(request: Request) -> dict[str, Any]:
    """Return what a caption that was drawn anew says of how it was made."""
    return {"because": ["rejected"], "changes": {"do_sample": True, "seed": request.seed}}


@dataclass(frozen=True)
class _OfKeys:
    keys: Collection[str]

    def where(self) -> tuple[str, dict[str, Any]]:
        values = {"remade": json.dumps([*self.keys])}
        return "c.caption_key IN (SELECT value FROM json_each(:remade))", values


def put_in_place(catalog: Catalog, rows: Sequence[CaptionRow]) -> None:
    """Put captions in the place of those that were rejected.

    What is interrupted leaves a caption that is missing, or still counts as rejected: the same run,
    typed again, goes on.
    """
    if not rows:
        return
    keys = [row["caption_key"] for row in rows]
    before = catalog.captions.of_keys(keys)
    texts = {row["caption_key"]: row["caption"] for row in before}
    forget(catalog.path, _OfKeys(keys), remove=True)
    catalog.captions.add(rows)
    sets = {each["set_name"] for key in keys for each in catalog.edits.history(key)}
    for set_name in sorted(sets):
        reviews = Reviews(catalog, set_name, author="cogcache")
        found = [each for each in reviews.of_keys(keys).values() if each.state == "rejected"]
        reopen(reviews, found, texts)
