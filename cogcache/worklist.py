"""From videos to the clips that have to be made: digests, bounds, keys, and what is there already.

Loads no torch: a run that finds nothing to do must end in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cogcache.canonical import Template
from cogcache.catalog import Catalog, ClipRow, path_to_text
from cogcache.config import Settings
from cogcache.cutting import cut_videos, size_bytes
from cogcache.digesting import read_digests
from cogcache.errors import ClipError, CorruptFeaturesError
from cogcache.inputs import Seen
from cogcache.keys import FeatureKey, computes_in
from cogcache.models.family import Family
from cogcache.models.identity import HalfIdentity
from cogcache.recovery import rows_of
from cogcache.shards import Shard
from cogcache.spool import Spool
from cogcache.store import FeatureStore

logger = logging.getLogger(__name__)

Span = tuple[float, float | None]
WHOLE: Span = (0.0, None)


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of one video, and the key of its features."""

    video: Path
    key: FeatureKey
    seen: Seen | None = None
    """What the file was when its digest was taken; None for objects of a store."""

    @property
    def span(self) -> Span:
        """Begin and end in seconds of the whole video; None ends with it."""
        return self.key.start_s, self.key.end_s


@dataclass(frozen=True, slots=True)
class Unusable:
    """A video that cannot even be looked at."""

    video: Path
    error: ClipError
    key: str | None = None
    """Digest of the key that the whole video has; None where not even its bytes are known."""
    span: Span = WHOLE


@dataclass(slots=True)
class Worklist:
    """What a run has before it."""

    missing: list[Clip] = field(default_factory=list)
    cached: list[Clip] = field(default_factory=list)
    known_failures: list[Clip] = field(default_factory=list)
    """Clips that failed before and whose file is the same; made again only when asked."""
    failures: list[Unusable] = field(default_factory=list)
    copies: dict[str, list[Path]] = field(default_factory=dict)
    """By feature key: further files with the same bytes, for which nothing is made again."""

    @property
    def num_clips(self) -> int:
        """All clips, done or not."""
        return len(self.missing) + len(self.cached) + len(self.known_failures) + len(self.failures)


@dataclass(frozen=True)
class Wanted:
    """What the user wants made: how, and of which parts of each video."""

    settings: Settings
    family: Family
    identity: HalfIdentity
    spans: Sequence[Span] = ()
    """Parts to take of each video; none takes it whole, or cut as the settings say."""
    retry_failed: bool = False

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """The fields that the keys of all clips share."""
        return {
            "sampling": self.settings.sampling.model_dump(),
            "preprocessing": self.family.preprocessing(),
            "family": self.identity.family,
            "vision_digest": self.identity.digest,
            "cache_point": self.settings.vision.cache_point,
            "dtype": computes_in(
                self.settings.vision.vision_dtype, compiled=self.settings.vision.compile
            ),
            "epoch": self.family.epoch,
        }

    @cached_property
    def _template(self) -> Template:
        return Template(self._shared, ("video_digest", "start_s", "end_s"))

    def key(self, video_digest: str, span: Span) -> FeatureKey:
        """Return the feature key of one clip."""
        key = FeatureKey(video_digest=video_digest, start_s=span[0], end_s=span[1], **self._shared)
        bounds = {"start_s": key.start_s, "end_s": key.end_s}
        # Found at a third of the cost: a run that has nothing to do computes them all.
        vars(key)["digest"] = self._template.digest({"video_digest": video_digest, **bounds})
        return key


def list_work(
    videos: Sequence[Path], wanted: Wanted, store: FeatureStore, catalog: Catalog
) -> Worklist:
    """Find out which clips of `videos` are missing from the store.

    A clip that two files hold alike is made once. Of several shards, one has all of a video.
    """
    work = Worklist()
    shard = Shard.parse(wanted.settings.machines.shard)
    digests, unread, seen = read_digests(
        videos, catalog, shard, Spool.of_this_machine(wanted.settings.machines.spool_gib)
    )
    work.failures += [Unusable(video, error) for video, error in unread]
    failed = catalog.failed_keys("extract") if not wanted.retry_failed else set()
    spans = _spans(digests, wanted, failed, catalog, work)
    first: dict[str, Path] = {}
    there = store.present()
    for video, video_digest in digests.items():
        for span in spans.get(video, ()):
            clip = Clip(video, wanted.key(video_digest, span), seen.get(video))
            key = clip.key.digest
            if first.setdefault(key, video) != video:
                work.copies.setdefault(key, []).append(video)
            elif key in there:
                work.cached.append(clip)
            elif key in failed:
                work.known_failures.append(clip)
            else:
                work.missing.append(clip)
    damaged = list_sealed(work.cached, store, catalog)
    work.cached = [clip for clip in work.cached if clip not in damaged]
    work.missing += damaged
    return work


def list_sealed(clips: Sequence[Clip], store: FeatureStore, catalog: Catalog) -> list[Clip]:
    """Put clips into the catalog whose run ended between sealing and its row.

    Returns:
        Those whose file is damaged; it is moved to the quarantine.
    """
    known = catalog.has_clips([clip.key.digest for clip in clips])
    damaged = []
    for clip in [clip for clip in clips if clip.key.digest not in known]:
        try:
            video, row = rows_of(store, clip.key.digest, size_bytes(clip.video))
        except CorruptFeaturesError as error:
            store.quarantine(clip.key.digest, error.problem)
            damaged.append(clip)
        else:
            catalog.add_videos([{**video, "path": path_to_text(clip.video)}])
            catalog.add_clips([{**row, "video": path_to_text(clip.video)}])
    return damaged


def _spans(
    digests: Mapping[Path, str],
    wanted: Wanted,
    failed: Collection[str],
    catalog: Catalog,
    work: Worklist,
) -> Mapping[Path, Sequence[Span]]:
    """Bounds of the clips of each video."""
    clips = wanted.settings.clips
    if wanted.spans or not (clips.scenes or clips.segment_s):
        return {video: list(dict.fromkeys(wanted.spans)) or [WHOLE] for video in digests}

    def whole_key(video_digest: str) -> str:
        return wanted.key(video_digest, WHOLE).digest

    cuts = cut_videos(digests, wanted.settings, catalog, failed, whole_key)
    work.failures += [Unusable(video, error, key) for video, error, key in cuts.failures]
    work.known_failures += [
        Clip(video, wanted.key(digests[video], WHOLE)) for video in cuts.known_failures
    ]
    return cuts.spans


def unseen(clips: Sequence[Clip], settings: Settings) -> list[str]:
    """Return what there is to say of clips whose end no frame will be taken of."""
    sampling = settings.sampling
    if sampling.strategy != "per_second":
        return []
    count = sum((end_s or 0.0) - start_s > sampling.max_frames + 0.5 for start_s, end_s in (
        clip.span for clip in clips
    ))  # fmt: skip
    told = f"per_second sees the first {sampling.max_frames} s of a clip, and {count} are longer"
    return [f"{told}: --strategy spread sees all of each"] if count else []


def clip_row(clip: Clip, model: str, run: int) -> ClipRow:
    """Return a clip as the catalog keeps it, before anything is made of it."""
    return {
        "feature_key": clip.key.digest,
        "video_digest": clip.key.video_digest,
        "video": path_to_text(clip.video),
        "start_s": clip.key.start_s,
        "end_s": clip.key.end_s,
        "family": clip.key.family,
        "model": model,
        "num_frames": 0,
        "size_bytes": 0,
        "decoder": "",
        "settings": clip.key.fields(),
        "run": run,
    }
