"""Which captions are read behind which clips by `score`, so that each clip is read once."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from cogcache.catalog import Catalog
from cogcache.errors import ClipError, ConfigError
from cogcache.models import ClipTensors, Family, recall
from cogcache.stages.captioning.read_ahead import CLIPS_AHEAD, read_clip_features
from cogcache.store import FeatureStore

if TYPE_CHECKING:
    from torch import Tensor

    from cogcache.quality import Claimed
    from cogcache.stages.score import Scorable

ReadClip = tuple[str, ClipTensors | ClipError]
"""A clip's key, and its features or why there are none."""
_QUICK_S: Final = 2.0
"""Clips are read together as long as that takes no longer."""


@dataclass(eq=False)
class Entry:
    """A caption whose clip, or some of the other clips, have not been read yet."""

    caption: Scorable
    claimed: Claimed
    own: tuple[list[int], Tensor] | None = None
    blind: Tensor | None = None
    others: list[float] = field(default_factory=list)
    left: int = 0
    """Clips that are still to be read for it."""


def fitting(captions: Sequence[Scorable], family: Family, catalog: Catalog) -> list[Scorable]:
    """Return the captions of clips whose features a model reads."""
    fits: dict[str, Any] = {
        "family": family.name,
        "cache_point": family.cache_point,
        "preprocessing": family.preprocessing(),
    }
    if identity := recall(family, "vision", catalog.files):
        fits["vision_digest"] = identity.digest
    clips = {row["feature_key"]: row["settings"] for row in catalog.clips.rows()}
    return [
        each
        for each in captions
        if each.feature_key in clips
        and all(clips[each.feature_key].get(name) == value for name, value in fits.items())
    ]


def unscored(
    captions: Sequence[Scorable], names: Collection[str], catalog: Catalog, model: str, epoch: int
) -> list[Scorable]:
    """Return the captions that lack one of the scores of these names by this model."""
    there: dict[str, set[str]] = defaultdict(set)
    for row in catalog.scores.rows(names=names):
        if row["model"] == model and row["epoch"] == epoch:
            there[row["caption_key"]].add(row["name"])
    return [each for each in captions if {*names} - there.get(each.caption_key, set())]


def visits(
    entries: Sequence[Entry], clips: Mapping[str, str], others: int
) -> dict[str, list[Entry]]:
    """Return, clip by clip, the captions to read behind it: its own, and those of others.

    The others of a caption are the clips that follow its own in the order of their keys, which is
    as good as a random one and the same in every run.

    Args:
        entries: captions to score.
        clips: the digests of the videos of all clips, by feature key.
        others: clips of other videos to read each caption behind; 0 for none.

    Raises:
        ConfigError: others are wanted, and all clips are of one video.
    """
    ring = sorted(clips)
    place = {key: number for number, key in enumerate(ring)}
    found: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda each: each.claimed.caption_key):
        own = entry.claimed.feature_key
        for key in (own, *_others(place[own], ring, clips, others)):
            found.setdefault(key, []).append(entry)
            entry.left += 1
    return dict(sorted(found.items(), key=lambda item: place[item[0]]))


def _others(own: int, ring: Sequence[str], clips: Mapping[str, str], number: int) -> list[str]:
    found: list[str] = []
    for step in range(1, len(ring)):
        if len(found) == number:
            break
        other = ring[(own + step) % len(ring)]
        if clips[other] != clips[ring[own]]:
            found.append(other)
    if number and not found:
        problem = "`swap` compares clips of different videos, and all captions are of one"
        raise ConfigError(problem, "leave it out: cogcache score grounding")
    return found


def clip_features(store: FeatureStore, keys: Sequence[str]) -> Iterator[ReadClip]:
    """Yield the features of clips, each read while those before it are worked on."""
    ahead: deque[tuple[str, Future[ClipTensors | ClipError]]] = deque()
    with ThreadPoolExecutor(1, "features") as reader:
        try:
            for key in keys:
                ahead.append((key, reader.submit(read_clip_features, store, key)))
                if len(ahead) > CLIPS_AHEAD:
                    coming, features = ahead.popleft()
                    yield coming, features.result()
            for coming, features in ahead:
                yield coming, features.result()
        finally:
            reader.shutdown(cancel_futures=True)


def together(clips: Iterator[ReadClip], most: Callable[[], int]) -> Iterator[list[ReadClip]]:
    """Yield clips that are worked on together: one at first, and more as long as that is quick.

    A signal is heard between them.

    Args:
        clips: one after another.
        most: says how many there is room for.
    """
    number = 1
    while some := list(islice(clips, number)):
        started = time.monotonic()
        yield some
        is_quick = time.monotonic() - started < _QUICK_S
        number = min(2 * number, most()) if is_quick else max(number // 2, 1)
