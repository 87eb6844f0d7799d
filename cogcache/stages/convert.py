"""Features of one cache point or compression into those of another, only where no bit is lost.

What can be turned: `pooled` into `projected`, which lies behind it; and any lossless compression
into any other. What cannot: the projector has no way back, and a type with fewer digits forgets.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from cogcache.catalog import Catalog, ClipRow, rows_of
from cogcache.errors import ConfigError, CorruptFeaturesError, FeaturesError
from cogcache.keys import FeatureKey
from cogcache.models import (
    Checkpoint,
    ClipTensors,
    check_features,
    family_of,
    features_of,
    identify,
    load_projector,
)
from cogcache.settings import Settings
from cogcache.stages.clips.choice import names_of
from cogcache.stages.runs.opened import open_run
from cogcache.stages.runs.report import Counts, RunReport, versions
from cogcache.store import Compression, FeatureStore, compression_of, repack
from cogcache.system import pick_device
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from cogcache.models import LoadedHalf

logger = logging.getLogger(__name__)

WAYS: Final = {("pooled", "projected")}
"""From which cache point to which."""
TYPES: Final = ("bfloat16", "float32")
"""What a vision half computes in."""


def convert(
    cache: Path,
    settings: Settings,
    *,
    cache_point: str | None = None,
    compression: Compression | None = None,
    videos: Sequence[str | Path] | None = None,
) -> RunReport:
    """Turn the features of a cache into those of another cache point or compression.

    New cache points lie beside the features that they were made of, under keys of their own, as if
    stage one had made them. A new compression takes the place of the old one: a file holds the
    same tensors under the same digest before and after.

    Args:
        cache: folder of the cache.
        settings: the model, for a cache point; device and limits.
        cache_point: make features of this cache point of those that lead to it.
        compression: pack all features in this way.
        videos: only clips of these; None for all.

    Raises:
        ConfigError: nothing is asked for, or what cannot be turned exactly.
        CogcacheError: the checkpoint or the cache is not usable.
    """
    store = FeatureStore.open(cache)
    with open_run("convert", cache, settings) as run:
        job = _Conversion(settings, store, run.catalog, compression)
        clips = _clips(run.catalog, videos)
        tasks = job.projections(clips, cache_point) if cache_point else []
        tasks += job.repackings(clips) if compression else []
        job.counts.found = job.counts.cached + len(tasks)
        report = run.begin(job.counts)
        job.run = report.run
        with run.working() as at:
            for task in tqdm(tasks, unit="clip", desc="convert", disable=None):
                if at.stop:
                    break
                job.do(task)
        report.notes += job.lines()
    return report


def _clips(catalog: Catalog, videos: Sequence[str | Path] | None) -> list[ClipRow]:
    listed = catalog.clips.rows()
    if videos is not None:
        names = names_of(videos, {clip["video"] for clip in listed})
        listed = [clip for clip in listed if clip["video"] in names]
    return list({clip["feature_key"]: clip for clip in listed}.values())


_Task = Callable[[], bool]
"""Does one file; says whether there was anything to do."""


@dataclass
class _Conversion:
    """One run: what it works with, and what it found."""

    settings: Settings
    store: FeatureStore
    catalog: Catalog
    compression: Compression | None
    counts: Counts = field(default_factory=Counts)
    left: Counter[str] = field(default_factory=Counter)
    """Reasons why clips were left as they are."""
    saved_bytes: int = 0
    projectors: dict[str, LoadedHalf] = field(default_factory=dict)
    """By type."""
    run: int | None = None
    proven: set[tuple[str, int]] = field(default_factory=set)
    """Types and numbers of frames for which grouping was tested: it changes no bit."""

    def do(self, task: _Task) -> None:
        """Do one file; a damaged one is told and left where it is."""
        try:
            self.counts.done += (worked := task())
            self.counts.cached += not worked
        except (CorruptFeaturesError, FeaturesError) as error:
            self.counts.failed += 1
            logger.warning("%s", error.problem)

    def lines(self) -> list[str]:
        """Return what a reader wants to know beside the counts."""
        lines = [f"{count} left as they are: {reason}" for reason, count in self.left.items()]
        lines += [
            f"projected in {dtype}: the same bits in one pass and frame by frame, so the same as "
            "stage one makes on this device"
            for dtype in self.projectors
        ]
        if self.saved_bytes:
            word = "smaller" if self.saved_bytes > 0 else "larger"
            lines.append(f"{format_bytes(abs(self.saved_bytes))} {word} than before")
        return lines

    # ---- compression ------------------------------------------------------------------------

    def repackings(self, clips: Sequence[ClipRow]) -> list[_Task]:
        """Return what is to be packed anew."""
        found: list[_Task] = []
        for clip in clips:
            key = clip["feature_key"]
            if key not in self.store:
                self.left["the feature file is gone"] += 1
            else:
                found.append(partial(self._repack, clip))
        return found

    def _repack(self, clip: ClipRow) -> bool:
        assert self.compression is not None
        key = clip["feature_key"]
        after = repack(self.store, key, self.compression)
        if after is None:
            return False
        self.catalog.clips.resize(key, after)
        self.saved_bytes += clip["size_bytes"] - after
        return True

    # ---- cache points -----------------------------------------------------------------------

    def projections(self, clips: Sequence[ClipRow], cache_point: str) -> list[_Task]:
        """Return what is to be projected.

        Raises:
            ConfigError: no features are turned into those of this cache point.
        """
        sources = [one for one, other in WAYS if other == cache_point]
        if not sources:
            problem = f"nothing can be turned into {cache_point!r} exactly"
            hint = "what a projector has made has no way back: run `cogcache extract`"
            raise ConfigError(problem, hint)
        family = family_of(Checkpoint.open(self.settings.model, self.settings.revision))
        self.target, self.source = family.at(cache_point), family.at(sources[0])
        digests = {
            each.cache_point: identify(each, "vision", self.catalog.files).digest
            for each in (self.source, self.target)
        }
        there = self.catalog.clips.known([self._key(clip, digests).digest for clip in clips])
        found: list[_Task] = []
        for clip in clips:
            key = self._key(clip, digests)
            if reason := self._why_not(clip, digests):
                self.left[reason] += 1
            elif key.digest in there and key.digest in self.store:
                self.counts.cached += 1
            else:
                found.append(partial(self._project, clip, key))
        if clips and not found and not self.counts.cached:
            told = "; ".join(f"{count}: {reason}" for reason, count in self.left.items())
            problem = f"no features here can be turned into {cache_point!r} exactly ({told})"
            raise ConfigError(problem, "run `cogcache extract` for them")
        return found

    def _key(self, clip: ClipRow, digests: Mapping[str, str]) -> FeatureKey:
        point = self.target.cache_point
        fields: dict[str, Any] = {**clip["settings"]}
        return FeatureKey(**fields | {"cache_point": point, "vision_digest": digests[point]})

    def _why_not(self, clip: ClipRow, digests: Mapping[str, str]) -> str:
        """Return why features cannot be projected exactly; empty where they can."""
        made, source = clip["settings"], self.source.cache_point
        if made["cache_point"] != source:
            return f"they are {made['cache_point']}, not {source}"
        if clip["family"] != self.source.name or made["vision_digest"] != digests[source]:
            return f"they were made by the vision half of {clip['model']}, of other weights"
        if made["epoch"] != self.source.epoch:
            return "they were made by an earlier version, in another way"
        if str(made["dtype"]).partition(",")[0] not in TYPES:
            return f"they are of the type {made['dtype']}"
        return "" if clip["feature_key"] in self.store else "the feature file is gone"

    def _project(self, clip: ClipRow, key: FeatureKey) -> bool:
        old = clip["feature_key"]
        stored = self.store.read(old)
        features = features_of(stored.tensors, stored.attributes)
        check_features(self.source, features, self.source.layout(self.settings.language))
        projected = self._projected(features, str(key.dtype).partition(",")[0])
        told = {**stored.attributes, **key.fields(), "converted_from": old, "versions": versions()}
        packed = self.compression or compression_of(self.store, old)
        self.store.write(key.digest, projected.tensors, told, stored.thumbnail, compression=packed)
        self.catalog.clips.add([{**rows_of(self.store, key.digest, 0)[1], "run": self.run}])
        return True

    def _projected(self, features: ClipTensors, dtype: str) -> ClipTensors:
        """Return features from behind the projector.

        Raises:
            ConfigError: they depend on how many frames are projected together.
        """
        import torch

        if dtype not in self.projectors:
            device = pick_device(self.settings.device)
            self.projectors[dtype] = load_projector(self.source, getattr(torch, dtype), device)
        model = self.projectors[dtype].model
        projected = self.target.project(model, features)
        num_frames = len(next(iter(features.tensors.values())))
        if (dtype, num_frames) not in self.proven:
            self._prove(features, projected, dtype)
            self.proven.add((dtype, num_frames))
        return projected

    def _prove(self, features: ClipTensors, projected: ClipTensors, dtype: str) -> None:
        import torch

        model, parts = self.projectors[dtype].model, []
        for number in range(len(next(iter(features.tensors.values())))):
            frame = {name: each[number : number + 1] for name, each in features.tensors.items()}
            parts.append(self.target.project(model, ClipTensors(frame, features.texts)))
        for name, whole in projected.tensors.items():
            if not torch.equal(torch.cat([part.tensors[name] for part in parts]), whole):
                raise ConfigError(
                    f"in {dtype} on this device the projector gives other bits for other numbers "
                    "of frames, so nobody can say which of them stage one would have made",
                    "convert on another device (--device cpu), or run `cogcache extract`",
                )
