"""Work that several runs share: which of it is this run's to do, and which another has in hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from cogcache.store import Claims
from cogcache.system import Stop

_LOOK_EVERY_S: Final = 0.5
Item = TypeVar("Item")


@dataclass
class Shared(Generic[Item]):
    """Hands out clips or captions one by one, each under a claim.

    Args:
        claims: of this run.
        stop: ends the handing out, and the waiting for others.
        key_of: returns the key that an item is claimed by; None hands it on unclaimed.
        is_done: says whether another run has done an item since it was listed.
        limit: most items of the whole run; None for any number.
    """

    claims: Claims
    stop: Stop
    key_of: Callable[[Item], str | None]
    is_done: Callable[[Item], bool]
    limit: int | None = None
    taken: int = 0
    held: dict[str, Item] = field(default_factory=dict)
    """By key: what other runs had in hand."""

    @property
    def num_left(self) -> int | None:
        """How many items may still be taken up; None for any number."""
        return None if self.limit is None else self.limit - self.taken

    def stop_at_limit(self) -> None:
        """Ask the run to stop once it has taken up as many items as it may."""
        if self.num_left == 0:
            self.stop.ask(f"--limit {self.limit}")

    def ours(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items that are this run's, as they are taken up, until it is to stop."""
        for item in items:
            if self.stop:
                return
            if (key := self.key_of(item)) is None:
                yield item
            elif not self.claims.take(key):
                self.held[key] = item
            elif self.is_done(item):
                self.claims.release(key)
            elif self.num_left == 0:
                self.claims.release(key)
                self.stop_at_limit()
            else:
                self.taken += 1
                yield item

    def give_back(self, keys: Iterable[str]) -> None:
        """Give items back that are done, or that are not to be done."""
        for key in keys:
            self.claims.release(key)

    def wait_for_others(self) -> dict[str, Item]:
        """Return what others had in hand, by key, once one of them has no claim on it any more."""
        while self.held and not self.stop:
            if any(map(self.claims.is_free, self.held)):
                held, self.held = self.held, {}
                return held
            time.sleep(_LOOK_EVERY_S)
        return {}
