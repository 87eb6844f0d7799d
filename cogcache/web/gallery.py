"""Selected captions beside their pictures, as one HTML file to send to others.

The file needs no other file and runs no script. It shows the names of videos, not their folders.
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any, Final, NamedTuple

from markupsafe import Markup

from cogcache.catalog import (
    Absent,
    CaptionSearch,
    Catalog,
    Look,
    Placing,
    Selection,
    missing_videos,
)
from cogcache.errors import CacheError, ConfigError
from cogcache.store import FeatureStore
from cogcache.system import CachePaths, seal
from cogcache.web.browse import Browser, BrowseRow, pictured
from cogcache.web.rendering import HERE, environment

_COLUMNS: Final = """feature_key, video, video_digest, start_s, end_s, prompt_name, caption, model,
    quantization"""


class Written(NamedTuple):
    """What is on the page, and what is not."""

    clips: int
    absent: list[Absent]
    """Videos whose bytes no file holds."""


def write_gallery(
    cache: Path,
    out: Path,
    selection: Selection | None = None,
    *,
    text: str | None = None,
    limit: int = 200,
    title: str = "Captions",
    look: Look | None = None,
) -> Written:
    """Write a page of captions beside the pictures of their clips.

    Args:
        cache: folder of the cache.
        out: the HTML file; written whole or not at all.
        selection: filters that the captions have to pass.
        text: only captions that a search finds, best first; else by video and start.
        limit: most clips of one page.
        title: heading of the page.
        look: how files are looked at; those of the clips on the page are.

    Raises:
        CogcacheError: the cache or its catalog cannot be used, or nothing is selected.
        MissingVideosError: no file holds any of the videos, or one of them and this is an error.
    """
    store, catalog = FeatureStore.open(cache), CachePaths(cache).catalog
    some, look = selection or Selection(), look or Look()
    with Catalog(catalog) as opened:
        holders = opened.holders(check=look.check)
        if look.check:
            holders.look_in(some.folders)
        captions = _found(catalog, text, some, limit) if text else _selected(catalog, some, limit)
        placed = Placing(holders, look, some.folders).one(captions)
    clips: dict[str, BrowseRow] = {}
    for row in placed.rows:
        clip = clips.setdefault(row["feature_key"], {**row, "captions": []})
        clip["captions"].append(row)
    if not clips and placed.absent:
        raise missing_videos(placed.absent)
    if not clips:
        raise ConfigError("no caption fits", "select others, or make some with `cogcache caption`")
    shown = list(clips.values())[:limit]
    with Browser(catalog, deadline_s=math.inf) as browser:
        pictured = [_with_picture(store, browser, clip) for clip in shown]
    template, more = environment().get_template("gallery.html"), len(clips) > limit
    page = template.render(title=title, clips=pictured, more=more, style=_style())
    seal(out, page.encode(errors="replace"), cache=cache)
    return Written(len(shown), placed.absent)


def _found(catalog: Path, text: str, selection: Selection, limit: int) -> list[Any]:
    with CaptionSearch(catalog) as search:
        found = search.search(text, selection, limit=limit)
    return [hit.caption for hit in found.hits]


def _selected(catalog: Path, selection: Selection, limit: int) -> list[BrowseRow]:
    where, values = selection.where()
    tests = f"WHERE {where}" if where else ""
    with Browser(catalog, deadline_s=math.inf) as browser:
        keys = browser.rows(
            f"""SELECT feature_key FROM whole_captions c {tests} GROUP BY feature_key
            ORDER BY min(video), min(start_s), feature_key LIMIT :limit""",
            {**values, "limit": limit + 1},
        )
        chosen = json.dumps([row["feature_key"] for row in keys])
        tests = f"{tests} {'AND' if where else 'WHERE'} feature_key IN"
        return browser.rows(
            f"""SELECT {_COLUMNS}, flags FROM whole_captions c
            {tests} (SELECT value FROM json_each(:keys)) ORDER BY video, start_s, id""",
            {**values, "keys": chosen},
        )


def _with_picture(store: FeatureStore, browser: Browser, clip: BrowseRow) -> BrowseRow:
    key = clip["feature_key"]
    try:
        key = key if key in store else pictured(browser, key)
        picture = store.read(key, names=()).thumbnail
    except (CacheError, ValueError):  # gone, damaged, or a caption from elsewhere
        picture = None
    return {**clip, "picture": base64.b64encode(picture).decode() if picture else ""}


def _style() -> Markup:
    # Our own file, and the one thing that is not to be escaped.
    return Markup((HERE / "static" / "style.css").read_text(encoding="utf-8"))
