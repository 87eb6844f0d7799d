"""`train`: the language half learns captions of the catalog from cached features.

choose captions → split them by video → lay them out → load the half → train, evaluate, save
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from cogcache.catalog import Catalog, Selection
from cogcache.errors import NothingToLearnError
from cogcache.models import Family, identify, open_family, recall
from cogcache.planning import check_fits, plan_training
from cogcache.settings import Settings
from cogcache.stages.runs.opened import OpenedRun, open_run
from cogcache.stages.runs.report import Counts, RunReport
from cogcache.store import FeatureStore
from cogcache.system import pick_device, sample
from cogcache.training import (
    Chosen,
    Example,
    LaidOut,
    Record,
    base_kind,
    begin,
    check_method,
    choose,
    lay_out,
    split_by_video,
)

if TYPE_CHECKING:
    from cogcache.training import Learnt

logger = logging.getLogger(__name__)


TRAINING: Final = "training"
"""Folder of the checkpoints within a student's."""


@dataclass
class Trained:
    """What a run did, for a reader."""

    report: RunReport
    lines: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """What the command line ends with; 1 where captions were left out."""
        return self.report.exit_status


def train(
    cache: Path,
    out: Path,
    settings: Settings,
    selection: Selection,
    catalog_path: Path | None = None,
) -> Trained:
    """Train an adapter on captions of a cache. Run it again to go on where it stopped.

    Args:
        cache: folder of the cache.
        out: folder of the run and of the adapter.
        settings: the model, how it is loaded and all of training.
        selection: which captions.
        catalog_path: catalog on this machine's own disk, where `cache` is a shared folder.

    Raises:
        CogcacheError: nothing can be learnt, the folder holds another run, the half does not fit.
    """
    check_method(settings)
    store = FeatureStore.open(cache)
    family = open_family(settings)
    with open_run("train", cache, settings, catalog_path) as run:
        job = TrainingJob(out, settings, selection, family, store, run.catalog)
        return job.work(run)


@dataclass
class TrainingJob:
    """What a run learns, then how."""

    out: Path
    settings: Settings
    selection: Selection
    family: Family
    store: FeatureStore
    catalog: Catalog
    kept: list[Chosen] = field(default_factory=list)
    held: list[Chosen] = field(default_factory=list)
    student: Student | None = None
    """The model that is trained, if it is not the one that made the captions."""

    def work(self, run: OpenedRun) -> Trained:
        """Do all of a run that is open: choose captions, then train until the end or a stop."""
        with run.timings.time("digest"):
            self._find()
        report = run.begin(Counts())
        with run.working() as at:
            return self._learn(report, at.stop)

    def _find(self) -> None:
        """Choose captions, and check that the folder is free or holds this same run."""
        identity = identify(self.family, "language", self.catalog.files)
        chosen = choose(self.catalog.path, self.selection, self.settings.prompts, self._fits())
        self.kept, self.held = split_by_video(chosen, self.settings.training.eval_share)
        more = self.student.settings if self.student else {}
        self.record = Record.of(
            self.settings, self.family.name, identity.digest, self.kept, self.held, more
        )
        names = {each.caption_key: each.name for each in chosen}
        self.goes_on = begin(self.folder, self.record, names)

    @property
    def folder(self) -> Path:
        """Where the run's checkpoints are: beside an adapter, or below a student."""
        return self.out / TRAINING if self.student else self.out

    def _fits(self) -> Mapping[str, Any]:
        """Return which features the model reads; of its vision half, where that is known."""
        fields: dict[str, Any] = {
            "family": self.family.name,
            "cache_point": self.family.cache_point,
            "preprocessing": self.family.preprocessing(),
        }
        if identity := recall(self.family, "vision", self.catalog.files):
            fields["vision_digest"] = identity.digest
        return fields

    def _learn(self, report: RunReport, stop: Any) -> Trained:
        """Lay the captions out, load the half, and train it."""
        from cogcache.training import Run

        with report.timings.time("lay_out"):
            train, held = self._laid_out(self.kept), self._laid_out(self.held)
        left_out = [*train.lines(), *held.lines()]
        if not train.examples:
            problem = f"no caption is left to learn from: {'; '.join(left_out)}"
            raise NothingToLearnError(problem, "choose other captions")
        self._plan(report, [*train.examples, *held.examples])
        report.base_bytes = sample().host_bytes
        report.counts.failed = sum(map(len, [*train.left_out.values(), *held.left_out.values()]))
        run = Run(
            self.settings, self.family, self.store, train.examples, held.examples, self.out,
            pick_device(self.settings.device), self.record, stop, [self._observer(report)],
        )  # fmt: skip
        if self.student is not None:
            run = replace(
                run,
                family=self._learner,
                folder=self.folder,
                losses=self.student.losses(),
                new_parts=self.student.new_parts(),
            )
        with report.timings.time("train"):
            learnt = run.learn()
        report.bytes_by_shard = dict(learnt.loaded.bytes_by_shard)
        if learnt.loaded.quantization is not None:
            report.quantization = learnt.loaded.quantization.summary()
        report.notes += left_out
        report.training = {**learnt.record.figures, "samples": learnt.sampler.rows()}
        return Trained(report, self._lines(learnt, report))

    def _plan(self, report: RunReport, examples: Sequence[Example]) -> None:
        """Plan the memory, before any weight is read; refuse what does not fit."""
        longest = max(examples, key=lambda example: example.length)
        kind = base_kind(self.settings)
        plan = plan_training(self._learner, self.settings, kind, longest.length, longest.num_labels)
        check_fits(plan, self.settings, pick_device(self.settings.device))
        report.planned = plan.as_stage()
        report.notes += plan.lines()

    @property
    def _learner(self) -> Family:
        """The family of the model that is trained."""
        return self.student.family() if self.student is not None else self.family

    def _laid_out(self, chosen: list[Chosen]) -> LaidOut:
        """Lay captions out in the words of the model that learns them."""
        learner = self._learner
        context = learner.full_config().get("max_position_embeddings")
        layout = learner.layout(self.settings.language)
        return lay_out(chosen, learner, self.store, layout, context)

    def _observer(self, report: RunReport) -> Any:
        def observe(what: str, facts: Mapping[str, Any]) -> None:
            if what == "step":
                report.counts.done = int(facts["step"])
                report.counts.found = max(report.counts.found, report.counts.done)

        return observe

    def _lines(self, learnt: Learnt, report: RunReport) -> list[str]:
        figures = learnt.record.figures
        lines = [
            f"train: step {figures['steps']}, from {len(self.kept)} captions, "
            f"{len(self.held)} kept for evaluation"
        ]
        if figures["evaluation"]:
            first, last = figures["evaluation"][0], figures["evaluation"][-1]
            lines.append(f"  evaluation: loss {first['loss']:.3f} at first, {last['loss']:.3f} now")
        lines += [f"  {note}" for note in report.notes]
        lines += learnt.sampler.lines()
        for flag, share in figures["flags of samples"].items():
            lines.append(f"  {share:.0%} of these captions are flagged {flag}")
        if learnt.is_complete or figures["steps"]:
            lines.append(f"  {self._use()}")
        return lines

    def _use(self) -> str:
        if self.student is not None or self.settings.training.method == "full":
            return f"the model is in {self.out}: cogcache caption --model {self.out}"
        return f"the adapter is in {self.out}: cogcache caption --adapter {self.out}"


class Student(Protocol):
    """The model that is trained in place of the one that made the captions."""

    settings: Mapping[str, Any]
    """What makes it another student, for the run's record."""

    def family(self) -> Family:
        """Return the family of its checkpoint, made if it is not there yet."""

    def new_parts(self) -> tuple[str, ...]:
        """Return what names of parameters begin with that no model has trained before."""

    def losses(self) -> Any:
        """Return what makes the losses of its tokens."""
