"""Stage one: videos to feature files, through the vision half alone.

    find what is missing → decode and preprocess in worker processes → encode in batches over
    clips → seal in a thread → a row in the catalog

A bad video is a failure row and the run goes on; any other error is a bug and ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogcache.catalog import Catalog, Failure
from cogcache.models import Family, identify, open_family
from cogcache.settings import Settings
from cogcache.stages.clips.clip_claims import ClipClaims
from cogcache.stages.clips.discovery import Finding
from cogcache.stages.clips.worklist import Clip, Wanted, Worklist, list_work, unseen
from cogcache.stages.encoding.clip_writer import ClipWriter
from cogcache.stages.encoding.local import Encoding, LocalEncoding
from cogcache.stages.encoding.stage_one import StageOne
from cogcache.stages.runs.failures import note_failure
from cogcache.stages.runs.libraries import ready_to_identify, ready_to_scale
from cogcache.stages.runs.opened import OpenedRun, open_run
from cogcache.stages.runs.progress import AtWork
from cogcache.stages.runs.remembered import remember
from cogcache.stages.runs.report import Counts, RunReport
from cogcache.store import Claims, FeatureStore
from cogcache.video import WHOLE, Span, find_videos


def extract(
    videos: str | Path | Sequence[str | Path],
    cache: str | Path,
    settings: Settings,
    *,
    spans: Sequence[Span] = (),
    retry_failed: bool = False,
    catalog_path: Path | None = None,
    features: str | None = None,
) -> RunReport:
    """Cache the features of every clip of `videos` that the cache does not hold yet.

    Args:
        videos: files, folders (with all below them), globs, and `@list.txt`.
        cache: folder of the cache; made if absent.
        settings: which model, which frames, which precision.
        spans: parts `(start_s, end_s)` to take of each video, in place of the whole.
        retry_failed: try again what failed before.
        catalog_path: catalog on this machine's own disk, where `cache` is a shared folder.
        features: URL of the prefix where a new cache keeps its features, such as `s3://…`.

    Returns:
        What was done. Failures are counted here and listed in the catalog.

    Raises:
        CogcacheError: a setting, the checkpoint or the cache is not usable.

    Example:
        >>> report = extract("clips/", "cache", load_settings())  # doctest: +SKIP
    """
    cache = Path(cache)
    some = [videos] if isinstance(videos, str | Path) else videos
    paths = find_videos([str(video) for video in some])
    store = FeatureStore.create_or_open(cache, features)
    family = open_family(settings)
    family.frames_of(settings.sampling)  # refuses what no clip could be sampled by
    with open_run("extract", cache, settings, catalog_path) as run:
        family = _scaling(family, run)
        remember(cache, settings)
        with run.timings.time("digest"):
            identity = identify(family, "vision", run.catalog.files)
            wanted = Wanted(settings, family, identity, tuple(spans), retry_failed)
            work = list_work(paths, wanted, store, run.catalog)
            run.warn_outdated("features", family.name)
        report = _begun(run, work)
        if work.missing or work.unsearched or work.unread:
            with run.working() as at:
                _Extraction(wanted, store, run.catalog, report, at).run(work)
    return report


def _scaling(family: Family, run: OpenedRun) -> Family:
    """Return the family at the run's limits of pixels, with what is needed to identify its half."""
    ready_to_scale("extract", run.settings, run.timings)
    family = family.within(run.settings.sampling.pixels)
    ready_to_identify("extract", family, "vision", run.catalog.files, run.timings)
    return family


def _begun(run: OpenedRun, work: Worklist) -> RunReport:
    """Begin the report with what was found; note the videos that could not be read."""
    counts = Counts()
    work.add_to(counts)
    report = run.begin(counts)
    for bad in work.failures:
        note_failure(run.catalog, report, [bad.video], Failure(WHOLE, bad.error))
    return report


class _Extraction:
    """One run with work to do: what is this run's to make, and rows of what was made."""

    def __init__(
        self, wanted: Wanted, store: FeatureStore, catalog: Catalog, report: RunReport, at: AtWork
    ) -> None:
        self.wanted, self.store, self.catalog, self.report = wanted, store, catalog, report
        self.at = at
        self.claims = Claims(at.run)
        limit = wanted.settings.limits.limit
        self.clip_claims = ClipClaims(self.claims, store, catalog, at.stop, limit)
        self.writer = ClipWriter(wanted.settings.model, catalog, report, self.claims)

    def run(self, work: Worklist) -> None:
        """Make every missing clip that no other run makes, or as many as there is time for."""
        self.writer.copies = work.copies
        finding = Finding(work, self.wanted, self.clip_claims, self.report)
        counts = self.report.counts
        self.bar: tqdm[Any] = tqdm(
            total=counts.found, initial=counts.settled, unit="clip", desc="extract", disable=None
        )
        with self.bar, finding, ExitStack() as self._open:
            try:
                ours = self.clip_claims.shared.ours(self._shown(finding.clips()))
                for clip in ours:
                    # Nothing is loaded for videos that turn out to be there already. A search for
                    # scenes lasts as long as that takes.
                    if clip is not None or finding.is_searching:
                        self._make(chain([clip], ours))
                # Other runs have finished these clips by now, or have given them up.
                while held := self.clip_claims.shared.wait_for_others():
                    self._make(self.clip_claims.shared.ours(held.values()))
                self.writer.note_held()
                self.writer.note_late_copies()
            finally:
                self.claims.release_all()
            self._show()
        self.report.warn(unseen(finding.found.num_unseen, self.wanted.settings))

    @cached_property
    def _encoding(self) -> Encoding:
        return self._open.enter_context(self._opened_encoding())

    def _opened_encoding(self) -> AbstractContextManager[Encoding]:
        """Return what makes features: this process, or workers in other processes."""
        wanted = self.wanted
        if not wanted.settings.machines.is_distributed:
            stage = StageOne(wanted.settings, wanted.family, self.store, self._neighbours)
            return LocalEncoding(stage, self.report)
        from cogcache.stages.encoding.remote import distributed_encoding

        return distributed_encoding(
            wanted.settings, self.store.root, self._neighbours, self.at.stop, self.report
        )

    def _neighbours(self, clip: Clip) -> list[str]:
        """Return the keys of cached clips that share time with a clip of the same video."""
        found = self.catalog.clips.overlapping(clip.key.video_digest, *clip.span)
        return [key for key in found if key in self.store]

    def _shown(self, clips: Iterable[Clip | None]) -> Iterator[Clip | None]:
        """Hand clips on, and show how far the run is while there is none."""
        for clip in clips:
            if clip is None:
                self._show()
            yield clip

    def _make(self, ours: Iterable[Clip | None]) -> None:
        for outcomes in self._encoding.make(ours):
            self.writer.take(outcomes)
            if self.writer.disk.is_gone:
                self.at.stop.ask(self.writer.disk.told(), fault=True)
            self._show()

    def _show(self) -> None:
        """Bring the bar and the counts of what others have made up to date."""
        counts = self.report.counts
        counts.cached += self.clip_claims.made.drain()
        counts.skipped += self.clip_claims.failed.drain()
        self.bar.total = counts.found
        told = f"{counts.unsearched:,} videos to cut" if counts.unsearched else ""
        self.bar.set_postfix_str(told, refresh=False)
        self.bar.update(counts.settled - self.bar.n)
