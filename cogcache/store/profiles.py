"""The profiles in a cache's `cogcache.toml`: the settings that it was made with, by name."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from cogcache.store import MARK, read_mark
from cogcache.system import CachePaths, seal

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 20.0
_TABLE: Final = "profile"


def read_profiles(root: Path) -> dict[str, Mapping[str, Any]]:
    """Return the profiles of a cache by name, the first one first.

    Raises:
        CacheError: the folder is no cache, or one of another format.
    """
    read_mark(root)
    found = tomllib.loads(CachePaths(root).mark.read_text(encoding="utf-8")).get(_TABLE)
    if not isinstance(found, dict):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, dict)}


def add_profile(root: Path, name: str, lines: str) -> bool:
    """Add a profile to a cache that has none of this name; say whether it was added.

    Profiles are only ever added, and the file is replaced whole, so that who reads it meanwhile
    finds the old one or the new one. Of several processes that add one, all are kept.

    Args:
        root: folder of the cache.
        name: of the profile.
        lines: of TOML, with the table's own name.
    """
    try:
        with FileLock(root / f".{MARK}.lock", timeout=_PATIENCE_S):
            if name in read_profiles(root):
                return False
            before = CachePaths(root).mark.read_text(encoding="utf-8").rstrip("\n")
            seal(CachePaths(root).mark, f"{before}\n\n{lines}".encode())
    except (OSError, Timeout) as error:  # a file system without locks
        logger.warning("%s: the settings cannot be remembered: %s", CachePaths(root).mark, error)
        return False
    return True
