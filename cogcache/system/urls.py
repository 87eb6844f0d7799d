"""URLs of objects: a type of their own, so that none is taken for a file of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from cogcache.errors import ConfigError

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+://")  # two letters or more: `c:/` is a disk
_SECRET: Final = re.compile(r"(?i)sig|token|secret|credential|password|key|x-amz-|x-goog-")


@dataclass(frozen=True, slots=True, order=True)
class ObjectUrl:
    """The URL of an object of a store or a web server.

    It has the parts of a name that a `Path` has, and none of what asks the disk: no function that
    opens files takes it.

    Example:
        >>> video = ObjectUrl.of("s3://bucket/films/a.mp4")
        >>> video.name, video.stem, video.suffix, str(video.parent)
        ('a.mp4', 'a', '.mp4', 's3://bucket/films')
    """

    url: str

    @classmethod
    def of(cls, url: str) -> ObjectUrl:
        """Return the object of a URL that a user has written.

        Raises:
            ConfigError: the URL holds a password or a signature, or parts that a file's path,
                which exports name files by, does not keep apart.
        """
        refuse_secrets(url)
        scheme, _, rest = url.partition("://")
        if f"{scheme}://{PurePosixPath(rest)}" != url:
            hint = "rename the object, or fetch it and name the file"
            raise ConfigError(f"{url}: // and /. within a name are not kept apart", hint)
        return cls(url)

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.url.partition("://")[2])

    @property
    def name(self) -> str:
        """Its last part."""
        return self._path.name

    @property
    def stem(self) -> str:
        """Its last part without the ending."""
        return self._path.stem

    @property
    def suffix(self) -> str:
        """The ending of its name, such as `.mp4`."""
        return self._path.suffix

    @property
    def parent(self) -> ObjectUrl:
        """What it lies in."""
        return ObjectUrl(f"{self.url.partition('://')[0]}://{self._path.parent}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Its scheme, its bucket or server, and the parts of its name."""
        return (f"{self.url.partition('://')[0]}:", *self._path.parts)

    def __str__(self) -> str:
        return self.url


Location = Path | ObjectUrl
"""Where a file lies: on this machine, by its absolute path, or in a store, by its URL."""


def location_of(text: str) -> Location:
    """Return what a user names by a text: an object where it is a URL, else a file.

    Raises:
        ConfigError: as for `ObjectUrl.of`.
    """
    return ObjectUrl.of(text.rstrip("/")) if is_url(text) else Path(text)


def file_of(location: Location) -> Path:
    """Return a file of this machine as its path.

    Raises:
        TypeError: it is an object of a store, which should have been fetched before.
    """
    if isinstance(location, ObjectUrl):
        raise TypeError(f"{location} is not a file of this machine")
    return location


def is_url(text: str) -> bool:
    """Say whether a text is a URL."""
    return _URL.match(text) is not None


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
