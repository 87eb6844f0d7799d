"""Cached features of the clips to caption, read while the model works on those before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import groupby

from cogcache.errors import ClipError, CorruptFeaturesError, FeaturesError
from cogcache.models import ClipTensors
from cogcache.stages.captioning.tasks import Task
from cogcache.store import FeatureStore

CLIPS_AHEAD = 4
"""Clips whose features may wait in memory."""

Waiting = Callable[[], AbstractContextManager[None]]


def read_ahead(
    tasks: Iterable[Task], store: FeatureStore, waiting: Waiting
) -> Iterator[tuple[list[Task], ClipTensors | ClipError]]:
    """Yield the tasks of one clip after another, with its features or why there are none.

    Args:
        tasks: those of a clip must be neighbours.
        store: where the features are.
        waiting: times each wait for a file.
    """
    clips = (list(each) for _, each in groupby(tasks, lambda task: task.key.feature_key))
    ahead: deque[tuple[list[Task], Future[ClipTensors | ClipError]]] = deque()
    with ThreadPoolExecutor(1, "features") as reader:
        try:
            for clip in clips:
                ahead.append(
                    (clip, reader.submit(read_clip_features, store, clip[0].key.feature_key))
                )
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
        hint = "run `cogcache extract` again: it makes what is missing"
        return FeaturesError("features_missing", f"the feature file {key} is gone", hint)
    try:
        stored = store.read(key)
    except CorruptFeaturesError as error:
        moved = store.quarantine(key, error.problem)
        hint = "run `cogcache extract` again: it makes the clip anew"
        return FeaturesError("features_corrupt", f"{error.problem}; moved to {moved}", hint)
    texts = stored.attributes["texts"]
    assert isinstance(texts, Mapping)  # sealed so by stage one
    told = {name: str(text) for name, text in texts.items()}
    return ClipTensors(stored.tensors, told, stored.attributes)
