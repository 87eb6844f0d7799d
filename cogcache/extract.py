"""Stage one: videos to feature files, through the vision half alone.

    find what is missing → decode and preprocess in worker processes → encode in batches over
    clips → seal in a thread → a row in the catalog

A bad video is a failure row and the run goes on; any other error is a bug and ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cogcache.catalog import Catalog
from cogcache.checkpoint import Checkpoint
from cogcache.claims import Claims, sweep
from cogcache.config import Settings
from cogcache.errors import ClipError
from cogcache.inputs import find_videos
from cogcache.memory import MemoryMonitor
from cogcache.models.identity import identify
from cogcache.models.registry import family_of
from cogcache.preparation import ClipSource, PreparedClip, prepare, start_worker
from cogcache.progress import AtWork, at_work
from cogcache.runs import Counts, RunReport, Split
from cogcache.sharing import Sharing
from cogcache.store import FeatureStore
from cogcache.workers import map_unordered
from cogcache.worklist import Clip, Span, Wanted, Worklist, list_work
from cogcache.writing import ClipWriter, note_failure

if TYPE_CHECKING:
    from cogcache.encoding import Encoder

logger = logging.getLogger(__name__)

Prepared = tuple[Clip, PreparedClip | ClipError]


def extract(
    videos: Sequence[str | Path],
    cache: Path,
    settings: Settings,
    *,
    spans: Sequence[Span] = (),
    retry_failed: bool = False,
) -> RunReport:
    """Cache the features of every clip of `videos` that the cache does not hold yet.

    Args:
        videos: files, folders (with all below them), globs, and `@list.txt`.
        cache: folder of the cache; made if absent.
        settings: which model, which frames, which precision.
        spans: parts `(start_s, end_s)` to take of each video, in place of the whole.
        retry_failed: try again what failed before.

    Returns:
        What was done. Failures are counted here and listed in the catalog.

    Raises:
        CogcacheError: a setting, the checkpoint or the cache is not usable.
    """
    paths = find_videos([str(video) for video in videos])
    store = FeatureStore.create_or_open(cache)
    store.sweep()
    sweep(cache)
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    family = family.at(settings.vision.cache_point)
    with Catalog(cache / "catalog.sqlite") as catalog:
        with MemoryMonitor() as monitor:
            split = Split()
            with split.time("digest"):
                identity = identify(family, "vision", catalog)
                wanted = Wanted(settings, family, identity, tuple(spans), retry_failed)
                work = list_work(paths, wanted, store, catalog)
            run = catalog.start_run("extract", settings.model, settings.model_dump(mode="json"))
            counts = Counts(found=work.num_clips, cached=len(work.cached))
            counts.skipped = len(work.known_failures)
            counts.copies = sum(map(len, work.copies.values()))
            report = RunReport(run, "extract", settings.model, counts, split)
            for bad in work.failures:
                note_failure(catalog, report, [bad.video], bad.span, bad.error, bad.key)
            if work.missing:
                with at_work(cache, report, settings.limits) as at:
                    _Extraction(wanted, store, catalog, report, at).run(work)
                report.stopped, report.fault = at.stop.reason, at.stop.fault
        report.finish(monitor)
        catalog.finish_run(run, **report.row())
    return report


@dataclass
class _Extraction:
    """One run with work to do: the vision half, the batch in hand, what others have in hand."""

    wanted: Wanted
    store: FeatureStore
    catalog: Catalog
    report: RunReport
    at: AtWork
    batch: list[tuple[Clip, PreparedClip]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.vision = self.wanted.settings.vision
        self.bar: tqdm[Any] = tqdm(disable=True)
        self.claims = Claims(self.at.run)
        self.sharing = Sharing(self.claims, self.store, self.catalog, self.at.stop)

    def run(self, work: Worklist) -> None:
        """Make every missing clip that no other run makes, or as many as there is time for."""
        # Before the weights: the workers decode while those are read.
        prepared = self._prepare(work.missing)
        encoder = self._encoder()
        total = work.num_clips
        self.bar = tqdm(
            total=total,
            initial=total - len(work.missing),
            unit="clip",
            desc="extract",
            disable=None,
        )
        with ThreadPoolExecutor(1, "sealing") as thread, self.bar:
            self.writer = ClipWriter(
                self.wanted.settings, self.store, self.catalog, self.report, self.claims,
                work.copies, thread,
            )  # fmt: skip
            try:
                self._pass(prepared, encoder)
                # What other runs had in hand is made by now, or theirs no more.
                while held := self.sharing.wait_for_others():
                    self._pass(self._prepare(held), encoder)
            finally:
                self.claims.release_all()

    def _pass(self, prepared: Iterator[Prepared], encoder: Encoder) -> None:
        for clip, result in self._timed(prepared):
            if isinstance(result, ClipError):
                self.writer.fail(clip, result)
            else:
                self.batch.append((clip, result))
            if sum(item.num_frames for _, item in self.batch) >= encoder.frames_per_batch:
                self._encode(encoder)
            self._show()
        self._encode(encoder)
        self.writer.commit(leave=0)
        self._show()

    def _encoder(self) -> Encoder:
        from cogcache.encoding import Encoder

        return Encoder(self.wanted.settings, self.wanted.family, self.report)

    def _show(self) -> None:
        """Bring the bar and the counts of what others have made up to date."""
        counts = self.report.counts
        counts.cached += self.sharing.made.drain()
        counts.skipped += self.sharing.failed.drain()
        self.bar.update(counts.settled - self.bar.n)

    def _prepare(self, clips: Sequence[Clip]) -> Iterator[Prepared]:
        """Start the decode workers; the iterator gives each clip, prepared or failed."""
        settings = self.wanted.settings
        by_source = {ClipSource(clip.video, *clip.span, settings.sampling): clip for clip in clips}
        sources_of = {clip.key.digest: source for source, clip in by_source.items()}
        ours = self.sharing.claim(clips, settings.limits.limit)
        sources = (sources_of[clip.key.digest] for clip in ours)
        results = map_unordered(
            prepare,
            sources,
            workers=self.vision.decode_workers,
            timeout_s=self.vision.decode_timeout_s,
            ahead=2 * self.vision.decode_workers,
            initializer=start_worker,
            initargs=(
                settings.model,
                settings.revision,
                self.vision.vision_dtype,
                settings.limits.strict,
            ),
        )
        return ((by_source[source], result) for source, result in results)

    def _timed(self, prepared: Iterator[Prepared]) -> Iterator[Prepared]:
        """Count the time spent waiting for the decoders."""
        while True:
            with self.report.split.time("wait_for_frames"):
                item = next(prepared, None)
            if item is None:
                return
            yield item

    def _encode(self, encoder: Encoder) -> None:
        """Encode the batch in hand and give its clips to the writer."""
        if not self.batch:
            return
        encoded = encoder.encode([item.tensors() for _, item in self.batch])
        for (clip, prepared), features in zip(self.batch, encoded, strict=True):
            self.writer.take(clip, prepared, features)
        self.batch.clear()
        self.writer.commit()
