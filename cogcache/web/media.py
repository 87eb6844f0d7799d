"""Serves pictures and videos of the catalog, addressed by digest and never by path."""

from __future__ import annotations

import mimetypes
import re
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from cogcache.catalog import names_url, text_to_file
from cogcache.errors import CacheError
from cogcache.web.browse import pictured
from cogcache.web.rendering import HERE
from cogcache.web.site import site_of

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_IMMUTABLE: Final = {"cache-control": "private, max-age=31536000, immutable"}
_NO_PICTURE: Final = HERE / "static" / "no-picture.svg"
_OTHER_TYPES: Final = {".mkv": "video/x-matroska", ".m2ts": "video/mp2t", ".mts": "video/mp2t"}


def thumbnail(request: Request) -> Response:
    """Answer with the JPEG in a feature file, or with a picture that says there is none."""
    key = request.path_params["key"]
    picture = None
    if _KEY.fullmatch(key):
        try:
            site = site_of(request)
            key = key if key in site.store else pictured(site.browser, key)
            picture = site.store.read(key, names=()).thumbnail
        except CacheError:  # gone or damaged: `cogcache verify` is the place to say so
            picture = None
    if picture is None:
        return FileResponse(_NO_PICTURE, 404, media_type="image/svg+xml")
    return Response(picture, media_type="image/jpeg", headers=_IMMUTABLE)


def video(request: Request) -> Response:
    """Answer with a video, or with the requested bytes of it."""
    digest = request.path_params["digest"]
    known = site_of(request).browser.video(digest) if _KEY.fullmatch(digest) else None
    if known is None:
        raise HTTPException(404, "The catalog has no such video.")
    # Reads a file only if the catalog does not know it as it is: once, then it does.
    holders = site_of(request).catalog.holders()
    holders.look([(digest, known["path"])])
    local = [name for name in holders.names(digest) if not names_url(name)]
    if not local:
        raise HTTPException(404, "The video is gone, or has changed since it was catalogued.")
    path = text_to_file(local[0])
    return FileResponse(path, media_type=media_type(path))


def media_type(path: Path) -> str:
    """Return the media type to send: always that of a video or a GIF, whatever the name."""
    guess = mimetypes.guess_type(path.name)[0] or _OTHER_TYPES.get(path.suffix.lower(), "")
    shown = guess.startswith("video/") or guess == "image/gif"
    return guess if shown else "application/octet-stream"
