"""The page of clips that may not be worth a caption: static and black ones, and near-duplicates.

What it shows was measured by `cogcache score clips`; nothing is deleted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from cogcache.web.browse import Browser, BrowseRow, Page
from cogcache.web.rendering import render
from cogcache.web.site import Site, site_of

KINDS: Final = ("static", "black", "duplicate")
CLIPS_PER_PAGE: Final = 24
CLUSTERS_PER_PAGE: Final = 12
MOST_SHOWN: Final = 8
"""Near-duplicates that are shown of one cluster."""

# Places are found and counted in the table itself: checksums of all its rows take too long. What is
# shown is read from the whole rows.
_ODD: Final = "name = :name AND caption_key = '' AND score > 0"
_KEPT: Final = "iif(json_valid(details), json_extract(details, '$.of'), NULL)"


def odd_clips(request: Request) -> Response:
    """Show static clips, black clips, or clusters of near-duplicates."""
    site, query = site_of(request), request.query_params
    counts = site.browser.remembered("odd clips", numbers)
    kind = query.get("kind", "")
    kind = kind if kind in KINDS else next((each for each in KINDS if counts[each]), KINDS[0])
    number = max(1, int(given)) if (given := query.get("page", "")).isdecimal() else 1
    values: dict[str, Any] = {"kind": kind, "counts": counts, "is_scored": is_scored(site.browser)}
    if kind == "duplicate":
        values["page"], values["clusters"] = _clusters(site, number)
    else:
        values["page"] = site.shown(clips(site.browser, kind, counts[kind], number))
    return render(request, "odd_clips.html", values)


def is_scored(browser: Browser) -> bool:
    """Say whether any clip was scored."""
    return bool(browser.value("SELECT EXISTS (SELECT 1 FROM shown_scores WHERE name = 'static')"))


def numbers(browser: Browser) -> dict[str, int]:
    """Return how many clips of each kind there are."""
    sql = f"SELECT count(*) FROM shown_scores WHERE {_ODD}"
    return {name: browser.value(sql, {"name": name}) for name in KINDS}


def clusters_of(browser: Browser) -> list[tuple[str, list[str]]]:
    """Return the clips that are kept, each with its near-duplicates, the largest cluster first."""
    sql = f"""SELECT feature_key, {_KEPT} AS kept FROM shown_scores WHERE {_ODD}
        ORDER BY score DESC, feature_key"""
    found: dict[str, list[str]] = {}
    for row in browser.rows(sql, {"name": "duplicate"}):
        if row["kept"] is not None:
            found.setdefault(str(row["kept"]), []).append(row["feature_key"])
    return sorted(found.items(), key=lambda each: (-len(each[1]), each[0]))


def clips(browser: Browser, name: str, total: int, number: int) -> Page:
    """Return a page of the clips that have a score of this name, with their motion."""
    sql = f"""SELECT c.feature_key, c.video, c.video_digest, c.start_s, c.end_s, c.num_frames,
            m.score AS motion
        FROM (SELECT feature_key AS place FROM shown_scores WHERE {_ODD}
            ORDER BY feature_key LIMIT :limit OFFSET :offset)
        JOIN whole_clips c ON c.feature_key = place
        LEFT JOIN whole_scores m ON m.name = 'motion' AND m.feature_key = place
            AND m.caption_key = ''
        ORDER BY c.feature_key"""
    return browser.page(total, number, sql, {"name": name}, CLIPS_PER_PAGE)


def _clusters(site: Site, number: int) -> tuple[Page, list[BrowseRow]]:
    """Return a page of clusters: the clip that is kept, and those that look like it."""
    browser = site.browser
    every = browser.remembered("clusters", clusters_of)
    number = min(number, max(1, -(-len(every) // CLUSTERS_PER_PAGE)))
    some = every[(number - 1) * CLUSTERS_PER_PAGE : number * CLUSTERS_PER_PAGE]
    keys = [key for kept, others in some for key in (kept, *others[:MOST_SHOWN])]
    shown = site.placed(_named(browser, keys))
    clips_of = {row["feature_key"]: row for row in shown.rows}
    clusters = [
        {
            "kept": clips_of[kept],
            "others": [clips_of[key] for key in others[:MOST_SHOWN] if key in clips_of],
            "number": len(others),
        }
        for kept, others in some
        if kept in clips_of
    ]
    page = Page([], number, len(every), size=CLUSTERS_PER_PAGE, absent=shown.absent)
    return page, clusters


def _named(browser: Browser, keys: Sequence[str]) -> list[BrowseRow]:
    sql = """SELECT c.feature_key, c.video, c.video_digest, c.start_s, c.end_s, c.num_frames,
            s.score AS likeness
        FROM whole_clips c LEFT JOIN whole_scores s ON s.name = 'duplicate'
            AND s.feature_key = c.feature_key AND s.caption_key = ''
        WHERE c.feature_key IN (SELECT value FROM json_each(:keys))"""
    return browser.rows(sql, {"keys": json.dumps([*keys])})
