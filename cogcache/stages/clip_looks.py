"""What clips look like by their features, remembered between runs of `score`.

The file lies in ``CACHE/semantic``. It can be deleted at any time and is made anew.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cogcache.catalog import ClipRow
from cogcache.errors import ClipError, CorruptFeaturesError
from cogcache.quality import CLIP_EPOCH, ClipLook, clusters, look_at
from cogcache.store import FeatureStore
from cogcache.system import CachePaths, make_folder, seal

logger = logging.getLogger(__name__)

_FILE: Final = f"clips-{CLIP_EPOCH}.safetensors"
_FIGURES: Final = ("motion", "is_black")


class ClipLooks:
    """Looks at clips of a cache, each once.

    Args:
        store: has the features.
        again: look at all of them anew.
    """

    def __init__(self, store: FeatureStore, *, again: bool = False) -> None:
        self._store = store
        self._path = CachePaths(store.root).semantic / _FILE
        self.known: dict[str, ClipLook] = {} if again else self._read()
        self._is_new = False

    def add(self, clip: ClipRow) -> None:
        """Look at a clip, if it is not known.

        Raises:
            ClipError: its features are gone or damaged, or are of no frames.
            CacheError: the disk cannot be read.
        """
        key = clip["feature_key"]
        if key in self.known:
            return
        if key not in self._store:
            raise ClipError("features_missing", f"the feature file {key} is gone")
        try:
            stored = self._store.read(key)
        except CorruptFeaturesError as error:
            raise ClipError("features_damaged", error.problem, error.hint) from error
        self.known[key] = look_at(stored.tensors, clip["num_frames"], stored.thumbnail)
        self._is_new = True

    def clusters(
        self, clips: Sequence[ClipRow], alike: float
    ) -> list[tuple[str, dict[str, float]]]:
        """Return clips that look alike: the key of the one to keep, and those of the others.

        Of a cluster the longest clip is kept, of these the one whose video's name comes first.
        Clips of one video are never near-duplicates of one another: they are parts of it.
        """
        by_size: dict[int, list[ClipRow]] = defaultdict(list)
        for clip in sorted(clips, key=lambda each: (-each["num_frames"], each["video"])):
            if (look := self.known.get(clip["feature_key"])) is not None:
                by_size[len(look.vector)].append(clip)
        found = []
        for some in by_size.values():
            vectors = np.stack([self.known[clip["feature_key"]].vector for clip in some])
            for cluster in clusters(vectors, alike):
                kept = some[cluster.kept]
                others = {
                    some[n]["feature_key"]: value
                    for n, value in cluster.similarity.items()
                    if some[n]["video_digest"] != kept["video_digest"]
                }
                if others:
                    found.append((kept["feature_key"], others))
        return found

    # ---- the file ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write what is known, if there is anything new."""
        if not self._is_new:
            return
        from safetensors.numpy import save

        by_size: dict[int, list[str]] = defaultdict(list)
        for key, look in self.known.items():
            by_size[len(look.vector)].append(key)
        tensors: dict[str, Any] = {}
        for size, keys in by_size.items():
            looks = [self.known[key] for key in keys]
            tensors[f"vectors/{size}"] = np.stack([look.vector for look in looks])
            tensors[f"figures/{size}"] = np.array(
                [[float(getattr(look, name)) for name in _FIGURES] for look in looks]
            )
        told = {str(size): json.dumps(keys) for size, keys in by_size.items()}
        make_folder(self._path.parent)
        seal(self._path, save(tensors, told))
        self._is_new = False

    def _read(self) -> dict[str, ClipLook]:
        from safetensors import SafetensorError, safe_open

        if not self._path.is_file():
            return {}
        found: dict[str, ClipLook] = {}
        try:
            with safe_open(self._path, framework="numpy") as file:
                for size, keys in (file.metadata() or {}).items():
                    vectors = file.get_tensor(f"vectors/{size}")
                    figures = file.get_tensor(f"figures/{size}")
                    for key, vector, (motion, black) in zip(
                        json.loads(keys), vectors, figures, strict=True
                    ):
                        found[key] = ClipLook(float(motion), vector, bool(black))
        except (SafetensorError, ValueError, OSError) as error:
            logger.warning("%s cannot be read, and is made anew: %s", self._path, error)
            return {}
        return found
