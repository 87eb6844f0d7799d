"""Counts, sums and orders over whole tables: read once, kept until the catalog changes.

Over a large catalog they are read in a thread, by a connection of its own. Who asks meanwhile gets
what was known before, or is told that it is being counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Generic, Protocol, TypeVar

from cogcache.errors import CatalogError

GRACE_S: Final = 0.03
"""Seconds to wait for what may be ready at once."""
_MOST_REMEMBERED: Final = 100
_AGAIN_AFTER_S: Final = 5.0
"""Seconds after a failure until it is read again."""


class StillCountingError(CatalogError):
    """What a page shows is being counted for the first time."""

    def __init__(self) -> None:
        super().__init__("the catalog is being counted", "ask again in a second")


class Reader(Protocol):
    """What a catalog is read with."""

    def interrupt(self) -> None:
        """Break off all that it reads."""

    def close(self) -> None:
        """Close it."""


R = TypeVar("R", bound=Reader)


@dataclass(frozen=True, slots=True)
class _Kept:
    found: Any
    version: int
    until_s: float


class Counting(Generic[R]):
    """What was read under a name; for any number of threads.

    Args:
        reader: reads at once.
        open_another: opens the reader of the thread.
    """

    def __init__(self, reader: R, open_another: Callable[[], R]) -> None:
        self._reader, self._open_another = reader, open_another
        self._kept: dict[object, _Kept] = {}
        self._jobs: dict[object, Future[None]] = {}
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1, "counting")
        self._another: R | None = None
        self._is_closed = False

    def close(self) -> None:
        """Break off what is being read."""
        with self._lock:
            self._is_closed = True
            if self._another is not None:
                self._another.interrupt()
        self._thread.shutdown(cancel_futures=True)
        if self._another is not None:
            self._another.close()

    def of(
        self, name: object, version: int, read: Callable[[R], Any], *, kept_s: float, is_long: bool
    ) -> Any:
        """Return what was read under a name, and is not older than the catalog where that is quick.

        Args:
            name: what is read.
            version: of the catalog, now.
            read: reads it.
            kept_s: seconds for which it is used even if the catalog has changed.
            is_long: read it in the thread.

        Raises:
            StillCountingError: it is read in the thread, and nothing is known yet.
            CatalogError: it could not be read.
        """
        if (kept := self._usable(name, version)) is None and not is_long:
            kept = self._keep(name, version, read(self._reader), kept_s)
        if kept is None:
            wait([self._started(name, version, read, kept_s)], GRACE_S)
            kept = self._kept.get(name)
        if kept is None:
            raise StillCountingError
        if isinstance(kept.found, CatalogError):
            raise kept.found
        return kept.found

    def is_counting(self, name: object) -> bool:
        """Say whether something is being read anew: what `of` returned is older."""
        with self._lock:
            return name in self._jobs

    def _usable(self, name: object, version: int) -> _Kept | None:
        kept = self._kept.get(name)
        if kept is None:
            return None
        is_same = kept.version == version and not isinstance(kept.found, CatalogError)
        return kept if is_same or time.monotonic() <= kept.until_s else None

    def _started(
        self, name: object, version: int, read: Callable[[R], Any], kept_s: float
    ) -> Future[None]:
        with self._lock:
            if name not in self._jobs:
                job = self._thread.submit(self._read, name, version, read, kept_s)
                self._jobs[name] = job
            return self._jobs[name]

    def _read(self, name: object, version: int, read: Callable[[R], Any], kept_s: float) -> None:
        try:
            self._keep(name, version, read(self._opened()), kept_s)
        except CatalogError as error:  # told to who asks next, and read again later
            self._keep(name, version, error, _AGAIN_AFTER_S)
        finally:
            with self._lock:
                self._jobs.pop(name, None)

    def _opened(self) -> R:
        """Open the thread's reader; on closing, it is interrupted from then on."""
        if self._another is None:
            another = self._open_another()
            with self._lock:
                self._another = another
                if self._is_closed:
                    another.interrupt()
        return self._another

    def _keep(self, name: object, version: int, found: Any, kept_s: float) -> _Kept:
        if len(self._kept) >= _MOST_REMEMBERED:
            self._kept.clear()
        self._kept[name] = kept = _Kept(found, version, time.monotonic() + kept_s)
        return kept
