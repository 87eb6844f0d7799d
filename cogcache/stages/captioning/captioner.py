"""The language half at work: prompts around features, a clip's prompts behind its video part.

What comes out is looked at, and made once more where something is wrong with it. It knows no
catalog, so that it serves wherever a language half runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.errors import ClipError, CogcacheError, ConfigError
from cogcache.generation import (
    Batches,
    Finished,
    NoRoom,
    Request,
    changes_for,
    flags_of,
    stop_texts,
)
from cogcache.models import ClipTensors, Family, HalfIdentity
from cogcache.planning import LanguageChoice
from cogcache.settings import Settings
from cogcache.stages.captioning.results import GivenUp, Made
from cogcache.stages.captioning.tasks import Task, caption_key
from cogcache.stages.runs.report import RunReport
from cogcache.system import extra_hint
from cogcache.units import GIB

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cogcache.generation import Decoder, Grammar, KeptPrefixes
    from cogcache.keys import Field
    from cogcache.planning import Fitted, LanguageLoader

ClipTasks = tuple[Sequence[Task], ClipTensors]
"""What is asked about one clip, and its features."""


@dataclass(frozen=True, slots=True)
class _SecondTry:
    """A task whose first caption was not good."""

    first: Made
    changes: dict[str, Any]


def _nothing(_: Made) -> Sequence[Task]:
    return ()


@dataclass
class Captioner:
    """The loaded language half.

    Args:
        settings: device, precision, batch, and how tokens are chosen.
        family: of the checkpoint, at the cache point.
        identity: of the language half.
        report: is told the plan, the bytes read, the quantisation and the times.
    """

    settings: Settings
    family: Family
    identity: HalfIdentity
    report: RunReport

    def __post_init__(self) -> None:
        self.grammar = self._grammar()  # before the weights: it may be one that cannot be held
        self.kept: KeptPrefixes | None = None
        self.loader: LanguageLoader | None = None
        self.half: Fitted[LanguageChoice] | None = None
        self.decoder: Decoder | Batches | None = None
        self._earlier: list[str] = []

    def _grammar(self) -> Grammar | None:
        if (schema := self.settings.generation.json_schema) is None:
            return None
        try:
            from cogcache.generation import Grammar
        except ImportError as error:
            problem = f"--json-schema needs {error.name}, which is not installed"
            raise ConfigError(problem, extra_hint("structured")) from error
        return Grammar(schema, self.family)

    def _load(self, row_tokens: int) -> Decoder | Batches:
        """Load the half once it is known how long the rows are; clips come longest first."""
        from cogcache.planning import Fitted, LanguageLoader

        if self.half is None:
            self.loader = LanguageLoader(self.family, self.settings, row_tokens)
            self.half = Fitted(self.loader, self.report.note_load)
        return self._decoder(self.half)

    def _decoder(self, half: Fitted[LanguageChoice]) -> Decoder | Batches:
        """Return what turns rows into tokens, and say so where it cannot share prefixes."""
        from cogcache.generation import Decoder, can_decode

        rows, beams = half.choice.clips_per_batch, self.settings.generation.num_beams
        rows = self.family.rows_together(rows, beams)
        if beams == 1 and can_decode(half.model):
            self.kept = self.kept or self._kept(half.model.device.type)
            return Decoder(half.model, self.family, self._rows(half, rows), self.kept)
        reason = "beams" if beams > 1 else "layers that do not keep all keys"
        kept = ", and --keep-prefix keeps none" if self.settings.language.keep_prefix else ""
        self.report.notes.append(f"prompts of a clip share no prefill: {reason}{kept}")
        return Batches(half.model, self.family, rows)

    def _rows(self, half: Fitted[LanguageChoice], most: int) -> int:
        """Return how many rows go best together, of those that there is room for."""
        from cogcache.generation import rows_a_step

        rows = rows_a_step(half.model, most, self._of_model())
        if rows < most:
            self.report.notes.append(f"{rows} rows a step are faster here than up to {most}")
        return rows

    def _of_model(self) -> dict[str, Field]:
        """Return what of a caption's key says which model it is, in which precision."""
        key = caption_key("", 0, "", self.settings, self.family, self.identity).fields()
        names = ("language_digest", "quantization", "rotary_dtype", "epoch")
        return {name: key[name] for name in names}

    def _make_room(self) -> bool:
        """Have more of the half wait elsewhere; False where all of it does already."""
        assert self.half is not None
        if self.half.loader.less(self.half.choice) is None:
            return False
        assert self.decoder is not None
        self._earlier += self.decoder.statistics.lines()
        self.decoder = None  # nobody else may hold the model
        room = self.half.make_room()
        if not room:
            raise CogcacheError("memory runs out while weights load", "give the stage more memory")
        self.decoder = self._decoder(self.half)
        return True

    def _kept(self, device: str) -> KeptPrefixes | None:
        """Return where video parts are kept; they depend on weights and types, on no prompt."""
        from cogcache.generation import KeptPrefixes

        language, limits = self.settings.language, self.settings.limits
        if language.keep_prefix is None:
            return None
        depends_on = {**self._of_model(), "device": device}
        return KeptPrefixes(Path(language.keep_prefix), depends_on, limits.min_free_gib * GIB)

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
            request = finished.request
            if finished.given_up:
                yield self._given_up(request)
            elif kept := self._looked_at(request, self._made(finished)):
                for task in further(kept):
                    self._submit(self._request(task, request.row.features))
                yield kept
        if self.kept:
            self.kept.wait()

    @property
    def model(self) -> PreTrainedModel:
        """The half, once captions were asked of it."""
        assert self.half is not None
        return self.half.model

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know."""
        lines = self.decoder.statistics.lines() if self.decoder else []
        return self._earlier + lines + (self.kept.lines() if self.kept else [])

    def _finished(self, clips: Iterable[ClipTasks]) -> Iterator[Finished]:
        groups = ([self._request(task, features) for task in tasks] for tasks, features in clips)
        if (first := next(filter(None, groups), None)) is None:
            return
        unfinished = chain([first], groups)
        self.decoder = self.decoder or self._load(max(request.row.length for request in first))
        while True:
            try:
                yield from self._timed(self.decoder.run(unfinished))
            except NoRoom as error:
                again = error.requests
            else:
                return
            if not self._make_room():
                yield Finished(again.pop(0), [], 0.0, given_up=True)
            unfinished = chain([[request] for request in again], unfinished)

    def _given_up(self, request: Request) -> Made | GivenUp:
        """Return what is left of a caption that there is no memory for."""
        if isinstance(request.task, _SecondTry):
            return request.task.first
        problem = "memory runs out with a single caption at a time and no layer resident"
        hint = "give the stage more memory, or fewer frames (--max-frames)"
        return GivenUp(request.task, ClipError("out_of_memory", problem, hint))

    def _request(self, task: Task, features: ClipTensors) -> Request:
        layout = task.key.layout
        if task.words is not None:
            row = self.family.text_row(task.words, layout)
        else:
            row = self.family.row(features, task.prompt, layout)
        self._plan_anew(row.length)
        seed = int(task.key.digest[:15], 16)  # the caption's own, whoever is beside it
        generation = self.settings.generation
        return Request(row, task.key.feature_key, seed, generation, task, self.grammar)

    def _plan_anew(self, row_tokens: int) -> None:
        """Mend the plan: clips come longest first, but later prompts may be longer."""
        if self.half and self.loader and row_tokens > self.loader.row_tokens:
            self.loader.row_tokens = row_tokens
            self.report.planned = self.loader.planned(self.half.choice)

    def _timed(self, finished: Iterator[Finished]) -> Iterator[Finished]:
        """Count the time spent generating, less what of it is spent waiting for features."""
        split = self.report.split
        while True:
            waited = split.seconds.get("wait_for_features", 0.0)
            with split.time("generate"):
                made = next(finished, None)
            split.seconds["generate"] -= split.seconds.get("wait_for_features", 0.0) - waited
            if made is None:
                return
            yield made

    def _looked_at(self, request: Request, made: Made) -> Made | None:
        """Return the caption to keep; None where it is asked for once more."""
        generation = self.settings.generation
        if isinstance(request.task, _SecondTry):
            return min(request.task.first, made, key=lambda each: len(each.flags))
        changes = changes_for(made.flags, generation) if generation.retry else {}
        if not changes:
            return made
        changed = generation.model_copy(update=changes)
        # The row's own random numbers come from the key; the same would draw the same once more.
        seed = request.seed + ("seed" in changes)
        again = replace(request, generation=changed, seed=seed, task=_SecondTry(made, changes))
        self._submit(again)
        return None

    def _submit(self, request: Request) -> None:
        assert self.decoder is not None
        self.decoder.submit(request)

    def _made(self, finished: Finished) -> Made:
        """Turn tokens into a caption and its flags."""
        request, tokens = finished.request, finished.tokens
        ended = bool(tokens) and tokens[-1] in self.family.stop_ids
        kept = tokens[:-1] if ended else tokens
        text = self.family.text_of(kept)
        stops = request.generation.stop
        if stop_texts.holds(text, stops):
            text, ended = stop_texts.cut(text, stops), True
        over_context = finished.over_context and not ended
        limits = self.settings.limits
        flags = flags_of(text, kept, ended=ended, over_context=over_context, limits=limits)
        if self.grammar and not self.grammar.is_followed(text):
            flags += ("invalid_json",)
        task, retried = request.task, {}
        if isinstance(task, _SecondTry):
            retried = {"because": list(task.first.flags), "changes": task.changes}
            task = task.first.task
        flags += ("from_flagged",) if task.from_flagged else ()
        flags += ("gaps",) if task.gaps else ()
        return Made(task, text, len(kept), finished.seconds, flags, retried, tuple(kept))
