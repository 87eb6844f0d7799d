"""Captions of clips: prompts around features, a clip's prompts behind its video part.

It needs no catalog, so that workers on other machines can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from cogcache.errors import ConfigError
from cogcache.generation import Finished, NoRoom, Request
from cogcache.models import ClipTensors, Family, PromptRow
from cogcache.settings import Settings
from cogcache.stages.captioning.language_half import LanguageHalf
from cogcache.stages.captioning.remaking import drawn_anew
from cogcache.stages.captioning.results import GivenUp, Made
from cogcache.stages.captioning.second_try import CaptionCheck
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.tasks import Task
from cogcache.stages.captioning.vllm_half import VllmHalf
from cogcache.stages.runs.report import RunReport
from cogcache.store import FeatureStore
from cogcache.system import extra_hint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cogcache.generation import Grammar

ClipTasks = tuple[Sequence[Task], ClipTensors]
"""What is asked about one clip, and its features."""


def _nothing(_: Made) -> Sequence[Task]:
    return ()


@dataclass
class Captioner:
    """Makes captions with the language half, which it loads when the first clip comes.

    Args:
        stage: device, precision, batch, and how tokens are chosen; the checkpoint.
        report: is told the plan, the bytes read, the quantisation and the times.
        store: where features lie, for a backend that reads them itself.
    """

    stage: StageTwo
    report: RunReport
    store: FeatureStore | None = None

    def __post_init__(self) -> None:
        # The grammar comes before the weights: it may be one that cannot be held.
        settings, family = self.stage.settings, self.stage.family
        self.half: LanguageHalf | VllmHalf
        if settings.inference.is_vllm:
            assert self.store is not None
            self.half = VllmHalf(self.stage, self.report, self.store)
        else:
            self.half = LanguageHalf(self.stage, self.report)
        self.grammar = _grammar(settings, family)
        self._check = CaptionCheck(settings, family, self.grammar)

    @property
    def model(self) -> PreTrainedModel:
        """The model, once captions were asked of it."""
        return self.half.model

    def close(self) -> None:
        """End what other processes do for this one."""
        self.half.close()

    def log_probabilities(self, row: PromptRow, task: Task, tokens: Sequence[int]) -> Tensor:
        """Return what is expected at each place of a caption, and behind it: float32 [L + 1, V].

        Args:
            row: a clip with a prompt.
            task: what it was laid out for.
            tokens: the caption, without what ends it.
        """
        return self.half.log_probabilities(row, task.key.feature_key, tokens)

    def measure(self) -> None:
        """Put into the report what memory others hold for this process."""
        self.half.measure()

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know."""
        return self.half.lines()

    def captions(
        self, clips: Iterable[ClipTasks], further: Callable[[Made], Sequence[Task]] = _nothing
    ) -> Iterator[Made | GivenUp]:
        """Yield the captions of clips, as they get done.

        Where memory runs out, fewer are made together, then more of the weights wait elsewhere.
        A caption that does not fit even so is given up.

        Args:
            clips: what is asked about one clip after another.
            further: told of a caption, returns what to ask about the same clip besides; that
                comes at once, while the clip's video part is still at hand.
        """
        for finished in self._finished(clips):
            outcome = self._check.outcome(finished)
            if isinstance(outcome, Request):
                self.half.decoder.submit(outcome)
                continue
            if isinstance(outcome, Made) and not finished.given_up:
                for task in further(outcome):
                    self.half.decoder.submit(self._request(task, finished.request.row.features))
            yield outcome
        if self.half.kept:
            self.half.kept.wait()

    def _finished(self, clips: Iterable[ClipTasks]) -> Iterator[Finished]:
        groups = ([self._request(task, features) for task in tasks] for tasks, features in clips)
        if (first := next(filter(None, groups), None)) is None:
            return
        unfinished = chain([first], groups)
        self.half.load(max(request.row.length for request in first))
        while True:
            try:
                yield from self._timed(self.half.decoder.run(unfinished))
            except NoRoom as error:
                again = error.requests
            else:
                return
            if not self.half.make_room():
                yield Finished(again.pop(0), [], 0.0, given_up=True)
            unfinished = chain([[request] for request in again], unfinished)

    def _request(self, task: Task, features: ClipTensors) -> Request:
        layout = task.key.layout
        if task.words is not None:
            row = self.stage.family.text_row(task.words, layout)
        else:
            row = self.stage.family.row(features, task.prompt, layout)
        self.half.plan_for(row.length)
        seed = int(task.key.digest[:15], 16)  # the caption's own, whoever is beside it
        generation = self.stage.settings.generation
        request = Request(row, task.key.feature_key, seed, generation, task, self.grammar)
        return drawn_anew(request, task.rejected)

    def _timed(self, finished: Iterator[Finished]) -> Iterator[Finished]:
        """Count the time spent generating, less what of it is spent waiting for features."""
        timings = self.report.timings
        while True:
            waited = timings.seconds.get("wait_for_features", 0.0)
            with timings.time("generate"):
                made = next(finished, None)
            timings.seconds["generate"] -= timings.seconds.get("wait_for_features", 0.0) - waited
            if made is None:
                return
            yield made


def _grammar(settings: Settings, family: Family) -> Grammar | None:
    """Return what captions have to follow.

    Raises:
        ConfigError: the schema is not one that can be followed, or a package is missing.
    """
    if (schema := settings.generation.json_schema) is None:
        return None
    try:
        from cogcache.generation import Grammar
    except ImportError as error:
        problem = f"--json-schema needs {error.name}, which is not installed"
        raise ConfigError(problem, extra_hint("structured")) from error
    return Grammar(schema, family)
