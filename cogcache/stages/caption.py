"""Stage two: cached features to captions, through the language half alone.

find what is missing → read features ahead → lay prompts out around them → a clip's video part
once, all its prompts behind it → look at what came out → commit every few seconds
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tqdm import tqdm

from cogcache.catalog import (
    CaptionRow,
    Catalog,
    ClipRow,
    Failure,
    FlaggedCaption,
    text_to_path,
)
from cogcache.errors import ClipError
from cogcache.models import (
    Choice,
    ClipTensors,
    Family,
    cost_of_going_on,
    identify,
    open_family,
    runnable,
    with_adapter,
)
from cogcache.settings import Settings
from cogcache.stages.captioning.captioner import Captioner, ClipTasks
from cogcache.stages.captioning.fill_prompts import UNFILLED
from cogcache.stages.captioning.following import Following
from cogcache.stages.captioning.quantization import quantization_for
from cogcache.stages.captioning.read_ahead import if_fitting, read_ahead, reader_for
from cogcache.stages.captioning.remaking import put_in_place
from cogcache.stages.captioning.results import GivenUp, Made
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.summaries import NO_SUMMARY, list_all
from cogcache.stages.captioning.tasks import CaptionList, Task
from cogcache.stages.clips.choice import OLD_FEATURES
from cogcache.stages.runs.libraries import load_libraries, ready_to_identify
from cogcache.stages.runs.opened import OpenedRun, open_run
from cogcache.stages.runs.progress import AtWork
from cogcache.stages.runs.report import Counts, RunReport
from cogcache.stages.runs.shared import Shared
from cogcache.store import Claims, FeatureStore
from cogcache.units import printable
from cogcache.video import Span

logger = logging.getLogger(__name__)

Captions = Callable[[Sequence[Task]], Iterator[Made | GivenUp]]
"""Makes captions. The tasks of one clip follow each other."""

FEW: Final = 10
"""Up to this many new captions are printed as they are made, unless an option says otherwise."""


@dataclass(frozen=True, slots=True)
class Show:
    """Prints captions as they are made, if that was asked for or they are few."""

    with_: Callable[[CaptionRow, float], None]
    """Takes the row, and the time in seconds that a player shows at its video's first frame."""
    wanted: bool | None = None
    """None: where they are few."""

    def up_to(
        self, counts: Counts, limit: int | None
    ) -> Callable[[CaptionRow, float], None] | None:
        """Return what shows the captions of a run; None where nobody wants to see so many."""
        missing = counts.found - counts.cached
        few = (missing if limit is None else min(missing, limit)) <= FEW
        return self.with_ if self.wanted or (self.wanted is None and few) else None


COMMIT_EVERY_S = 3.0
"""Finished captions are written to the catalog after at most this many seconds."""


def caption(
    cache: str | Path,
    settings: Settings,
    *,
    videos: str | Path | Sequence[str | Path] | None = None,
    follow: bool = False,
    catalog_path: Path | None = None,
    spans: Sequence[Span] = (),
    show: Show | None = None,
) -> RunReport:
    """Caption every clip of the cache with every prompt, where the catalog lacks the caption.

    Args:
        cache: folder of the cache.
        settings: which model, prompts and precision; those of stage one say which clips.
        videos: only clips of these, which need not be there any more; None for all.
        follow: wait for the clips that a running `extract` still adds.
        spans: only these parts `(start_s, end_s)` of videos; none for all.
        catalog_path: catalog on this machine's own disk, where `cache` is a shared folder.
        show: what is called with each caption as it comes.

    Returns:
        What was done. Captions are in the catalog.

    Raises:
        CogcacheError: a setting, the checkpoint or the cache is not usable.
        QuantizationError: the language half is not quantised as asked.

    Example:
        >>> report = caption("cache", load_settings(None, {"model": "tiny"}))  # doctest: +SKIP
    """
    cache = Path(cache)
    videos = [videos] if isinstance(videos, str | Path) else videos
    store = FeatureStore.open(cache)
    family = open_family(settings)
    with open_run("caption", cache, settings, catalog_path) as run:
        choice, (stage, listed, work) = _chosen(settings, family, run, (videos, spans), follow)
        report = run.begin(Counts(found=work.num_found, cached=work.num_cached))
        if work.missing or follow:
            cost_of_going_on(settings, choice).say()
            following = Following(cache, listed, work, report.counts, settings.limits.limit, follow)
            with run.working() as at:
                _Captioning(stage, store, run, at, show).make(following)
            work = following.last
        note_refused(work, run.catalog, report)
    return report


_Which = tuple[Sequence[str | Path] | None, Sequence[Span]]
_Listed = tuple[StageTwo, Callable[[], CaptionList], CaptionList]
"""How captions are made, how they are listed, and the list as it is now."""


def _chosen(
    settings: Settings, family: Family, run: OpenedRun, which: _Which, follow: bool
) -> tuple[Choice, _Listed]:
    """Choose the kind that `auto` stands for; whether it runs here counts if there is work."""
    prepare = partial(load_libraries, "caption", run.timings)
    choice = quantization_for(settings, family, run.catalog, will_run=False, prepare=prepare)
    listed = _listed(choice.settings, family, run, which)
    if not choice.is_untried or not (listed[2].missing or follow):
        return choice, listed
    prepare()
    runs = runnable(settings, choice)
    return runs, listed if runs is choice else _listed(runs.settings, family, run, which)


def _listed(settings: Settings, family: Family, run: OpenedRun, which: _Which) -> _Listed:
    stage = _identified(settings, family, run)
    listed = partial(list_all, stage, run.catalog, *which)
    with run.timings.time("digest"):
        return stage, listed, listed()


def _identified(settings: Settings, family: Family, run: OpenedRun) -> StageTwo:
    """Return how captions are made in this run: identifies the language half and its adapter."""
    files = run.catalog.files
    ready_to_identify("caption", family, "language", files, run.timings)
    with run.timings.time("digest"):
        run.warn_outdated("captions", family.name)
        identity = identify(family, "language", files)
        return StageTwo(settings, family, with_adapter(identity, settings.language.adapter))


def note_refused(work: CaptionList, catalog: Catalog, report: RunReport) -> None:
    """Note the captions that were wanted and cannot be made, when all others are.

    They are those whose prompt cannot be filled in, and those that wait for one of these, or for
    one of a clip that failed. Of a run that was stopped this is not known yet.
    """
    if report.stopped:
        return
    refused = {clip["feature_key"] for clip, _ in work.refused}
    for row in catalog.failures.rows(stage="caption"):
        if (
            row["reason"] in (*UNFILLED, *NO_SUMMARY, OLD_FEATURES)
            and row["feature_key"] not in refused
        ):
            catalog.failures.clear(row["video"], row["start_s"], row["end_s"], "caption")
    for clip, error in work.refused:
        _note(clip, error, catalog, report)
    report.counts.failed += len(work.refused) + work.num_waiting


def _note(clip: ClipRow, error: ClipError, catalog: Catalog, report: RunReport) -> None:
    span = (clip["start_s"], clip["end_s"])
    failure = Failure(span, error, "caption", clip["feature_key"], clip["video_digest"])
    catalog.failures.add(failure.row(text_to_path(clip["video"]), report.run))
    logger.warning("%s: %s", printable(clip["video"]), printable(error.problem))


@dataclass
class _Captioning:
    """One run with work to do: the language half, and captions that wait to be committed."""

    stage: StageTwo
    store: FeatureStore
    opened: OpenedRun
    at: AtWork
    shown: Show | None = None
    uncommitted: list[CaptionRow] = field(default_factory=list)
    remade: list[CaptionRow] = field(default_factory=list)
    """Those among them that replace rejected captions."""
    committed_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.catalog, self.report = self.opened.catalog, self.opened.report
        limit = self.stage.settings.limits.limit
        self.show = self.shown.up_to(self.report.counts, limit) if self.shown else None
        claims, stop = Claims(self.at.run), self.at.stop
        self.shared = Shared[Task](claims, stop, lambda task: task.key.digest, self._is_made)

    def _is_made(self, task: Task) -> bool:
        """Say whether another run has made a caption since it was listed; it counts as cached."""
        made = bool(self.catalog.captions.known([task.key.digest]))
        if task.rejected:
            made = made and not self.catalog.edits.rejected([task.key.digest])
        self.report.counts.cached += made
        return made

    def make(self, following: Following) -> None:
        """Make every missing caption that no other run makes, or as many as there is time for."""
        load_libraries("caption", self.opened.timings)
        if not (tasks := following.next(self.at.stop)):
            return
        self.bar = tqdm(
            total=self.report.counts.found, initial=following.first.num_cached,
            unit="caption", desc="caption", disable=None,
        )  # fmt: skip
        with self._captions(following) as captions, self.bar:
            try:
                while tasks:
                    for made in captions(tasks):
                        if isinstance(made, GivenUp):
                            self._fail([made.task], made.error)
                        else:
                            self._keep(made)
                    self._commit()
                    tasks = self._further(following)
            finally:
                self.shared.claims.release_all()

    @contextmanager
    def _captions(self, following: Following) -> Iterator[Captions]:
        """Yield what makes captions: the language half in this process, or workers in others."""
        settings, report, stop = self.stage.settings, self.report, self.at.stop
        if settings.machines.is_distributed:
            from cogcache.stages.captioning.remote import distributed_captioning

            root, identity = self.store.root, self.stage.identity
            with distributed_captioning(settings, root, identity, stop, report) as workers:
                yield lambda tasks: self._by_workers(workers.captions(self.shared.ours(tasks)))
        else:
            further = partial(self._further_of, following)
            with closing(Captioner(self.stage, report, self.store)) as captioner:
                yield lambda tasks: captioner.captions(self._clips(tasks), further)
                report.notes += captioner.lines()

    def _further_of(self, following: Following, made: Made) -> list[Task]:
        """Return what can be asked about a clip now that a caption of it is made."""
        said = FlaggedCaption(made.text, list(made.flags))
        return list(self.shared.ours(following.further(made.task, said)))

    def _by_workers(
        self, clips: Iterator[tuple[list[Task], list[Made] | ClipError]]
    ) -> Iterator[Made]:
        for of_clip, made in clips:
            if isinstance(made, ClipError):
                self._fail(of_clip, made)
            else:
                yield from made

    def _further(self, following: Following) -> list[Task]:
        """Return what is to be made besides: new captions, and those that another run gave up."""
        held = self.shared.wait_for_others().keys()
        following.handed_out -= held
        tasks = following.next(self.at.stop)
        made = held - {task.key.digest for task in following.last.missing}
        self.report.counts.cached += len(made)
        self.bar.total = self.report.counts.found
        self.bar.update(len(made))
        return tasks

    def _clips(self, tasks: Sequence[Task]) -> Iterator[ClipTasks]:
        """Yield what is asked about one clip after another; failed clips are left out."""
        stop = self.at.stop
        of_clips = self.shared.ours(task for task in tasks if task.words is None)
        waiting = partial(self.report.timings.time, "wait_for_features")
        clips = read_ahead(of_clips, self.store, waiting, reader_for(self.stage))
        for of_clip, read in clips:
            if stop:
                return
            features = if_fitting(read, self.stage.family, of_clip[0].key.layout)
            if isinstance(features, ClipError):
                self._fail(of_clip, features)
            else:
                yield of_clip, features
        for task in self.shared.ours(task for task in tasks if task.words is not None):
            yield [task], ClipTensors({})

    def _keep(self, made: Made) -> None:
        row = made.row(self.stage.settings, self.report.run)
        (self.remade if made.task.rejected else self.uncommitted).append(row)
        if self.show:
            with self.bar.external_write_mode():
                self.show(row, self._offset_s(made.task.clip["video_digest"]))
        self.bar.update()
        if time.monotonic() - self.committed_s > COMMIT_EVERY_S:
            self._commit()

    def _offset_s(self, digest: str) -> float:
        return self.catalog.files.offsets_s([digest]).get(digest, 0.0)

    def _commit(self) -> None:
        with self.report.timings.time("commit"):
            self.catalog.captions.add(self.uncommitted)
            put_in_place(self.catalog, self.remade)
        rows = [*self.uncommitted, *self.remade]
        self.report.counts.done += len(rows)
        self.shared.give_back(row["caption_key"] for row in rows)
        self.uncommitted.clear()
        self.remade.clear()
        self.committed_s = time.monotonic()

    def _fail(self, of_clip: Sequence[Task], error: ClipError) -> None:
        _note(of_clip[0].clip, error, self.catalog, self.report)
        self.shared.give_back(task.key.digest for task in of_clip)
        self.report.counts.failed += len(of_clip)
        self.bar.update(len(of_clip))
