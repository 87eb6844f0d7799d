"""Templates, and how names, captions, numbers and differences are written in them.

Everything is escaped by the template engine; what is marked up here is escaped here first.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from cogcache.catalog import changes, text_to_path
from cogcache.units import format_bytes, format_seconds

HERE: Final = Path(__file__).parent
MARKS: Final = ("\x02", "\x03")
"""Mark the start and end of found words in snippets; no caption contains these characters."""
_MAX_DIFF_WORDS: Final = 1500
_HIDDEN_KINDS: Final = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


@cache
def environment() -> Environment:
    """Return the templates, which escape all that they are given."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "name": file_name,
        "path": visible,
        "span": span,
        "played": played,
        "bytes": format_bytes,
        "seconds": format_seconds,
        "number": lambda number: f"{number:,}",
        "marked": marked,
        "caption": caption_text,
        "weakened": weakened,
        "json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "time": lambda text: (text or "").replace("T", " ").removesuffix("+00:00"),
        "query": lambda values: urlencode({k: v for k, v in values.items() if v}),
    }
    made.globals["differences"] = differences
    return made


def render(
    request: Request, template: str, values: Mapping[str, Any], status: int = 200
) -> HTMLResponse:
    """Return a page. Templates know where they are by ``here``, and what was left out."""
    site = getattr(request.app.state, "site", None)
    damaged = site.browser.num_damaged if site is not None else 0
    editing = getattr(request.app.state, "editing", None) is not None
    known = {"here": request.url.path, "damaged": damaged, "editing": editing}
    text = environment().get_template(template).render(**known, **values)
    return HTMLResponse(text, status)


def file_name(video: str) -> str:
    """Return the last part of a video's path, as `visible` writes it."""
    return visible(text_to_path(video).name)


def visible(text: str) -> str:
    r"""Return a name with invisible characters as ``\xNN``: they could hide or reverse text."""
    return "".join(_visible(letter) for letter in text)


def _visible(letter: str) -> str:
    hidden = unicodedata.category(letter) in _HIDDEN_KINDS
    return letter.encode("unicode_escape").decode() if hidden else letter


def caption_text(text: str) -> str:
    """Return a caption without control characters; lines stay."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")


def span(clip: Mapping[str, Any]) -> str:
    """Return what part of its video a clip is, by a player's times: all, or from where to where."""
    if not clip["start_s"] and clip["end_s"] is None:
        return "whole video"
    start_s, end_s = (played(clip, name) for name in ("start_s", "end_s"))
    end = "end" if end_s is None else _clock(end_s)
    return f"{_clock(start_s or 0.0)}–{end}"  # noqa: RUF001  # a range


def played(clip: Mapping[str, Any], name: str) -> float | None:
    """Return when a player reaches a time of a clip, `start_s` or `end_s`; None for the end.

    A clip's times count from its video's first frame, which a player shows at `offset_s`.
    """
    return None if clip[name] is None else float(clip[name] + (clip.get("offset_s") or 0.0))


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(round(time_s, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{seconds:04.1f}".removesuffix(".0")
    return f"{hours}:{minutes:02}:{shown}" if hours else f"{minutes}:{shown}"


def marked(snippet: str) -> Markup:
    """Return a snippet with the found words marked; everything else is escaped."""
    parts = re.split("[\x02\x03]", snippet)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(caption_text(part) for part in parts)
    )


def weakened(text: str, words: Sequence[str]) -> Markup:
    """Return a caption with its least supported words marked; everything else is escaped."""
    shown = caption_text(text)
    found = [re.escape(word.strip()) for word in words if word.strip()]
    if not found:
        return escape(shown)
    parts = re.split(rf"(?<!\w)({'|'.join(found)})(?!\w)", shown)
    return Markup("").join(
        Markup('<span class="weak">{}</span>').format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def differences(one: str, other: str) -> tuple[Markup, Markup]:
    """Return two captions, each with the words marked that the other lacks."""
    texts = (caption_text(one), caption_text(other))
    if max(len(text.split()) for text in texts) > _MAX_DIFF_WORDS:
        return escape(texts[0]), escape(texts[1])
    sides: tuple[list[Markup], list[Markup]] = ([], [])
    for change in changes(*texts):
        for side, text, tag in zip(sides, change[:2], ("del", "ins"), strict=True):
            if text:
                side.append(escape(text) if change.is_same else _wrapped(text, tag))
    return Markup("").join(sides[0]), Markup("").join(sides[1])


def _wrapped(text: str, tag: str) -> Markup:
    blank = text[: len(text) - len(text.lstrip())]
    return Markup("{}<{}>{}</{}>").format(blank, Markup(tag), text.lstrip(), Markup(tag))
