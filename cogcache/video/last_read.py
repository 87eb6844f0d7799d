"""A result computed from the last file, kept until another file comes or this one changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Last(threading.local, Generic[Value]):
    """One value and its key; each thread has its own, as threads read different files.

    The clips of a video are read one after the other: more than the last one is rarely of use,
    and would be held in memory.
    """

    def __init__(self) -> None:
        self._last: tuple[Hashable, Value] | None = None

    def of(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key; a new key drops the last value, then makes its own."""
        if self._last is None or self._last[0] != key:
            self._last = None
            self._last = key, make()
        return self._last[1]
