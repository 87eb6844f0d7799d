"""The file that makes a folder a cache, and says of which format; docs/format.md specifies it."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Final

from cogcache.errors import CacheError
from cogcache.system import CachePaths, our_version, seal

CACHE_FORMAT: Final = 1
_FORMAT_ELSEWHERE: Final = 2
"""Of a cache whose features lie in an object store: older versions must not take it for empty."""
MARK: Final = CachePaths(Path()).mark.name
"""Name of the file; it also holds the profiles of the cache."""
_IGNORED: Final = {"lost+found"}  # a freshly made disk holds it


def is_free(root: Path) -> bool:
    """Say whether a cache may be made in a folder: it is absent, or empty."""
    return not CachePaths(root).mark.exists() and not _found_in(root)


def write_mark(root: Path, features: str | None) -> None:
    """Make a folder a cache.

    Args:
        root: the folder.
        features: URL of the prefix where its features lie; None: in the folder itself.

    Raises:
        CacheError: the disk is full or cannot be written.
    """
    number = CACHE_FORMAT if features is None else _FORMAT_ELSEWHERE
    text = f"# A cache of cogcache; docs/format.md says what lies in it.\nformat = {number}\n"
    # A JSON text is a TOML one, too.
    text += "" if features is None else f"features = {json.dumps(features)}\n"
    seal(CachePaths(root).mark, f'{text}made_with = "cogcache {our_version()}"\n'.encode())


def _found_in(root: Path) -> list[str]:
    names = sorted(path.name for path in root.iterdir()) if root.exists() else []
    return [name for name in names if name not in _IGNORED and not name.startswith(f".{MARK}.")]


def check_cache(root: Path) -> str | None:
    """Return where the features of a cache lie; None: in its own folder. Reads only its mark.

    Raises:
        CacheError: there is no cache in the folder, or it is of another format.
    """
    if not root.is_dir():
        beside = [path.parent.name for path in root.parent.glob(f"*/{MARK}")]
        near = difflib.get_close_matches(root.name, beside, n=1)
        hint = (
            f"did you mean {root.parent / near[0]}?" if near else "make one with `cogcache extract`"
        )
        raise CacheError(f"there is no cache in {root}", hint)
    return read_mark(root)


def read_mark(root: Path) -> str | None:
    """Return where the features of a cache lie; None: in its own folder.

    Raises:
        CacheError: the folder is no cache, or one of another format.
    """
    hint = "name another folder with --cache"
    try:
        mark = tomllib.loads(CachePaths(root).mark.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = ", ".join(_found_in(root)[:3]) or "nothing"
        raise CacheError(
            f"{root} is not a cache: it has no {MARK} and holds {found}", hint
        ) from error
    except (OSError, ValueError) as error:
        raise CacheError(f"{CachePaths(root).mark} cannot be read: {error}", hint) from error
    features = mark.get("features")
    if mark.get("format") != (CACHE_FORMAT if features is None else _FORMAT_ELSEWHERE):
        problem = f"{root} is of format {mark.get('format')!r}; this version reads {CACHE_FORMAT}"
        raise CacheError(
            problem, f"it was made with {mark.get('made_with')}; update cogcache, or {hint}"
        )
    return None if features is None else str(features)
