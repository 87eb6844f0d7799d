"""URLs of videos, kept as paths: ``s3://bucket/a.mp4`` is ``Path("s3:/bucket/a.mp4")``.

Paths of this machine are absolute wherever videos are listed, so that the two cannot be mistaken.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from cogcache.errors import ConfigError

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+:/")  # two letters or more: `c:/` is a disk
_SECRET: Final = re.compile(r"(?i)sig|token|secret|credential|password|key|x-amz-|x-goog-")


def is_url(text: str | os.PathLike[str]) -> bool:
    """Say whether a text, or a path made from one, is a URL."""
    return _URL.match(os.fspath(text)) is not None


def url_of(path: str | os.PathLike[str]) -> str:
    """Return the URL that a path was made from."""
    scheme, _, rest = os.fspath(path).partition(":/")
    return f"{scheme}://{rest.lstrip('/')}"


def refuse_secrets(url: str) -> None:
    """Refuse a URL that holds a password or a signature: it would be stored and logged.

    Raises:
        ConfigError: it does.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
        shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        raise ConfigError(
            f"{shown}: the URL holds a password or a signature, and URLs are stored",
            "leave it out, and set the store's own variables, such as AWS_ACCESS_KEY_ID",
        )


def path_of_url(url: str) -> Path:
    """Return the path that stands for a URL.

    Raises:
        ConfigError: it holds a password or a signature, or what a path cannot tell apart.
    """
    refuse_secrets(url)
    path = Path(url)
    if url_of(path) != url:
        hint = "rename the object, or fetch it and name the file"
        raise ConfigError(f"{url}: // and /. within a name are not kept apart", hint)
    return path
