"""Stage one: videos to feature files, through the vision half alone.

    find what is missing → decode and preprocess in worker processes → encode in batches over
    clips → seal in a thread → a row in the catalog

A bad video is a failure row and the run goes on; any other error is a bug and ends it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cogcache.catalog import Catalog, ClipRow, VideoRow, failure_row, path_to_text
from cogcache.checkpoint import Checkpoint
from cogcache.config import Settings
from cogcache.errors import ClipError, CogcacheError
from cogcache.inputs import find_videos
from cogcache.keys import Field
from cogcache.memory import MemoryMonitor, out_of_memory, sample
from cogcache.models.identity import identify
from cogcache.models.registry import family_of
from cogcache.preparation import ClipSource, PreparedClip, prepare, start_worker
from cogcache.runs import Counts, RunReport, Split, versions
from cogcache.stopping import Stop, stop_on_signals
from cogcache.store import FeatureStore
from cogcache.workers import map_unordered
from cogcache.worklist import Clip, Span, Wanted, Worklist, clip_row, list_work, video_row

if TYPE_CHECKING:
    from cogcache.models.family import ClipTensors
    from cogcache.models.halves import LoadedHalf

logger = logging.getLogger(__name__)

SEALING_AHEAD = 4
"""Clips that may wait for the writer; bounds the memory of encoded, unwritten features."""


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
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    with Catalog(cache / "catalog.sqlite") as catalog, MemoryMonitor() as monitor:
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
            job = _Extraction(wanted, store, catalog, report, work.copies)
            with stop_on_signals() as stop:
                job.run(work, stop)
            report.stopped = stop.reason
    report.finish(monitor)
    with Catalog(cache / "catalog.sqlite") as catalog:
        catalog.finish_run(run, **report.row())
    return report


@dataclass
class _Encoded:
    """A clip whose features wait to be sealed."""

    clip: Clip
    prepared: PreparedClip
    features: ClipTensors


@dataclass
class _Extraction:
    """One run with work to do: the vision half, the batch in hand, the writer's queue."""

    wanted: Wanted
    store: FeatureStore
    catalog: Catalog
    report: RunReport
    copies: Mapping[str, Sequence[Path]]
    batch: list[tuple[Clip, PreparedClip]] = field(default_factory=list)
    sealing: deque[tuple[_Encoded, Future[int]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.vision = self.wanted.settings.vision
        self.frames_per_batch = self.vision.frames_per_batch
        self.bar: tqdm[Any] = tqdm(disable=True)

    def run(self, work: Worklist, stop: Stop) -> None:
        """Make every missing clip, or as many as there is time for."""
        # Before the weights: the workers decode while those are read.
        prepared = self._prepare(work.missing, stop)
        with self.report.split.time("load"):
            loaded = self._load()
        total = work.num_clips
        self.bar = tqdm(
            total=total,
            initial=total - len(work.missing),
            unit="clip",
            desc="extract",
            disable=None,
        )
        with ThreadPoolExecutor(1, "sealing") as writer, self.bar:
            for clip, result in self._timed(prepared):
                if isinstance(result, ClipError):
                    self._fail(clip, result)
                else:
                    self.batch.append((clip, result))
                if sum(item.num_frames for _, item in self.batch) >= self.frames_per_batch:
                    self._encode(loaded, writer)
            self._encode(loaded, writer)
            self._commit(leave=0)

    def _load(self) -> LoadedHalf:
        from cogcache.loading import load_vision
        from cogcache.models.halves import WholeModel

        whole = WholeModel.of(self.wanted.family.checkpoint)
        self.report.base_bytes = sample().host_bytes
        loaded, choice = load_vision(whole, self.wanted.family, self.wanted.settings)
        self.frames_per_batch = choice.frames_per_batch
        self.report.planned = choice.plan
        self.report.notes.append(choice.reason)
        self.report.bytes_by_shard = dict(loaded.bytes_by_shard)
        return loaded

    def _prepare(
        self, clips: Sequence[Clip], stop: Stop
    ) -> Iterator[tuple[Clip, PreparedClip | ClipError]]:
        """Start the decode workers; the iterator gives each clip, prepared or failed."""
        settings = self.wanted.settings
        by_source = {ClipSource(clip.video, *clip.span, settings.sampling): clip for clip in clips}
        sources = (source for source in by_source if not stop)
        results = map_unordered(
            prepare,
            sources,
            workers=self.vision.decode_workers,
            timeout_s=self.vision.decode_timeout_s,
            ahead=2 * self.vision.decode_workers,
            initializer=start_worker,
            initargs=(settings.model, settings.revision, self.vision.vision_dtype),
        )
        return ((by_source[source], result) for source, result in results)

    def _timed(
        self, prepared: Iterator[tuple[Clip, PreparedClip | ClipError]]
    ) -> Iterator[tuple[Clip, PreparedClip | ClipError]]:
        """Count the time spent waiting for the decoders."""
        while True:
            with self.report.split.time("wait_for_frames"):
                item = next(prepared, None)
            if item is None:
                return
            yield item

    def _encode(self, loaded: LoadedHalf, writer: ThreadPoolExecutor) -> None:
        """Encode the batch in hand and give its clips to the writer."""
        if not self.batch:
            return
        with self.report.split.time("encode"):
            encoded = self._encode_within_memory(loaded, [item.tensors() for _, item in self.batch])
            for (clip, prepared), features in zip(self.batch, encoded, strict=True):
                host = {name: tensor.cpu() for name, tensor in features.tensors.items()}
                ready = _Encoded(clip, prepared, type(features)(host, features.texts))
                self.sealing.append((ready, writer.submit(self._seal, ready)))
        self.batch.clear()
        self._commit(leave=SEALING_AHEAD)

    def _encode_within_memory(
        self, loaded: LoadedHalf, clips: Sequence[ClipTensors]
    ) -> list[ClipTensors]:
        """Encode; where memory runs out, with half as many frames in one pass."""
        while True:
            try:
                return self.wanted.family.encode(loaded.model, clips, self.frames_per_batch)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.frames_per_batch == 1:
                    raise CogcacheError(
                        "memory runs out with a single frame in a pass",
                        "give the stage more memory, or --device cpu",
                    ) from error
            self.frames_per_batch //= 2
            logger.warning("out of memory: going on with %d frames a pass", self.frames_per_batch)

    def _seal(self, encoded: _Encoded) -> int:
        """Write one feature file; runs in the writer's thread."""
        clip, prepared = encoded.clip, encoded.prepared
        attributes: dict[str, Field] = {
            **clip.key.fields(),
            **prepared.facts,
            "video": path_to_text(clip.video),
            "model": self.wanted.settings.model,
            "texts": dict(encoded.features.texts),
            "versions": versions(),
        }
        return self.store.write(
            clip.key.digest,
            encoded.features.tensors,
            attributes,
            prepared.thumbnail,
            compression=self.vision.compression,
        )

    def _commit(self, leave: int) -> None:
        """Put sealed clips into the catalog until at most `leave` wait for the writer."""
        clips: list[ClipRow] = []
        videos: list[VideoRow] = []
        while len(self.sealing) > leave:
            encoded, sealed = self.sealing.popleft()
            clip, prepared = encoded.clip, encoded.prepared
            try:
                with self.report.split.time("wait_for_writer"):
                    size_bytes = sealed.result()
            except ClipError as error:
                self._fail(clip, error)
                continue
            videos.append(video_row(clip.video, clip.key.video_digest, prepared.info))
            clips.append(
                {
                    **clip_row(clip, self.wanted.settings.model, self.report.run),
                    "num_frames": prepared.num_frames,
                    "size_bytes": size_bytes,
                    "decoder": str(prepared.facts["decoder"]),
                }
            )
        self.catalog.add_videos(videos)
        self.catalog.add_clips(clips)
        self.catalog.clear_failed([clip["feature_key"] for clip in clips])
        self.report.counts.done += len(clips)
        self.bar.update(len(clips))

    def _fail(self, clip: Clip, error: ClipError) -> None:
        key = clip.key.digest
        videos = [clip.video, *self.copies.get(key, ())]
        note_failure(self.catalog, self.report, videos, clip.span, error, key)
        self.bar.update()


def note_failure(
    catalog: Catalog,
    report: RunReport,
    videos: Sequence[Path],
    span: Span,
    error: ClipError,
    key: str | None,
) -> None:
    """Note that a clip could not be done, under each file that holds it."""
    for video in videos:
        catalog.add_failure(failure_row(video, span, "extract", error, run=report.run, key=key))
    report.counts.failed += 1
    logger.warning("%s", error.problem)
