"""What was made of the last file, kept until another one comes or this one changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Last(threading.local, Generic[Value]):
    """One value and its key; each thread has its own, as readers of files bear only one.

    The clips of a video are read one after the other: more than the last one is rarely of use,
    and would be held in memory.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: Value | None = None
        self._is_there = False

    def of(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key; made if it is not the last one, which is let go of first."""
        if not self.has(key):
            self.drop()
            self._value = make()
            self._key, self._is_there = key, True
        assert self._is_there
        return self._value  # type: ignore[return-value]

    def has(self, key: Hashable) -> bool:
        """Say whether the value of a key is at hand."""
        return self._is_there and self._key == key

    def drop(self) -> None:
        """Let go of what is kept."""
        self._key, self._value, self._is_there = None, None, False
