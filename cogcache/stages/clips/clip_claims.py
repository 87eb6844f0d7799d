"""Which of the missing clips are this run's to make, and which another run has in hand."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cogcache.catalog import Catalog, path_to_text
from cogcache.stages.clips.worklist import Clip, list_sealed
from cogcache.store import Claims, FeatureStore
from cogcache.system import Stop

_LOOK_EVERY_S: Final = 0.5


@dataclass
class Tally:
    """A number that one thread adds to and another takes from."""

    number: int = 0

    def drain(self) -> int:
        """Return the number and begin again."""
        number, self.number = self.number, 0
        return number


@dataclass
class ClipClaims:
    """Hands out clips one by one, each under a claim."""

    claims: Claims
    store: FeatureStore
    catalog: Catalog
    stop: Stop
    taken: int = 0
    made: Tally = field(default_factory=Tally)
    """Clips that another run has made since the list was."""
    failed: Tally = field(default_factory=Tally)
    """Clips that have failed in another run since."""
    held: list[Clip] = field(default_factory=list)
    """Clips that other runs had in hand."""

    def __post_init__(self) -> None:
        self.failed_before = self._failures()

    def claim(self, clips: Iterable[Clip | None], limit: int | None) -> Iterator[Clip | None]:
        """Yield the clips that are this run's, until it is to stop.

        Args:
            clips: to look at, in this order; None, where there is none just now, is handed on.
            limit: most clips of the whole run.
        """
        for clip in clips:
            if self.stop:
                return
            if clip is None:
                yield None
            elif not self.claims.take(clip.key.digest):
                self.held.append(clip)
            elif self._settled(clip):
                self.claims.release(clip.key.digest)
            elif limit is not None and self.taken == limit:
                self.claims.release(clip.key.digest)
                self.stop.ask(f"--limit {limit}")
            else:
                self.taken += 1
                yield clip

    def _settled(self, clip: Clip) -> bool:
        """Say whether another run has made this clip, or failed to, since the list was made."""
        if clip.key.digest in self.store:
            damaged = list_sealed([clip], self.store, self.catalog)
            self.made.number += not damaged
            return not damaged
        failed = self.failed_since(clip.video, clip.key.digest)
        self.failed.number += failed
        return failed

    def failed_since(self, video: Path, key: str) -> bool:
        """Say whether what has this key has failed in another run since the list was made."""
        now = self._failures(path_to_text(video)).get(key)
        return now is not None and now != self.failed_before.get(key)

    def _failures(self, video: str | None = None) -> dict[str, int]:
        """Return how often each clip has failed so far, by key."""
        rows = self.catalog.failures.rows(video=video, stage="extract")
        return {row["feature_key"]: row["tries"] for row in rows if row["feature_key"]}

    def wait_for_others(self) -> list[Clip]:
        """Return the clips that others had in hand, once one of them is so no more."""
        while self.held and not self.stop:
            held, self.held = self.held, []
            if any(self.claims.is_free(clip.key.digest) for clip in held):
                return held
            self.held = held
            time.sleep(_LOOK_EVERY_S)
        return []
