"""Counts, sums and orders over whole tables, kept until the catalog changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")
_MOST: Final = 100


class Remembered:
    """Results by name, each with the version of the catalog that it was read from."""

    def __init__(self) -> None:
        self._kept: dict[object, tuple[Any, int, float]] = {}

    def of(self, name: object, version: int, read: Callable[[], T], kept_s: float) -> T:
        """Return what was read under a name, or read it where the catalog has changed since.

        Args:
            name: what is read.
            version: of the catalog, now.
            read: reads it.
            kept_s: seconds for which it is used even if the catalog has changed.
        """
        now_s = time.monotonic()
        kept = self._kept.get(name)
        if kept is None or (kept[1] != version and now_s > kept[2]):
            if len(self._kept) >= _MOST:
                self._kept.clear()
            self._kept[name] = kept = (read(), version, now_s + kept_s)
        found: T = kept[0]
        return found
