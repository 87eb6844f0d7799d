"""Files of object stores and web servers, through fsspec: found, described, fetched whole.

Who asks is what the stores' own libraries find in the environment; nothing of it is kept here.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any, BinaryIO, Final, TypeVar

from cogcache.errors import CacheError, ConfigError, VideoError
from cogcache.system.distribution import extra_hint
from cogcache.system.urls import ObjectUrl, refuse_secrets

logger = logging.getLogger(__name__)

TRIES: Final = 4
BLOCK_BYTES: Final = 8 * 2**20
_LONGEST_WAIT_S: Final = 20.0
_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "http": "s3", "https": "s3"}
_TAGS: Final = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "version")
_TIMES: Final = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
_MISSING: Final = (FileNotFoundError, IsADirectoryError)
_FORBIDDEN: Final = ("403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
UNKNOWN_BYTES: Final = -1
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """What a store says of one object, by the names of `os.stat_result`."""

    st_size: int
    """Bytes; `UNKNOWN_BYTES` where a server does not tell."""
    st_mtime_ns: int
    st_ino: str
    """What the store names these bytes by: an ETag, or when they were changed; "" where it tells
    neither, so that nobody can say whether they are still the same."""


class RemoteError(Exception):
    """A store did not give what it was asked for, after all tries.

    Attributes:
        reason: ``missing``, ``forbidden`` or ``fetch_failed``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


_known: dict[ObjectUrl, RemoteFacts] = {}
"""What listings told, so that objects are not asked for one by one."""


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the name of the object within it.

    Raises:
        ConfigError: a package is missing, or nothing is known of such URLs.
    """
    scheme = url.partition(":")[0]
    try:
        import fsspec

        # Listings that are kept would hide what others have written since.
        system, name = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        how = extra_hint(extra) if extra else str(error)
        raise ConfigError(f"{scheme}:// needs a package that is not installed", how) from error
    except ValueError as error:
        raise ConfigError(f"{url}: {error}", "name files, folders, or s3:// URLs") from error
    return system, name


def find(url: str, suffixes: Collection[str]) -> list[ObjectUrl]:
    """Return the objects that a URL stands for: one, those below a prefix, or those of a pattern.

    Args:
        url: an object, a prefix, or a pattern with ``*``, ``?`` or ``[``.
        suffixes: endings, in lower case, of what is taken below a prefix.

    Raises:
        ConfigError: there is nothing such, or the store cannot be asked.
    """
    refuse_secrets(url)
    system, name = filesystem(url)
    try:
        found = tried(url, lambda: _list(system, name, is_pattern=is_pattern(url)))
    except RemoteError as error:
        raise ConfigError(f"{url}: {error}", "check how it is written, and who may read") from error
    scheme = url.partition("://")[0]
    paths = []
    for each, info in sorted(found.items()):
        name = system._strip_protocol(each)  # of a web server it is the URL as it was
        path = ObjectUrl.of(name if "://" in name else f"{scheme}://{name.lstrip('/')}")
        if len(found) == 1 or path.suffix.lower() in suffixes:
            _known[path] = _facts(info)
            paths.append(path)
    return paths


def is_pattern(url: str) -> bool:
    """Say whether a URL stands for all that it fits; of a web server, ``?`` begins a question."""
    letters = "*[" if url.partition(":")[0] in ("http", "https") else "*?["
    return any(letter in url for letter in letters)


def _list(system: Any, name: str, *, is_pattern: bool) -> Mapping[str, Any]:
    found: Mapping[str, Any]
    if is_pattern:
        found = system.glob(name, detail=True)
    elif not name.endswith("/") and (info := _file_info(system, name)):
        return {name: info}
    else:
        found = system.find(name.rstrip("/"), detail=True)
    return {each: info for each, info in found.items() if info.get("type") == "file"}


def _file_info(system: Any, name: str) -> Mapping[str, Any] | None:
    try:
        info: Mapping[str, Any] = system.info(name)
    except FileNotFoundError:
        return None
    return info if info.get("type") == "file" else None


def facts(path: ObjectUrl, *, anew: bool = False) -> RemoteFacts:
    """Return what a store says of an object; what a listing has told is not asked again.

    Raises:
        RemoteError: it is not there, or the store cannot be asked.
    """
    if anew or path not in _known:
        url = path.url
        system, name = filesystem(url)
        _known[path] = _facts(tried(url, lambda: system.info(name)))
    return _known[path]


def forget(path: ObjectUrl) -> None:
    """Have an object be asked for when it is next needed."""
    _known.pop(path, None)


def _facts(info: Mapping[str, Any]) -> RemoteFacts:
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
    changed_s = _seconds(next((info[name] for name in _TIMES if info.get(name)), None))
    size = info.get("size")
    return RemoteFacts(
        UNKNOWN_BYTES if size is None else int(size),
        int(changed_s * 1e9),
        tag or (str(changed_s) if changed_s else ""),
    )


def _seconds(time: object) -> float:
    """Return a time that a store tells, in seconds since 1970; 0 where it tells none."""
    if isinstance(time, str):  # as HTTP writes it
        try:
            time = parsedate_to_datetime(time)
        except ValueError:
            return 0.0
    if isinstance(time, datetime):
        return time.timestamp()
    return time if isinstance(time, int | float) else 0.0


def fetch(path: ObjectUrl, target: BinaryIO, ending: Event | None = None) -> str:
    """Write all bytes of an object to a file; where the connection is lost, go on from there.

    Args:
        path: the object.
        target: to write to.
        ending: once it is set, nothing more is fetched.

    Returns:
        The SHA-256 of the bytes.

    Raises:
        RemoteError: it cannot be had.
        VideoError: it changed meanwhile (``changing``).
    """
    url, before = path.url, facts(path)
    system, name = filesystem(url)
    digest = hashlib.sha256()

    def go_on() -> None:
        nonlocal digest
        if before.st_size < 0 or not before.st_ino:  # what is missing may be of other bytes
            digest = hashlib.sha256()
            target.seek(0)
            target.truncate()
        with system.open(name, "rb", block_size=BLOCK_BYTES, cache_type="readahead") as source:
            if target.tell():
                source.seek(target.tell())
            while block := source.read(BLOCK_BYTES):
                target.write(block)
                digest.update(block)
                if ending is not None and ending.is_set():
                    raise VideoError("not_wanted", f"{url} was not fetched to its end", "run again")
        if target.tell() < before.st_size:
            raise ConnectionError(f"ended after {target.tell()} of {before.st_size} bytes")

    tried(url, go_on)
    after = facts(path, anew=True)
    if (before.st_size, before.st_ino) != (after.st_size, after.st_ino):
        problem = f"{url} changed while it was read"
        raise VideoError("changing", problem, "run again when it is complete")
    return digest.hexdigest()


def tried(url: str, work: Callable[[], Result]) -> Result:
    """Do what may fail for a while, several times, with longer and longer waits in between.

    Raises:
        RemoteError: the object is missing, may not be read, or nothing helped.
        ConfigError: a package is missing.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return work()
        except _MISSING as error:
            raise RemoteError("missing", "no such object") from error
        except (CacheError, ConfigError, VideoError):
            raise
        except Exception as error:
            reason = _reason(error)
            if reason == "bug":
                raise
            if reason == "forbidden" or attempt == TRIES:
                tries = f" after {TRIES} tries" if reason == "fetch_failed" else ""
                raise RemoteError(reason, f"{_shown(error)}{tries}") from error
            wait_s = random.uniform(0.5, 1.0) * min(2.0 ** (attempt - 2), _LONGEST_WAIT_S)
            logger.info("%s: %s; once more in %.1f s", url, _shown(error), wait_s)
            time.sleep(wait_s)
    raise AssertionError


def _reason(error: Exception) -> str:
    """Return ``forbidden``, ``fetch_failed``, or ``bug`` for what no store says."""
    if isinstance(error, PermissionError) or _code(error) in _FORBIDDEN:
        return "forbidden"
    # By name: the libraries of the stores need not be there.
    modules = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    theirs = modules & {"aiohttp", "botocore", "aiobotocore", "s3fs", "gcsfs", "fsspec", "requests"}
    if theirs or isinstance(error, OSError):
        return "fetch_failed"
    return "bug"


def _code(error: BaseException | None) -> str:
    """Return a store's or server's own code of an error, such as ``403`` or ``SlowDown``."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", ""))
        if (status := getattr(error, "status", None)) is not None:
            return str(status)
        error = error.__cause__
    return ""


def _shown(error: Exception) -> str:
    """Return what went wrong, without what the error may quote of the request."""
    code = _code(error)
    what = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    if isinstance(error, ConnectionError) and error.args:
        what = f"the connection was lost: {error.args[0]}"
    return f"the store says {code} ({what})" if code else what


@contextmanager
def as_video_errors(path: ObjectUrl) -> Iterator[None]:
    """Turn what a store says into the failure of a video."""
    try:
        yield
    except RemoteError as error:
        hints = {
            "missing": "it may have been moved",
            "forbidden": "check who may read it, and the store's variables in the environment",
        }
        hint = hints.get(error.reason, "see that the store can be reached, then --retry-failed")
        raise VideoError(error.reason, f"{path}: {error}", hint) from error
