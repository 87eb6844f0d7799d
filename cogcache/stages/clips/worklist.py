"""From videos to the clips that have to be made: digests, bounds, keys, and what is there already.

Loads no torch: a run that finds nothing to do must end in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cogcache.catalog import Catalog, ClipRow, Reading, Stat, path_to_text, readings, rows_of
from cogcache.errors import ClipError, CorruptFeaturesError
from cogcache.keys import FeatureKey, Template, computes_in
from cogcache.models import Family, HalfIdentity
from cogcache.settings import Settings, WorkShare
from cogcache.stages.clips.cuts import cut_videos, search_key, size_bytes
from cogcache.stages.clips.digests import look_up
from cogcache.stages.runs.report import Counts
from cogcache.store import FeatureStore
from cogcache.system import Location
from cogcache.video import WHOLE, Seen, Span

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of one video, and the key of its features."""

    video: Location
    key: FeatureKey
    seen: Seen | None = None
    """What the file was when its digest was taken; None for objects of a store."""
    cut: str = "whole"
    """How the video is cut."""

    @property
    def span(self) -> Span:
        """Begin and end in seconds of the whole video; None ends with it."""
        return self.key.start_s, self.key.end_s


@dataclass(frozen=True, slots=True)
class Unusable:
    """A video that cannot even be looked at."""

    video: Location
    error: ClipError


@dataclass(slots=True)
class Worklist:
    """What a run has before it."""

    missing: list[Clip] = field(default_factory=list)
    cached: list[Clip] = field(default_factory=list)
    known_failures: list[Clip] = field(default_factory=list)
    """Clips that failed before and whose file is the same; made again only when asked."""
    failures: list[Unusable] = field(default_factory=list)
    copies: dict[str, list[Location]] = field(default_factory=dict)
    """By feature key: further files with the same bytes, for which nothing is made again."""
    unsearched: dict[str, list[Location]] = field(default_factory=dict)
    """By digest: files of which it has yet to be found how they are cut."""
    unread: Mapping[Location, Stat] = field(default_factory=dict)
    """Videos whose bytes have yet to be read, and what each file is."""
    failed: Collection[str] = ()
    """Keys of what failed in earlier runs and is not to be made again."""
    seen: Mapping[Location, Seen] = field(default_factory=dict)
    """What files were when their digests were taken."""
    holders: dict[str, Location] = field(default_factory=dict)
    """By feature key: the file that a clip is made of."""

    def more(self) -> Worklist:
        """Return an empty list for what is found of further videos of the same run."""
        return Worklist(failed=self.failed, seen=self.seen, holders=self.holders)

    @property
    def num_clips(self) -> int:
        """All clips that are known, done or not."""
        return len(self.missing) + len(self.cached) + len(self.known_failures) + len(self.failures)

    def add_to(self, counts: Counts) -> None:
        """Add what is known of the clips to the counts of a run."""
        counts.found += self.num_clips
        counts.cached += len(self.cached)
        counts.skipped += len(self.known_failures)
        counts.copies += sum(map(len, self.copies.values()))

    def add_videos(
        self,
        digests: Mapping[Location, str],
        wanted: Wanted,
        there: Set[str] | FeatureStore,
        catalog: Catalog,
    ) -> None:
        """Add the clips of videos, and the videos that have to be looked at to be cut.

        Args:
            digests: of the videos' bytes.
            wanted: how clips are made.
            there: keys of features that are in the store.
            catalog: knows how videos are read and cut.
        """
        spans = self._spans(digests, wanted, catalog)
        each_span = ((v, d, span) for v, d in digests.items() for span in spans.get(v, ()))
        self.add_clips(each_span, wanted, there)

    def add_clips(
        self,
        spans: Iterable[tuple[Location, str, Span]],
        wanted: Wanted,
        there: Set[str] | FeatureStore,
    ) -> None:
        """Add clips by what is to be done about each.

        Args:
            spans: videos, their digests, and the bounds of their clips.
            wanted: how clips are made.
            there: keys of features that are in the store.
        """
        for video, video_digest, span in spans:
            clip = Clip(video, wanted.key(video_digest, span), self.seen.get(video), wanted.cut)
            key = clip.key.digest
            if self.holders.setdefault(key, video) != video:
                self.copies.setdefault(key, []).append(video)
            elif key in there:
                self.cached.append(clip)
            elif key in self.failed:
                self.known_failures.append(clip)
            else:
                self.missing.append(clip)

    def put_damaged_away(self, store: FeatureStore, catalog: Catalog) -> None:
        """Check that cached clips are in the catalog; those whose file is damaged are missing."""
        damaged = list_sealed(self.cached, store, catalog)
        self.cached = [clip for clip in self.cached if clip not in damaged]
        self.missing += damaged
        catalog.cuts.add((clip.key.digest, clip.cut) for clip in self.cached)

    def _spans(
        self, digests: Mapping[Location, str], wanted: Wanted, catalog: Catalog
    ) -> Mapping[Location, Sequence[Span]]:
        """Return the bounds of the clips of each video, as far as they are known."""
        wanted.learn({*digests.values()}, catalog)
        if not wanted.is_cut:
            return self._fixed_spans(digests, wanted)
        cuts = cut_videos(digests, wanted.settings.clips, catalog, self.failed, wanted.failure_key)
        for video in cuts.unsearched:
            self.unsearched.setdefault(digests[video], []).append(video)
        self.known_failures += [
            Clip(video, wanted.key(digests[video], WHOLE)) for video in cuts.known_failures
        ]
        return cuts.spans

    def _fixed_spans(
        self, digests: Mapping[Location, str], wanted: Wanted
    ) -> Mapping[Location, Sequence[Span]]:
        """Return bounds that are the same for all videos whose way of reading is known."""
        ready = {}
        for video, each in digests.items():
            if each in wanted.readings or _has_failed(each, wanted, self.failed):
                ready[video] = wanted.fixed_spans
            else:
                self.unsearched.setdefault(each, []).append(video)
        return ready


@dataclass(frozen=True)
class Wanted:
    """What the user wants made: how, and of which parts of each video."""

    settings: Settings
    family: Family
    identity: HalfIdentity
    spans: Sequence[Span] = ()
    """Parts to take of each video; none takes it whole, or cut as the settings say."""
    retry_failed: bool = False
    readings: dict[str, Reading] = field(default_factory=dict)
    """By digest: what is known of videos that have been looked at."""

    def learn(self, digests: Collection[str], catalog: Catalog) -> None:
        """Take up what the catalog remembers of videos."""
        unknown = [each for each in digests if each not in self.readings]
        self.readings.update(readings(catalog.files, unknown))

    @property
    def is_cut(self) -> bool:
        """Whether a video has to be looked at to know its clips."""
        clips = self.settings.clips
        return not self.spans and bool(clips.scenes or clips.segment_s)

    @cached_property
    def fixed_spans(self) -> Sequence[Span]:
        """The clips that every video has; none where it is cut."""
        return () if self.is_cut else list(dict.fromkeys(self.spans)) or [WHOLE]

    @cached_property
    def cut(self) -> str:
        """How videos are cut; `clip` where parts are named."""
        return "clip" if self.spans else self.settings.clips.cut

    def failure_key(self, video_digest: str) -> str:
        """Return the key under which it is known that a video cannot be cut."""
        if self.settings.clips.scenes:
            return search_key(video_digest, self.settings.clips)
        return self.key(video_digest, WHOLE).digest

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """The fields that the keys of all clips share."""
        return {
            "sampling": self.settings.sampling.fields(),
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
        reading = self.readings.get(video_digest)
        if reading is not None and reading.was_other(span[1]):
            sampling = reading.sampling(self._shared["sampling"], span[1])
            fields = {**self._shared, "sampling": sampling}
            return FeatureKey(video_digest=video_digest, start_s=span[0], end_s=span[1], **fields)
        key = FeatureKey(video_digest=video_digest, start_s=span[0], end_s=span[1], **self._shared)
        bounds = {"start_s": key.start_s, "end_s": key.end_s}
        # Found at a third of the cost: a run that has nothing to do computes them all.
        vars(key)["digest"] = self._template.digest({"video_digest": video_digest, **bounds})
        return key


def list_work(
    videos: Sequence[Location], wanted: Wanted, store: FeatureStore, catalog: Catalog
) -> Worklist:
    """Find out which clips of `videos` are missing from the store.

    A clip that two files hold alike is made once. All clips of a video are in one work share. New
    videos are not read here, and none is looked at to be cut.
    """
    looked = look_up(videos, catalog, WorkShare.parse(wanted.settings.machines.shard))
    work = Worklist(unread=looked.unread, seen=looked.seen)
    work.failures += [Unusable(video, error) for video, error in looked.failures]
    work.failed = catalog.failures.failed_keys("extract") if not wanted.retry_failed else set()
    work.add_videos(looked.digests, wanted, store.present(), catalog)
    work.put_damaged_away(store, catalog)
    return work


def list_sealed(clips: Sequence[Clip], store: FeatureStore, catalog: Catalog) -> list[Clip]:
    """Put clips into the catalog whose run ended between sealing and its row.

    Returns:
        Those whose file is damaged; it is moved to the quarantine.
    """
    known = catalog.clips.known([clip.key.digest for clip in clips])
    damaged = []
    for clip in [clip for clip in clips if clip.key.digest not in known]:
        try:
            video, row = rows_of(store, clip.key.digest, size_bytes(clip.video))
        except CorruptFeaturesError as error:
            store.quarantine(clip.key.digest, error.problem)
            damaged.append(clip)
        else:
            catalog.files.add_videos([{**video, "path": path_to_text(clip.video)}])
            catalog.clips.add([{**row, "video": path_to_text(clip.video)}])
    return damaged


def _has_failed(video_digest: str, wanted: Wanted, failed: Collection[str]) -> bool:
    spans = wanted.fixed_spans
    return bool(failed) and all(wanted.key(video_digest, each).digest in failed for each in spans)


def num_unseen(clips: Iterable[Clip], settings: Settings) -> int:
    """Return the number of clips whose end no frame will be taken of."""
    sampling = settings.sampling
    if sampling.strategy != "per_second":
        return 0
    spans = (clip.span for clip in clips)
    seen_s = _seen_s(settings)
    return sum((end_s or 0.0) - start_s > seen_s + 0.5 for start_s, end_s in spans)


def _seen_s(settings: Settings) -> float:
    """Return how many seconds of a clip `per_second` takes frames of."""
    return settings.sampling.max_frames / (settings.sampling.fps or 1.0)


def unseen(count: int, settings: Settings) -> list[str]:
    """Return what there is to say of so many clips whose end no frame is taken of."""
    told = f"per_second sees the first {_seen_s(settings):g} s of a clip, and {count} are longer"
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
        "cut": clip.cut,
    }
