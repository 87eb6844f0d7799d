"""The clips of a run, where other runs work on the same cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from cogcache.catalog import Catalog, path_to_text
from cogcache.stages.clips.worklist import Clip, list_sealed
from cogcache.stages.runs.shared import Shared
from cogcache.store import Claims, FeatureStore
from cogcache.system import Location, Stop


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
    """The clips that are this run's, and what other runs have made of theirs.

    Args:
        claims: of this run.
        store: tells which clips are made.
        catalog: tells which have failed.
        stop: ends the handing out of clips.
        limit: most clips of the whole run.
    """

    claims: Claims
    store: FeatureStore
    catalog: Catalog
    stop: Stop
    limit: int | None = None
    made: Tally = field(default_factory=Tally)
    """Clips that another run has made since the list was."""
    failed: Tally = field(default_factory=Tally)
    """Clips that have failed in another run since."""

    def __post_init__(self) -> None:
        self.failed_before = self._failures()
        self.shared: Shared[Clip | None] = Shared(
            self.claims, self.stop, _key_of, self._is_settled, self.limit
        )

    def _is_settled(self, clip: Clip | None) -> bool:
        """Say whether another run has made this clip, or failed to, since the list was made."""
        if clip is None:
            return False
        if clip.key.digest in self.store:
            damaged = list_sealed([clip], self.store, self.catalog)
            self.made.number += not damaged
            return not damaged
        failed = self.failed_since(clip.video, clip.key.digest)
        self.failed.number += failed
        return failed

    def failed_since(self, video: Location, key: str) -> bool:
        """Say whether a clip or video failed in another run after the list was made."""
        now = self._failures(path_to_text(video)).get(key)
        return now is not None and now != self.failed_before.get(key)

    def _failures(self, video: str | None = None) -> dict[str, int]:
        """Return how often each clip has failed so far, by key."""
        rows = self.catalog.failures.rows(video=video, stage="extract")
        return {row["feature_key"]: row["tries"] for row in rows if row["feature_key"]}


def _key_of(clip: Clip | None) -> str | None:
    """Return the key of a clip; None, where there is none just now, is handed on."""
    return None if clip is None else clip.key.digest
