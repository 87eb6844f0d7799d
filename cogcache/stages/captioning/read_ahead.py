"""Cached features of the clips to caption, read while the model works on those before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import groupby

from cogcache.errors import ClipError, CorruptFeaturesError, FeaturesError
from cogcache.models import ClipTensors, Family, check_features, features_of
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.tasks import Task
from cogcache.store import FeatureStore, StoredFeatures

CLIPS_AHEAD = 4
"""Clips whose features may wait in memory."""

Read = Callable[[FeatureStore, str], ClipTensors | ClipError]
"""Reads what the prompts of one clip are laid out around, or says why it cannot."""
Waiting = Callable[[], AbstractContextManager[None]]


def read_ahead(
    tasks: Iterable[Task], store: FeatureStore, waiting: Waiting, read: Read | None = None
) -> Iterator[tuple[list[Task], ClipTensors | ClipError]]:
    """Yield the tasks of one clip after another, with its features or why there are none.

    Args:
        tasks: those of a clip must be neighbours.
        store: where the features are.
        waiting: times each wait for a file.
        read: reads the features of one clip; None: all of them.
    """
    read = read or read_clip_features
    clips = (list(each) for _, each in groupby(tasks, lambda task: task.key.feature_key))
    ahead: deque[tuple[list[Task], Future[ClipTensors | ClipError]]] = deque()
    with ThreadPoolExecutor(1, "features") as reader:
        try:
            for clip in clips:
                ahead.append((clip, reader.submit(read, store, clip[0].key.feature_key)))
                if len(ahead) > CLIPS_AHEAD:
                    yield _next(ahead, waiting)
            while ahead:
                yield _next(ahead, waiting)
        finally:
            reader.shutdown(cancel_futures=True)


def _next(
    ahead: deque[tuple[list[Task], Future[ClipTensors | ClipError]]], waiting: Waiting
) -> tuple[list[Task], ClipTensors | ClipError]:
    clip, future = ahead.popleft()
    with waiting():
        return clip, future.result()


def read_clip_features(store: FeatureStore, key: str) -> ClipTensors | ClipError:
    """Return a clip's features, or why there are none; a damaged file is moved away."""
    if key not in store:
        return _gone(key)
    return _told(store, key, store.read)


def read_clip_outline(family: Family) -> Read:
    """Return what reads a clip's features without the rows that stand in slots: their shapes alone.

    It is for a backend that reads those itself.
    """

    def outline(store: FeatureStore, key: str) -> StoredFeatures:
        found = store.outline(key)
        rows = {
            name for level in family.feature_levels(ClipTensors(found.tensors)) for name in level
        }
        beside = store.read(key, found.tensors.keys() - rows).tensors
        return replace(found, tensors={**found.tensors, **beside})

    def read(store: FeatureStore, key: str) -> ClipTensors | ClipError:
        if key not in store:
            return _gone(key)
        return _told(store, key, lambda key: outline(store, key))

    return read


def reader_for(stage: StageTwo) -> Read:
    """Return what reads a clip's features for the backend that the settings name."""
    if stage.settings.inference.is_vllm:
        return read_clip_outline(stage.family)
    return read_clip_features


def if_fitting(
    features: ClipTensors | ClipError, family: Family, layout: str
) -> ClipTensors | ClipError:
    """Return features, or why no prompt can be laid out around them.

    Called where prompts are laid out: a tokenizer is for one thread at a time.
    """
    if isinstance(features, ClipError):
        return features
    try:
        check_features(family, features, layout)
    except FeaturesError as error:
        return error
    return features


def _gone(key: str) -> FeaturesError:
    hint = "run `cogcache extract` again: it makes what is missing"
    return FeaturesError("features_missing", f"the feature file {key} is gone", hint)


def _told(
    store: FeatureStore, key: str, read: Callable[[str], StoredFeatures]
) -> ClipTensors | ClipError:
    try:
        stored = read(key)
    except CorruptFeaturesError as error:
        moved = store.quarantine(key, error.problem)
        hint = "run `cogcache extract` again: it makes the clip anew"
        return FeaturesError("features_corrupt", f"{error.problem}; moved to {moved}", hint)
    try:
        return features_of(stored.tensors, stored.attributes)
    except FeaturesError as error:
        return error
