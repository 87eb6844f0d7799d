"""What the workers of a scheduler do in stage two: caption clips whose features are in the cache.

The spec travels to workers as a pickle; all that needs torch is loaded there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from cogcache.errors import ClipError
from cogcache.models import ClipTensors, HalfIdentity
from cogcache.settings import Settings
from cogcache.stages.captioning.read_ahead import CLIPS_AHEAD, Read, if_fitting, reader_for
from cogcache.stages.captioning.results import GivenUp, Made
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.tasks import Task
from cogcache.stages.distributed.jobs import Job, JobQueue, Result
from cogcache.stages.distributed.launch import WorkerLayout, reporting, worker_spec_of
from cogcache.stages.distributed.scheduler import Scheduler
from cogcache.stages.distributed.stage_worker import WorkerEnvironment, WorkerReport, watched
from cogcache.stages.runs.report import RunReport
from cogcache.store import FeatureStore
from cogcache.system import MemoryMonitor, Stop

if TYPE_CHECKING:
    from cogcache.stages.captioning.captioner import Captioner
    from cogcache.stages.captioning.results import Made


@dataclass(frozen=True)
class CaptionSpec:
    """Captions clips whose features are in the cache."""

    settings: Settings
    environment: WorkerEnvironment
    identity: HalfIdentity
    needs_process = True

    def start(self) -> CaptionActor:
        """Load the language half."""
        from cogcache.stages.captioning.captioner import Captioner

        self.environment.take(self.settings.device)
        report, monitor = watched("caption", self.settings)
        store = FeatureStore.open(self.environment.cache)
        family = self.environment.family(self.settings)
        stage = StageTwo(self.settings, family, self.identity)
        captioner = Captioner(stage, report, store)
        return CaptionActor(captioner, store, report, monitor, reader_for(stage))


@dataclass
class _InHand:
    """A clip whose captions are being made."""

    item: Job
    made: list[Made] = field(default_factory=list)
    given_up: list[ClipError] = field(default_factory=list)
    """Why captions could not be made; one of them is the clip's failure."""


@dataclass
class CaptionActor:
    """A captioner at work."""

    captioner: Captioner
    store: FeatureStore
    report: RunReport
    monitor: MemoryMonitor
    read: Read
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "features"))
    ahead: deque[tuple[Job, Future[ClipTensors | ClipError]]] = field(default_factory=deque)
    """Clips whose features are being read."""
    in_hand: dict[str, _InHand] = field(default_factory=dict)
    """By the keys of the captions that are still to be made."""
    failed: deque[Result] = field(default_factory=deque)

    def work(self, queue: JobQueue) -> Iterator[Result]:
        """Answer with the captions of a clip, when all of them are made."""
        with self.reader:
            while not queue.closed:
                for made in self.captioner.captions(self._clips(queue)):
                    if answer := self._kept(made):
                        yield answer
                    yield from self._failed()
                yield from self._failed()

    def _clips(self, queue: JobQueue) -> Iterator[tuple[list[Task], ClipTensors]]:
        """Yield clips to begin with; one without tasks where there is none just now."""
        while True:
            self._take_up(queue)
            if not self.ahead and not self.in_hand:  # some have failed, or it is the end
                return
            if not self.ahead or (self.in_hand and not self.ahead[0][1].done()):
                yield [], ClipTensors({})
                continue
            item, reading = self.ahead.popleft()
            with self.report.timings.time("wait_for_features"):
                features = self._fitting(reading.result(), item.job[0])
            if isinstance(features, ClipError):
                self.failed.append(Result(item.job_id, features))
            else:
                begun = _InHand(item)
                self.in_hand |= {task.key.digest: begun for task in item.job}
                yield item.job, features

    def _take_up(self, queue: JobQueue) -> None:
        """Have the features of what waits be read; wait where there is nothing to do."""
        while item := queue.next(wait=not (self.in_hand or self.ahead or self.failed)):
            reading = self.reader.submit(self._features_of, item.job[0])
            self.ahead.append((item, reading))

    def _features_of(self, task: Task) -> ClipTensors | ClipError:
        """Return what a task is about; what is made of captions alone needs no features."""
        if task.words is not None:
            return ClipTensors({})
        return self.read(self.store, task.key.feature_key)

    def _fitting(self, features: ClipTensors | ClipError, task: Task) -> ClipTensors | ClipError:
        if task.words is not None:
            return features
        return if_fitting(features, self.captioner.stage.family, task.key.layout)

    def _kept(self, made: Made | GivenUp) -> Result | None:
        clip = self.in_hand.pop(made.task.key.digest)
        if isinstance(made, GivenUp):
            clip.given_up.append(made.error)
        else:
            clip.made.append(made)
        if len(clip.made) + len(clip.given_up) < len(clip.item.job):
            return None
        return Result(clip.item.job_id, clip.given_up[0] if clip.given_up else clip.made)

    def _failed(self) -> Iterator[Result]:
        while self.failed:
            yield self.failed.popleft()

    def stats(self) -> WorkerReport:
        """Return memory, times and what was loaded."""
        self.captioner.measure()
        return WorkerReport.of(self.report, self.monitor)

    def close(self) -> None:
        """End what other processes do for this one, which ends too."""
        self.captioner.close()


def _with_whole_paths(settings: Settings) -> Settings:
    language = settings.language
    given = {"keep_prefix": language.keep_prefix, "adapter": language.adapter}
    whole = {name: str(Path(path).absolute()) for name, path in given.items() if path is not None}
    return settings.model_copy(update={"language": language.model_copy(update=whole)})


@dataclass
class DistributedCaptioning:
    """Makes captions with the workers of a scheduler."""

    scheduler: Scheduler

    def captions(
        self, tasks: Iterable[Task]
    ) -> Iterator[tuple[list[Task], list[Made] | ClipError]]:
        """Yield the captions of clips, or why a clip has none, as they get done.

        Args:
            tasks: those of a clip must be neighbours.
        """
        by_clip = groupby(tasks, lambda task: (task.words is None, task.key.feature_key))
        clips = (list(each) for _, each in by_clip)
        for settled in self.scheduler.map(takewhile(lambda _: not self.scheduler.stop, clips)):
            yield from settled


@contextmanager
def distributed_captioning(
    settings: Settings, cache: Path, identity: HalfIdentity, stop: Stop, report: RunReport
) -> Iterator[DistributedCaptioning]:
    """Have a scheduler for stage two while a `with` block needs it; the report is told of it."""
    layout = WorkerLayout.of(_with_whole_paths(settings), cache, decodes=False)
    rows = settings.language.clips_per_batch
    captions = len(settings.prompts) * settings.generation.n
    room = -(-rows // captions) + CLIPS_AHEAD
    worker_specs = [
        worker_spec_of(
            number, worker, CaptionSpec(worker.settings, worker.environment, identity), room
        )
        for number, worker in enumerate(layout.workers)
    ]
    with reporting(Scheduler(layout.engine, [worker_specs], stop), report) as scheduler:
        yield DistributedCaptioning(scheduler)
