"""The pages: each reads what it shows and hands it to a template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cogcache.catalog import MIN_PREFIX, PlacedRows, Selection, has_unspaced, text_to_path
from cogcache.errors import CogcacheError, ConfigError
from cogcache.web import charts, figures
from cogcache.web.browse import PAGE_SIZE, BrowseRow, CaptionSet, Filter, Page, beside
from cogcache.web.counting import StillCountingError
from cogcache.web.rendering import MARKS, render
from cogcache.web.site import Site, site_of


def clips(request: Request) -> Response:
    """Show all clips, or the captions that a search or a filter finds."""
    site, query = site_of(request), request.query_params
    text = query.get("q", "").strip()
    wanted = Filter(query.get("prompt", ""), query.get("model", ""), query.get("flag", ""))
    values: dict[str, Any] = {"text": text, "wanted": wanted, "problem": None}
    status = 200
    try:
        page = site.shown(_found(site, text, wanted, _number(query.get("page"))))
        values |= {"page": page, "cards": _cards(page.rows)}
    except ConfigError as error:
        values["problem"], status = error, 400
    if "part" in query:
        return render(request, "_clips.html", values, status)
    return render(request, "clips.html", values | _choices(site), status)


def _found(site: Site, text: str, wanted: Filter, number: int) -> Page:
    if not text:
        return site.browser.captions(wanted, number) if wanted else site.browser.clips(number)
    some = Selection(
        prompts=(wanted.prompt,) if wanted.prompt else (),
        models=(wanted.model,) if wanted.model else (),
        flags=(wanted.flag,) if wanted.flag else (),
    )
    offset = (number - 1) * PAGE_SIZE
    found = site.search.search(_typed(text), some, limit=PAGE_SIZE, offset=offset, marks=MARKS)
    rows = [{**hit.caption, "snippet": hit.snippet} for hit in found.hits]
    return Page(rows, number, found.num_ranked, found.capped)


def _cards(rows: Sequence[BrowseRow]) -> list[list[BrowseRow]]:
    """Return the rows of a page by their clip: a clip is one card, whatever was said of it."""
    cards: dict[tuple[object, ...], list[BrowseRow]] = {}
    for row in rows:
        clip = (row["video_digest"] or row["feature_key"], row["start_s"], row["end_s"])
        cards.setdefault(clip, []).append(row)
    return list(cards.values())


def _typed(text: str) -> str:
    """Return a search for a text that is still being typed: its last word may be incomplete."""
    last = text.split()[-1]
    whole = not last.isalnum() or last == "AND" or text.count('"') % 2 or has_unspaced(last)
    return text if whole or len(last) < MIN_PREFIX else f"{text}*"


def _choices(site: Site) -> dict[str, Any]:
    made = figures.captions(site.browser)
    return {
        "prompts": sorted({one.prompt_name for one in made["sets"]}),
        "models": sorted({one.model for one in made["sets"]}),
        "flags": sorted(made["flags"]),
    }


def clip(request: Request) -> Response:
    """Show one clip: the player, and all captions by prompt and model side by side."""
    site = site_of(request)
    found = site.browser.clip(request.path_params["key"])
    if found is None:
        raise HTTPException(404, "The catalog has no such clip.")
    captions: dict[str, list[Any]] = {}
    for row in site.browser.of_clip("captions", found):
        captions.setdefault(row["prompt_name"], []).append(row)
    shown = site.placed([found])
    video = site.browser.video(found["video_digest"]) if shown.rows else None
    # Of a clip that no file holds, the name is not told as its own: another video may bear it.
    name = shown.rows[0]["video"] if shown.rows else ""
    before, after = (_named(site, each) for each in beside(site.browser, found))
    offset_s = shown.rows[0]["offset_s"] if shown.rows else 0.0
    values = {
        "clip": {**found, "video": name, "offset_s": offset_s},
        "absent": shown.absent,
        "video": video,
        "is_gif": text_to_path(name).suffix.lower() == ".gif",
        "captions": captions,
        "made": site.browser.of_clip("clips", found),
        "failures": site.browser.of_clip("failures", found),
        "before": before,
        "after": after,
    }
    return render(request, "clip.html", values)


def _named(site: Site, clip: BrowseRow | None) -> BrowseRow | None:
    """Return a clip under the file that holds it now; None where none does."""
    return next(iter(site.placed([clip]).rows), None) if clip else None


def differences(request: Request) -> Response:
    """Show where two sets of captions differ."""
    site, query = site_of(request), request.query_params
    sets = sorted(site.browser.sets())
    one, other = (_chosen(sets, query.get(name), place) for place, name in enumerate("ab"))
    shown, following = PlacedRows(), None
    if one is not None and other is not None and one != other:
        rows, following = site.browser.differences(one, other, _number(query.get("after"), 0))
        shown = site.placed(rows)
    values: dict[str, Any] = {"sets": sets, "one": one, "other": other, "following": following}
    values |= {"rows": shown.rows, "absent": shown.absent}
    return render(request, "differences.html", values)


def _chosen(sets: list[CaptionSet], given: str | None, place: int) -> CaptionSet | None:
    """Return the set with this name; without a name, the first ones."""
    named = next((each for each in sets if each.name == given), None)
    return named or (sets[place] if given is None and place < len(sets) else None)


def failures(request: Request) -> Response:
    """Show the failures and their reasons."""
    site, query = site_of(request), request.query_params
    reason = query.get("reason", "")
    page = site.shown(figures.failures(site.browser, reason, _number(query.get("page"))))
    reasons = figures.failure_reasons(site.browser)
    return render(request, "failures.html", {"page": page, "reasons": reasons, "reason": reason})


def runs(request: Request) -> Response:
    """Show the runs, newest first."""
    page = figures.runs(site_of(request).browser, _number(request.query_params.get("page")))
    return render(request, "runs.html", {"page": page})


def run(request: Request) -> Response:
    """Show one run: memory over time, and where the time went."""
    browser = site_of(request).browser
    number = _number(request.path_params["run"], 0)
    found = figures.run(browser, number) if number else None
    if found is None:
        raise HTTPException(404, "The catalog has no such run.")
    levels = {"planned": found["planned_peak_bytes"]} if found["planned_peak_bytes"] else {}
    picture = charts.timeline(found["report"].get("timeline", []), levels)
    return render(request, "run.html", {"run": found, "picture": picture, "charts": charts})


def collection(request: Request) -> Response:
    """Show the figures of the whole collection."""
    browser = site_of(request).browser
    found = figures.collection(browser)
    values = {
        "figures": found,
        "sets": {each.name: count for each, count in found["sets"].most_common()},
        "lengths": {f"{low}–{low + 9}": n for low, n in sorted(found["lengths"].items())},  # noqa: RUF001
        "reasons": figures.failure_reasons(browser),
        "is_counting": browser.is_counting(figures.NAME),
    }
    return render(request, "figures.html", values)


def _number(given: str | None, least: int = 1) -> int:
    """Return a number from an address; anything else counts as the smallest number."""
    digits = given or ""
    usable = digits.isascii() and digits.isdigit() and len(digits) < 16
    return max(least, int(digits)) if usable else least


def refused(request: Request, error: Exception) -> Response:
    """Show a cogcache error or an HTTP error as a page."""
    if isinstance(error, HTTPException):
        values = {"problem": error.detail, "hint": ""}
        return render(request, "error.html", values, error.status_code)
    assert isinstance(error, CogcacheError)
    if isinstance(error, StillCountingError):
        answer = render(request, "counting.html", {})
        answer.headers["Refresh"] = "1"
        return answer
    values = {"problem": error.problem, "hint": error.hint}
    return render(request, "error.html", values, 503)
