"""The pages that change the catalog: reviews of captions, one by one and in bulk.

They exist only with `--edit`. They accept only forms of their own pages: with the session's token,
from the same origin, and with a form token that no other page can read.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cogcache.catalog import Selection
from cogcache.errors import CatalogError, ConfigError
from cogcache.review import SET, Outcome, Reviewed, Reviews, Rewriting
from cogcache.web import figures
from cogcache.web.browse import Browser, BrowseRow
from cogcache.web.queue import STATES, Queue, QueueFilter, progress, shown_scores
from cogcache.web.rendering import render
from cogcache.web.score_order import score_names
from cogcache.web.site import site_of

Exporter = Callable[[Selection], list[dict[str, Any]]]
MAX_FORM: Final = 256 * 1024
SHOWN_CHANGES: Final = 200
_COUNTED_FOR_S: Final = 5.0
_ACTIONS: Final = ("accept", "reject", "edit", "tag", "untag", "undo")


@dataclass
class Editing:
    """Who reviews captions, and into which set.

    Args:
        secret: the session's token, from which form tokens are derived.
        author: who reviews; None for the name of the user.
        set_name: set that edits belong to.
        exporter: returns the rows of an export; passed in because this room imports no export.
    """

    secret: str = field(repr=False)
    author: str | None = None
    set_name: str = SET
    exporter: Exporter | None = None

    @property
    def form_token(self) -> str:
        """The token that every form must send."""
        return hmac.digest(self.secret.encode(), b"cogcache forms", "sha256").hex()

    def progress(self, request: Request) -> dict[str, int] | None:
        """Return the progress of the reviews; None where that is still being counted.

        It may be a few seconds old, or older where counting takes long.
        """
        name = ("progress", self.set_name)
        browser = site_of(request).browser

        def read(browser: Browser) -> dict[str, int]:
            return progress(browser, self.set_name)

        with suppress(CatalogError):
            return browser.remembered(name, read, kept_s=_COUNTED_FOR_S)
        return None

    def reviews(self, request: Request) -> Reviews:
        """Return the reviews of the site."""
        return Reviews(site_of(request).catalog, self.set_name, self.author)


def routes() -> list[Route]:
    """Return the addresses of these pages."""
    return [
        Route("/review", review),
        Route("/review", act, methods=["POST"]),
        Route("/review/bulk", bulk),
        Route("/review/bulk", change_all, methods=["POST"]),
        Route("/review/export", export),
    ]


def editing_of(request: Request) -> Editing:
    """Return who may review."""
    editing: Editing = request.app.state.editing
    return editing


# ---- one by one -------------------------------------------------------------------------------


def review(request: Request) -> Response:
    """Show one caption of the queue, with all that can be done with it."""
    given = dict(request.query_params)
    return _page(request, QueueFilter.of(given), given)


def _page(
    request: Request,
    wanted: QueueFilter,
    given: Mapping[str, str],
    more: Mapping[str, Any] | None = None,
    status: int = 200,
) -> Response:
    site, editing = site_of(request), editing_of(request)
    queue = Queue(site, wanted)
    values: dict[str, Any] = {"wanted": wanted, "row": None, "conflict": None}

    def fill() -> None:
        at, after = _digits(given.get("at")), _digits(given.get("after"))
        row = queue.at(at) if at else queue.after(after)
        if row is not None:
            values.update(_shown(request, queue, row))

    error = _problem_of(fill)
    values |= {"problem": error, "form_token": editing.form_token}
    values |= {"progress": editing.progress(request), **_choices(request), **(more or {})}
    return render(request, "review.html", values, 400 if error else status)


def _problem_of(fill: Callable[[], None]) -> ConfigError | None:
    """Look up what a page shows; return what is wrong with the address, which the page tells."""
    try:
        fill()
    except ConfigError as error:
        return error
    return None


def _shown(request: Request, queue: Queue, row: BrowseRow) -> dict[str, Any]:
    """Return what a page shows of a caption."""
    site, editing = site_of(request), editing_of(request)
    found = editing.reviews(request).of_keys([row["caption_key"]])
    if row["caption_key"] not in found:
        raise HTTPException(404, "The catalog has no such caption.")
    reviewed = found[row["caption_key"]]
    clip = site.browser.clip(row["feature_key"])
    held = next(iter(site.placed([clip] if clip else []).rows), None)
    here = {name: held[name] for name in ("video", "offset_s")} if held else {"video": ""}
    edited = reviewed.version["edited_key"] if reviewed.version else ""
    scores = shown_scores(site.browser, [row["caption_key"], edited], row["feature_key"])
    weak = [word for s in scores if s["name"] == "grounding" for word in s["details"]["least"]]
    beside = site.browser.of_clip("captions", clip) if clip else []
    return {
        "row": row,
        "reviewed": reviewed,
        "clip": {**clip, **here} if clip else None,
        "video": site.browser.video(clip["video_digest"]) if clip and held else None,
        "scores": scores,
        "weak": [word for word, _, _ in weak],
        "history": site.catalog.edits.history(row["caption_key"], editing.set_name),
        "beside": [each for each in beside if each["caption_key"] != row["caption_key"]],
        "before": queue.before(row["id"]),
        "after": queue.after(row["id"]),
        "place": _place(queue, row["id"]),
    }


def _place(queue: Queue, number: int) -> tuple[int, int] | None:
    """Return the place in the queue, and its length; None where counting takes too long."""
    if queue.wanted.state:
        return None  # each caption's newest version would be looked up, and reviews change it
    try:
        return queue.count(number), queue.count()
    except CatalogError:
        return None


def _choices(request: Request) -> dict[str, Any]:
    site = site_of(request)
    made = figures.captions(site.browser)
    return {
        "prompts": sorted({one.prompt_name for one in made["sets"]}),
        "models": sorted({one.model for one in made["sets"] if one.quantization != "edited"}),
        "flag_names": sorted(made["flags"]),
        "states": STATES,
        "names": score_names(site.browser),
    }


async def act(request: Request) -> Response:
    """Do what a form of the page asks, and go on to the next caption."""
    form = await _form(request)
    editing, wanted = editing_of(request), QueueFilter.of(form)
    reviews = editing.reviews(request)
    reviewed = reviews.of_keys([form.get("key", "")]).get(form.get("key", ""))
    if reviewed is None or form.get("action") not in _ACTIONS:
        raise HTTPException(400, "The form names no caption, or nothing that can be done.")
    number = reviewed.caption["id"]
    try:
        outcome = _done(reviews, reviewed, form)
    except ConfigError as error:
        return _page(request, wanted, {"at": str(number)}, {"problem": error}, 400)
    if outcome.conflicts:
        mine = form.get("text") if form["action"] == "edit" else None
        again = {"conflict": {"action": form["action"], "mine": mine}}
        return _page(request, wanted, {"at": str(number)}, again, 409)
    goes_on = form["action"] in ("accept", "reject", "edit")
    place = {"after" if goes_on else "at": str(number)}
    return RedirectResponse(f"/review?{urlencode(wanted.values() | place)}", 303)


def _done(reviews: Reviews, reviewed: Reviewed, form: Mapping[str, str]) -> Outcome:
    seen = {reviewed.key: form.get("version", "")}
    match form["action"]:
        case "accept":
            return reviews.accept([reviewed], seen)
        case "reject":
            return reviews.reject([reviewed], seen)
        case "edit":
            return reviews.edit(reviewed, form.get("text", "").replace("\r\n", "\n"), seen)
        case "tag":
            return reviews.tag([reviewed], add=[form.get("tag_text", "")], latest=seen)
        case "untag":
            return reviews.tag([reviewed], remove=[form.get("tag_text", "")], latest=seen)
        case _:
            return reviews.undo([reviewed], seen)


# ---- in bulk ----------------------------------------------------------------------------------


def bulk(request: Request) -> Response:
    """Show what a change of all captions of the queue would do."""
    given = dict(request.query_params)
    return _bulk_page(request, QueueFilter.of(given), given)


def _bulk_page(
    request: Request,
    wanted: QueueFilter,
    given: Mapping[str, str],
    more: Mapping[str, Any] | None = None,
) -> Response:
    values: dict[str, Any] = {"wanted": wanted, "given": given, "changes": None, "outcome": None}
    values |= {"number": 0, "shown": SHOWN_CHANGES}

    def fill() -> None:
        captions = _captions(request, wanted)
        values["number"] = len(captions)
        if any(given.get(name) for name in ("old", "prefix", "suffix", "trigger")):
            values["changes"] = rewriting_of(given).preview(captions)

    error = _problem_of(fill)
    values |= {"problem": error, "form_token": editing_of(request).form_token, **(more or {})}
    return render(request, "bulk.html", values, 400 if error else 200)


def rewriting_of(given: Mapping[str, str]) -> Rewriting:
    """Return the change that an address or a form says."""
    return Rewriting(
        old=given.get("old", ""),
        new=given.get("new", ""),
        regex=bool(given.get("regex")),
        ignore_case=bool(given.get("ignore_case")),
        prefix=given.get("prefix", ""),
        suffix=given.get("suffix", ""),
        trigger=given.get("trigger", ""),
    )


def _captions(request: Request, wanted: QueueFilter) -> list[Reviewed]:
    keys = [row["caption_key"] for row in Queue(site_of(request), wanted).all()]
    return [*editing_of(request).reviews(request).of_keys(keys).values()]


async def change_all(request: Request) -> Response:
    """Change all captions of the queue, or take a change back."""
    form = await _form(request)
    wanted, reviews = QueueFilter.of(form), editing_of(request).reviews(request)
    try:
        match form.get("action"):
            case "undo":
                outcome = reviews.undo_batch(form.get("batch") or None)
            case "accept":
                outcome = reviews.accept(_captions(request, wanted))
            case "replace":
                changes = rewriting_of(form).preview(_captions(request, wanted))
                texts = {each.reviewed.key: each.after for each in changes}
                outcome = reviews.rewrite(texts, [each.reviewed for each in changes])
            case _:
                raise HTTPException(400, "The form names nothing that can be done.")
    except ConfigError as error:
        return _bulk_page(request, wanted, form, {"problem": error})
    told = {"outcome": outcome, "action": form["action"], "changes": None}
    return _bulk_page(request, wanted, wanted.values(), told)


def export(request: Request) -> Response:
    """Download the captions of the queue as JSONL, edited ones in place of their originals."""
    import json

    editing, wanted = editing_of(request), QueueFilter.of(dict(request.query_params))
    if editing.exporter is None:
        raise HTTPException(404, "These pages hand nothing out.")
    rows = Queue(site_of(request), wanted).all()
    models = [wanted.model] if wanted.model else _choices(request)["models"]
    places = {(row["feature_key"], row["prompt_name"]) for row in rows}
    prefer = (editing.set_name, *models)
    found = editing.exporter(Selection(prefer=prefer, include_rejected=wanted.state == "rejected"))
    chosen = [row for row in found if (row["feature_key"], row["prompt_name"]) in places]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    headers = {"content-disposition": 'attachment; filename="captions.jsonl"'}
    return Response(text, media_type="application/jsonl", headers=headers)


# ---- who may ----------------------------------------------------------------------------------


async def _form(request: Request) -> dict[str, str]:
    """Return what a form of ours sent.

    Raises:
        HTTPException: it comes from elsewhere, is too long, or is of another session.
    """
    if not _is_own(request):
        raise HTTPException(403, "Only the pages of this server may change something.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM:
            raise HTTPException(413, "That is too long.")
    read = parse_qs(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=64)
    form = {name: values[0] for name, values in read.items()}
    given = hashlib.sha256(form.get("form_token", "").encode()).digest()
    wanted = hashlib.sha256(editing_of(request).form_token.encode()).digest()
    if not hmac.compare_digest(given, wanted):
        raise HTTPException(403, "The form is of another session; open the page again.")
    return form


def _is_own(request: Request) -> bool:
    """Return whether the browser says that a request comes from a page of this server.

    Pages without a referrer send `null` for their origin; then the other header must tell.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is not None and origin != "null":
        return urlsplit(origin).netloc == request.headers.get("host", "")
    return site == "same-origin"


def _digits(given: str | None) -> int:
    digits = given or ""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else 0
