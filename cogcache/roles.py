"""What the workers of a crew do: decode clips, encode them, caption them.

Roles travel to workers as pickles; all that needs torch is loaded there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cogcache.captionlist import Task
from cogcache.checkpoint import Checkpoint
from cogcache.config import Settings
from cogcache.errors import ClipError
from cogcache.inbox import Answer, Inbox, Item
from cogcache.memory import MemoryMonitor
from cogcache.models.family import ClipTensors, Family
from cogcache.models.identity import HalfIdentity
from cogcache.models.registry import family_of
from cogcache.preparation import (
    ClipSource,
    PreparedClip,
    prepare,
    start_worker,
    without_decord,
)
from cogcache.readahead import read_clip_features
from cogcache.runs import Counts, RunReport, Split
from cogcache.settings_clips import Sampling
from cogcache.store import FeatureStore
from cogcache.telling import Told
from cogcache.worker import Worker
from cogcache.worker_process import Bug, Program
from cogcache.workers import decode_limits
from cogcache.worklist import Clip

if TYPE_CHECKING:
    from cogcache.captioning import Captioner, Made
    from cogcache.featuremaking import FeatureMaker


@dataclass(frozen=True)
class Place:
    """Where a worker finds things, and what it may take of its machine."""

    checkpoint: str
    """The model as it is to be opened: a folder's whole path, a hub id, or `tiny`."""
    cache: Path
    threads: int | None = None
    """Threads of torch; None leaves them as they are."""

    def family(self, settings: Settings) -> Family:
        """Return the family of the checkpoint, at the cache point."""
        family = family_of(Checkpoint.open(self.checkpoint, settings.revision))
        return family.at(settings.vision.cache_point)

    def take(self, device: str) -> None:
        """Have torch keep to this place."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if device.startswith("cuda:"):  # memory is measured on the current one
            torch.cuda.set_device(device)


@dataclass(frozen=True, slots=True)
class ClipJob:
    """A clip to make."""

    clip: Clip
    neighbours: Sequence[str] = ()
    """Keys of cached clips that may share frames with it."""


# ---- stage one ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoding:
    """Decodes and preprocesses clips."""

    settings: Settings
    place: Place
    needs_process = False

    def start(self) -> DecodingDuty:
        """Make a worker ready that may crash or hang, within the limits of every decoder."""
        settings, vision = self.settings, self.settings.vision
        program = Program(
            prepare,
            decode_limits(vision),
            start_worker,
            (
                self.place.checkpoint,
                settings.revision,
                vision.vision_dtype,
                settings.limits.strict,
            ),
            without_decord,
        )
        return DecodingDuty(settings.sampling, Worker(program))


@dataclass
class DecodingDuty:
    """A decoder at work, in a process of its own."""

    sampling: Sampling
    worker: Worker

    def work(self, inbox: Inbox) -> Iterator[Answer]:
        """Answer with the prepared clip as the parcel."""
        try:
            while item := inbox.next(wait=True):
                clip: Clip = item.job.clip
                made = self.worker.run(ClipSource(clip.video, *clip.span, self.sampling))
                if isinstance(made, Bug):
                    raise made.error
                if isinstance(made, PreparedClip):
                    yield Answer(item.ticket, None, made, made.num_frames)
                else:
                    yield Answer(item.ticket, made)
        finally:
            self.worker.stop()

    def told(self) -> None:
        """Nothing: what decoders take is no part of the plan."""

    def close(self) -> None:
        """End the process."""
        self.worker.close()


@dataclass(frozen=True)
class Encoding:
    """Encodes prepared clips and seals their features in the cache."""

    settings: Settings
    place: Place
    needs_process = True

    def start(self) -> EncodingDuty:
        """Load the vision half."""
        from cogcache.featuremaking import FeatureMaker

        self.place.take(self.settings.device)
        report, monitor = _watched("extract", self.settings)
        store = FeatureStore.open(self.place.cache)
        family, neighbours = self.place.family(self.settings), dict[str, Sequence[str]]()
        maker = FeatureMaker(
            self.settings, family, store, report, lambda clip: neighbours[clip.key.digest]
        )
        return EncodingDuty(maker, report, monitor, neighbours)


@dataclass
class EncodingDuty:
    """An encoder at work."""

    maker: FeatureMaker
    report: RunReport
    monitor: MemoryMonitor
    neighbours: dict[str, Sequence[str]]
    """Of the clips in hand, by feature key: clips that may share frames with them."""
    tickets: dict[str, int] = field(default_factory=dict)
    """Of the clips in hand, by feature key."""

    def work(self, inbox: Inbox) -> Iterator[Answer]:
        """Answer with what the catalog has to know of each clip."""
        with self.maker:
            while True:
                batch = self._batch(inbox)
                outcomes = self.maker.make(batch) if batch else self.maker.finish()
                for clip, outcome in outcomes:
                    del self.neighbours[clip.key.digest]
                    yield Answer(self.tickets.pop(clip.key.digest), outcome)
                if inbox.closed and not self.tickets:
                    return

    def _batch(self, inbox: Inbox) -> list[tuple[Clip, PreparedClip]]:
        """Take what waits, as far as it goes into one pass; wait where there is nothing to do."""
        batch: list[tuple[Clip, PreparedClip]] = []
        frames = 0
        while frames < self.maker.frames_per_batch:
            item = inbox.next(wait=not self.tickets)
            if item is None:
                break
            clip: Clip = item.job.clip
            self.tickets[clip.key.digest] = item.ticket
            self.neighbours[clip.key.digest] = item.job.neighbours
            batch.append((clip, item.parcel))
            frames += item.parcel.num_frames
        return batch

    def told(self) -> Told:
        """Return memory, times and what was loaded."""
        return Told.of(self.report, self.monitor)

    def close(self) -> None:
        """Nothing: who has a process of its own ends with it."""


# ---- stage two ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captioning:
    """Captions clips whose features are in the cache."""

    settings: Settings
    place: Place
    identity: HalfIdentity
    needs_process = True

    def start(self) -> CaptioningDuty:
        """Load the language half."""
        from cogcache.captioning import Captioner

        self.place.take(self.settings.device)
        report, monitor = _watched("caption", self.settings)
        store = FeatureStore.open(self.place.cache)
        family = self.place.family(self.settings)
        captioner = Captioner(self.settings, family, self.identity, report)
        return CaptioningDuty(captioner, store, report, monitor)


@dataclass
class _InHand:
    """A clip whose captions are being made."""

    item: Item
    made: list[Made] = field(default_factory=list)


@dataclass
class CaptioningDuty:
    """A captioner at work."""

    captioner: Captioner
    store: FeatureStore
    report: RunReport
    monitor: MemoryMonitor
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "features"))
    ahead: deque[tuple[Item, Future[ClipTensors | ClipError]]] = field(default_factory=deque)
    """Clips whose features are being read."""
    in_hand: dict[str, _InHand] = field(default_factory=dict)
    """By the keys of the captions that are still to be made."""
    failed: deque[Answer] = field(default_factory=deque)

    def work(self, inbox: Inbox) -> Iterator[Answer]:
        """Answer with the captions of a clip, when all of them are made."""
        with self.reader:
            while not inbox.closed:
                for made in self.captioner.captions(self._clips(inbox)):
                    if answer := self._kept(made):
                        yield answer
                    yield from self._failed()
                yield from self._failed()

    def _clips(self, inbox: Inbox) -> Iterator[tuple[list[Task], ClipTensors]]:
        """Yield clips to begin with; one without tasks where there is none just now."""
        while True:
            self._take_up(inbox)
            if not self.ahead and not self.in_hand:  # some have failed, or it is the end
                return
            if not self.ahead or (self.in_hand and not self.ahead[0][1].done()):
                yield [], ClipTensors({})
                continue
            item, reading = self.ahead.popleft()
            with self.report.split.time("wait_for_features"):
                features = reading.result()
            if isinstance(features, ClipError):
                self.failed.append(Answer(item.ticket, features))
            else:
                begun = _InHand(item)
                self.in_hand |= {task.key.digest: begun for task in item.job}
                yield item.job, features

    def _take_up(self, inbox: Inbox) -> None:
        """Have the features of what waits be read; wait where there is nothing to do."""
        while item := inbox.next(wait=not (self.in_hand or self.ahead or self.failed)):
            reading = self.reader.submit(_features_of, item.job[0], self.store)
            self.ahead.append((item, reading))

    def _kept(self, made: Made) -> Answer | None:
        clip = self.in_hand.pop(made.task.key.digest)
        clip.made.append(made)
        whole = len(clip.made) == len(clip.item.job)
        return Answer(clip.item.ticket, clip.made) if whole else None

    def _failed(self) -> Iterator[Answer]:
        while self.failed:
            yield self.failed.popleft()

    def told(self) -> Told:
        """Return memory, times and what was loaded."""
        return Told.of(self.report, self.monitor)

    def close(self) -> None:
        """Nothing: who has a process of its own ends with it."""


def _features_of(task: Task, store: FeatureStore) -> ClipTensors | ClipError:
    """Return what a task is about; what is made of captions alone needs no features."""
    if task.words is not None:
        return ClipTensors({})
    return read_clip_features(store, task.key.feature_key)


def _watched(command: str, settings: Settings) -> tuple[RunReport, MemoryMonitor]:
    """Return a report of a worker's own, and what measures its memory from now on."""
    monitor = MemoryMonitor()
    monitor.__enter__()
    return RunReport(0, command, settings.model, Counts(), Split()), monitor
