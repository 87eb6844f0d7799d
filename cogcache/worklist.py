"""From videos to the clips that have to be made: digests, bounds, keys, and what is there already.

Loads no torch: a run that finds nothing to do must end in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from cogcache.catalog import Catalog, VideoRow, path_to_text
from cogcache.config import Settings
from cogcache.errors import ClipError, VideoError
from cogcache.inputs import file_digest
from cogcache.keys import FeatureKey
from cogcache.models.family import Family
from cogcache.models.identity import HalfIdentity
from cogcache.store import FeatureStore
from cogcache.video import VideoInfo, cut, probe
from cogcache.workers import map_unordered

logger = logging.getLogger(__name__)

HASHING_THREADS = 4
Span = tuple[float, float | None]


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of one video, and the key of its features."""

    video: Path
    key: FeatureKey

    @property
    def span(self) -> Span:
        """Begin and end in seconds of the whole video; None ends with it."""
        return self.key.start_s, self.key.end_s


@dataclass(slots=True)
class Worklist:
    """What a run has before it."""

    missing: list[Clip] = field(default_factory=list)
    cached: list[Clip] = field(default_factory=list)
    known_failures: list[Clip] = field(default_factory=list)
    """Clips that failed before and whose file is the same; made again only when asked."""
    failures: list[tuple[Path, Span, ClipError]] = field(default_factory=list)
    """Videos that cannot even be looked at."""

    @property
    def num_clips(self) -> int:
        """All clips, done or not."""
        return len(self.missing) + len(self.cached) + len(self.known_failures) + len(self.failures)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants made: how, and of which parts of each video."""

    settings: Settings
    family: Family
    identity: HalfIdentity
    spans: Sequence[Span] = ()
    """Parts to take of each video; none takes it whole, or cut by `segment_s`."""
    retry_failed: bool = False

    def key(self, video_digest: str, span: Span) -> FeatureKey:
        """Return the feature key of one clip."""
        return FeatureKey(
            video_digest=video_digest,
            start_s=span[0],
            end_s=span[1],
            sampling=self.settings.sampling.model_dump(),
            preprocessing=self.family.preprocessing(),
            family=self.identity.family,
            vision_digest=self.identity.digest,
            cache_point=self.settings.vision.cache_point,
            dtype=self.settings.vision.vision_dtype,
            epoch=self.family.epoch,
        )


def list_work(
    videos: Sequence[Path], wanted: Wanted, store: FeatureStore, catalog: Catalog
) -> Worklist:
    """Find out which clips of `videos` are missing from the store.

    A clip that two files hold alike is made once.
    """
    work = Worklist()
    digests = _digests(videos, catalog, work)
    spans = _spans(digests, wanted, catalog, work)
    known = catalog.failed_keys("extract") if not wanted.retry_failed else frozenset()
    seen: set[str] = set()
    for video, video_digest in digests.items():
        for span in spans.get(video, ()):
            clip = Clip(video, wanted.key(video_digest, span))
            if clip.key.digest in seen:
                continue
            seen.add(clip.key.digest)
            if clip.key.digest in store:
                work.cached.append(clip)
            elif clip.key.digest in known:
                work.known_failures.append(clip)
            else:
                work.missing.append(clip)
    return work


def _digests(videos: Sequence[Path], catalog: Catalog, work: Worklist) -> dict[Path, str]:
    """Digest of each video: remembered while the file has not changed, else read now."""
    stats = {}
    for video in videos:
        try:
            stats[video] = video.stat()
        except OSError as error:
            gone = VideoError("missing", f"{video}: {error.strerror}", "fetch it anew")
            work.failures.append((video, (0.0, None), gone))
    known = catalog.digests_of(stats)
    unknown = [video for video in stats if video not in known]
    found: dict[Path, str] = {}
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        results = zip(unknown, pool.map(_try(file_digest), unknown), strict=True)
        bar = tqdm(results, total=len(unknown), desc="new videos", unit="video", disable=None)
        for video, result in bar:
            if isinstance(result, ClipError):
                work.failures.append((video, (0.0, None), result))
            else:
                found[video] = result
    catalog.remember_digests((video, stats[video], found[video]) for video in found)
    digests = known | found
    return {video: digests[video] for video in videos if video in digests}


def _spans(
    digests: Mapping[Path, str], wanted: Wanted, catalog: Catalog, work: Worklist
) -> dict[Path, list[Span]]:
    """Bounds of the clips of each video; only cutting needs to know how long it is."""
    segment_s = wanted.settings.clips.segment_s
    if wanted.spans or segment_s is None:
        return {video: list(wanted.spans) or [(0.0, None)] for video in digests}
    rows = catalog.videos(digests=set(digests.values()))
    durations = {r["digest"]: r["duration_s"] for r in rows if r["duration_s"] is not None}
    unknown = [video for video, digest in digests.items() if digest not in durations]
    probed = []
    for video, result in _probed(unknown, wanted.settings):
        if isinstance(result, ClipError):
            work.failures.append((video, (0.0, None), result))
        else:
            probed.append(video_row(video, digests[video], result))
            durations[digests[video]] = result.duration_s
    catalog.add_videos(probed)
    return {
        video: cut(durations[digest], segment_s)
        for video, digest in digests.items()
        if digest in durations
    }


def _probed(
    videos: Sequence[Path], settings: Settings
) -> Iterator[tuple[Path, VideoInfo | ClipError]]:
    """Probe in worker processes: a container can crash a decoder before its first frame."""
    if not videos:
        return
    vision = settings.vision
    yield from tqdm(
        map_unordered(
            probe, videos, workers=vision.decode_workers, timeout_s=vision.decode_timeout_s,
            ahead=4 * vision.decode_workers,
        ),
        total=len(videos), desc="probing new videos", unit="video", disable=None,
    )  # fmt: skip


def video_row(video: Path, digest: str, info: VideoInfo) -> VideoRow:
    """Return a video as the catalog keeps it."""
    return {
        "digest": digest,
        "path": path_to_text(video),
        "duration_s": info.duration_s,
        "fps": info.fps,
        "width": info.width,
        "height": info.height,
        "total_num_frames": info.total_num_frames,
        "codec": info.codec,
        "size_bytes": video.stat().st_size,
    }


def _try(function: Callable[[Path], str]) -> Callable[[Path], str | ClipError]:
    def tried(path: Path) -> str | ClipError:
        try:
            return function(path)
        except VideoError as error:
            return error

    return tried
