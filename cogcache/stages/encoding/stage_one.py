"""What the features of a clip are made with: one object for a whole run of stage one."""

from __future__ import annotations

from dataclasses import dataclass

from cogcache.models import Family
from cogcache.settings import Settings
from cogcache.stages.encoding.frame_reuse import Neighbours, no_neighbours
from cogcache.store import FeatureStore


@dataclass(frozen=True)
class StageOne:
    """The settings, the checkpoint and the store, as a run of stage one uses them.

    The catalog is no part of it: workers that have none encode clips, too.
    """

    settings: Settings
    family: Family
    """Of the checkpoint, at the cache point."""
    store: FeatureStore
    """Where features are sealed."""
    neighbours: Neighbours = no_neighbours
    """Returns the keys of clips in the store that may share frames with a clip."""
