"""What the workers of a scheduler do in stage one: decode clips, encode them.

Roles travel to workers as pickles; all that needs torch is loaded there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cogcache.settings import Sampling, Settings
from cogcache.stages.clips.worklist import Clip
from cogcache.stages.distributed.jobs import JobQueue, Result
from cogcache.stages.distributed.launch import (
    WorkerLayout,
    _environment,
    quiet_but_for_first,
    reporting,
    worker_spec_of,
)
from cogcache.stages.distributed.scheduler import Scheduler, WorkerSpec
from cogcache.stages.distributed.stage_worker import WorkerEnvironment, WorkerReport, watched
from cogcache.stages.encoding.frame_reuse import Neighbours
from cogcache.stages.encoding.preparation import ClipSource, PreparedClip, prepare, start_worker
from cogcache.stages.encoding.stage_one import StageOne
from cogcache.stages.runs.report import RunReport
from cogcache.store import FeatureStore
from cogcache.system import Bug, MemoryMonitor, Stop
from cogcache.video import Decoder, DecodeWorker, Program, decode_limits

if TYPE_CHECKING:
    from cogcache.stages.encoding.clip_encoder import ClipEncoder, Outcome

PASSES_IN_HAND = 2
"""Batches that an encoder may have in hand: one is encoded while the next is on its way."""


@dataclass(frozen=True, slots=True)
class ClipJob:
    """A clip to make."""

    clip: Clip
    neighbours: Sequence[str] = ()
    """Keys of cached clips that may share frames with it."""


@dataclass(frozen=True)
class DecodeSpec:
    """Decodes and preprocesses clips."""

    settings: Settings
    environment: WorkerEnvironment
    needs_process = False

    def start(self) -> DecodeActor:
        """Make a worker ready that may crash or hang, within the limits of every decoder."""
        settings, vision = self.settings, self.settings.vision
        program = Program(
            prepare,
            decode_limits(vision),
            partial(
                start_worker,
                self.environment.checkpoint,
                settings.revision,
                vision.vision_dtype,
                settings.limits.strict,
                None,
                self.environment.quiet,
            ),
        )
        return DecodeActor(settings.sampling, vision.decoder, DecodeWorker(program))


@dataclass
class DecodeActor:
    """A decoder at work, in a process of its own."""

    sampling: Sampling
    decoder: Decoder
    worker: DecodeWorker

    def work(self, queue: JobQueue) -> Iterator[Result]:
        """Answer with the prepared clip as the payload."""
        try:
            while item := queue.next(wait=True):
                clip: Clip = item.job.clip
                digest = clip.key.video_digest
                source = ClipSource(
                    clip.video, *clip.span, self.sampling, digest, clip.seen, self.decoder
                )
                made = self.worker.run(source)
                if isinstance(made, Bug):
                    raise made.error
                if isinstance(made, PreparedClip):
                    yield Result(item.job_id, None, made, made.num_frames)
                else:
                    yield Result(item.job_id, made)
        finally:
            self.worker.stop()

    def stats(self) -> None:
        """Nothing: what decoders take is no part of the plan."""

    def close(self) -> None:
        """End the process."""
        self.worker.close()


@dataclass(frozen=True)
class EncodeSpec:
    """Encodes prepared clips and seals their features in the cache."""

    settings: Settings
    environment: WorkerEnvironment
    needs_process = True

    def start(self) -> EncodeActor:
        """Load the vision half."""
        from cogcache.stages.encoding.clip_encoder import ClipEncoder

        self.environment.take(self.settings.device)
        report, monitor = watched("extract", self.settings)
        store = FeatureStore.open(self.environment.cache)
        family, neighbours = self.environment.family(self.settings), dict[str, Sequence[str]]()
        stage = StageOne(self.settings, family, store, lambda clip: neighbours[clip.key.digest])
        return EncodeActor(ClipEncoder(stage, report), report, monitor, neighbours)


@dataclass
class EncodeActor:
    """An encoder at work."""

    encoder: ClipEncoder
    report: RunReport
    monitor: MemoryMonitor
    neighbours: dict[str, Sequence[str]]
    """Of the clips in hand, by feature key: clips that may share frames with them."""
    tickets: dict[str, int] = field(default_factory=dict)
    """Of the clips in hand, by feature key."""

    def work(self, queue: JobQueue) -> Iterator[Result]:
        """Answer with what the catalog has to know of each clip."""
        with self.encoder:
            while True:
                batch = self._batch(queue)
                outcomes = self.encoder.make(batch) if batch else self.encoder.finish()
                for clip, outcome in outcomes:
                    del self.neighbours[clip.key.digest]
                    yield Result(self.tickets.pop(clip.key.digest), outcome)
                if queue.closed and not self.tickets:
                    return

    def _batch(self, queue: JobQueue) -> list[tuple[Clip, PreparedClip]]:
        """Take what waits, as far as it goes into one pass; wait where there is nothing to do."""
        batch: list[tuple[Clip, PreparedClip]] = []
        frames = 0
        while frames < self.encoder.frames_per_batch:
            item = queue.next(wait=not self.tickets)
            if item is None:
                break
            clip: Clip = item.job.clip
            self.tickets[clip.key.digest] = item.job_id
            self.neighbours[clip.key.digest] = item.job.neighbours
            batch.append((clip, item.payload))
            frames += item.payload.num_frames
        return batch

    def stats(self) -> WorkerReport:
        """Return memory, times and what was loaded."""
        return WorkerReport.of(self.report, self.monitor)

    def close(self) -> None:
        """Nothing to do: the process ends."""


@dataclass
class DistributedEncoding:
    """Makes the features of clips with the workers of a scheduler."""

    scheduler: Scheduler
    neighbours: Neighbours

    def make(self, clips: Iterable[Clip | None]) -> Iterator[Sequence[Outcome]]:
        """Yield what became of clips, as they get done."""
        jobs = (clip and ClipJob(clip, tuple(self.neighbours(clip))) for clip in clips)
        for settled in self.scheduler.map(jobs):
            yield [(job.clip, outcome) for job, outcome in settled]


@contextmanager
def distributed_encoding(
    settings: Settings, cache: Path, neighbours: Neighbours, stop: Stop, report: RunReport
) -> Iterator[DistributedEncoding]:
    """Have a scheduler for stage one while a `with` block needs it; the report is told of it."""
    layout = WorkerLayout.of(settings, cache, decodes=True)
    vision = settings.vision
    room = PASSES_IN_HAND * vision.frames_per_batch
    encoders = [
        worker_spec_of(number, worker, EncodeSpec(worker.settings, worker.environment), room)
        for number, worker in enumerate(layout.workers)
    ]
    decoding = DecodeSpec(settings, _environment(settings, cache, None))
    decoders = [
        WorkerSpec(quiet_but_for_first(number, decoding), cpus=1 if number else 0)
        for number in range(layout.decoders)
    ]
    with reporting(Scheduler(layout.engine, [decoders, encoders], stop), report) as scheduler:
        yield DistributedEncoding(scheduler, neighbours)
