"""The language half at work: prompts around features, a clip's prompts behind its video part.

What comes out is looked at, and made once more where something is wrong with it. It knows no
catalog, so that it serves wherever a language half runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache import endings
from cogcache.captionlist import Task, caption_key
from cogcache.catalog import CaptionRow
from cogcache.config import Settings
from cogcache.errors import ConfigError
from cogcache.generation import Batches, Finished, Request
from cogcache.guards import changes_for, flags_of
from cogcache.memory import sample
from cogcache.models.family import ClipTensors, Family
from cogcache.models.identity import HalfIdentity
from cogcache.plan import plan_language
from cogcache.quantization import Quantization
from cogcache.runs import RunReport
from cogcache.units import GIB

if TYPE_CHECKING:
    from cogcache.decoding import Decoder
    from cogcache.keptprefixes import KeptPrefixes
    from cogcache.models.halves import LoadedHalf
    from cogcache.structured import Grammar

ClipTasks = tuple[Sequence[Task], ClipTensors]
"""What is asked about one clip, and its features."""


@dataclass(frozen=True, slots=True)
class Made:
    """One caption."""

    task: Task
    text: str
    num_tokens: int
    seconds: float
    """Its share of the time."""
    flags: tuple[str, ...]
    retried: dict[str, Any] = field(default_factory=dict)
    """Why it was made a second time, and with which settings changed; empty for a first try."""
    tokens: tuple[int, ...] = ()
    """Without the one that ends it."""

    def row(self, settings: Settings, run: int) -> CaptionRow:
        """Return the caption as the catalog keeps it."""
        task, clip = self.task, self.task.clip
        retried = {"retried": self.retried} if self.retried else {}
        return {
            "caption_key": task.key.digest,
            "feature_key": task.key.feature_key,
            "video": clip["video"],
            "start_s": clip["start_s"],
            "end_s": clip["end_s"],
            "prompt_name": task.prompt_name,
            "prompt": task.prompt,
            "caption": self.text,
            "model": settings.model,
            "quantization": settings.language.quantization,
            "flags": list(self.flags),
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "settings": {**task.key.fields(), **retried},
            "run": run,
        }


@dataclass(frozen=True, slots=True)
class _SecondTry:
    """A task whose first caption was not good."""

    first: Made
    changes: dict[str, Any]


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
        self.longest = 0
        with self.report.split.time("load"):
            self.decoder = self._decoder(self._load())

    def _grammar(self) -> Grammar | None:
        if (schema := self.settings.generation.json_schema) is None:
            return None
        try:
            from cogcache.structured import Grammar
        except ImportError as error:
            problem = f"--json-schema needs {error.name}, which is not installed"
            raise ConfigError(problem, "pip install 'cogcache[structured]'") from error
        return Grammar(schema, self.family)

    def _load(self) -> LoadedHalf:
        import torch

        from cogcache.devices import pick_device
        from cogcache.models.halves import WholeModel, load_half

        language = self.settings.language
        overrides = self.family.config_overrides(language)
        whole = WholeModel.of(self.family.checkpoint, **overrides)
        self.report.base_bytes = sample().host_bytes
        loaded = load_half(
            whole,
            "language",
            dtype=getattr(torch, language.compute_dtype),
            device=pick_device(self.settings.device),
            quantization=Quantization(
                kind=language.quantization,
                double_quant=language.double_quant,
                compute_dtype=language.compute_dtype,
            ),
        )
        self.report.bytes_by_shard = dict(loaded.bytes_by_shard)
        if loaded.quantization is not None:
            self.report.quantization = loaded.quantization.summary()
        return loaded

    def _decoder(self, loaded: LoadedHalf) -> Decoder | Batches:
        """Return what turns rows into tokens, and say so where it cannot share prefixes."""
        from cogcache.decoding import Decoder, can_decode

        rows, beams = self.settings.language.clips_per_batch, self.settings.generation.num_beams
        rows = self.family.rows_together(rows, beams)
        if beams == 1 and can_decode(loaded.model):
            self.kept = self._kept(loaded.model.device.type)
            return Decoder(loaded.model, self.family, rows, self.kept)
        reason = "beams" if beams > 1 else "layers that do not keep all keys"
        self.report.notes.append(f"prompts of a clip share no prefill: {reason}")
        return Batches(loaded.model, self.family, rows)

    def _kept(self, device: str) -> KeptPrefixes | None:
        """Return where video parts are kept; they depend on weights and types, on no prompt."""
        from cogcache.keptprefixes import KeptPrefixes

        language, limits = self.settings.language, self.settings.limits
        if language.keep_prefix is None:
            return None
        key = caption_key("", 0, "", self.settings, self.family, self.identity).fields()
        names = ("language_digest", "quantization", "rotary_dtype", "epoch")
        depends_on = {**{name: key[name] for name in names}, "device": device}
        return KeptPrefixes(Path(language.keep_prefix), depends_on, limits.min_free_gib * GIB)

    def captions(self, clips: Iterable[ClipTasks]) -> Iterator[Made]:
        """Yield the captions of clips, as they get done."""
        requests = ([self._request(task, features) for task in tasks] for tasks, features in clips)
        for finished in self._timed(self.decoder.run(requests)):
            made = self._made(finished)
            if kept := self._looked_at(finished.request, made):
                yield kept
        if self.kept:
            self.kept.wait()

    def lines(self) -> list[str]:
        """Return what a reader of the report wants to know."""
        return self.decoder.statistics.lines() + (self.kept.lines() if self.kept else [])

    def _request(self, task: Task, features: ClipTensors) -> Request:
        layout = task.key.layout
        if task.words is not None:
            row = self.family.text_row(task.words, layout)
        else:
            row = self.family.row(features, task.prompt, layout)
        if row.length > self.longest:  # clips come longest first, but later prompts may be longer
            self.longest = row.length
            config = self.family.full_config()
            self.report.planned = plan_language(self.identity, config, self.settings, row.length)
        seed = int(task.key.digest[:15], 16)  # the caption's own, whoever is beside it
        generation = self.settings.generation
        return Request(row, task.key.feature_key, seed, generation, task, self.grammar)

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
        self.decoder.submit(again)
        return None

    def _made(self, finished: Finished) -> Made:
        """Turn tokens into a caption and its flags."""
        request, tokens = finished.request, finished.tokens
        ended = bool(tokens) and tokens[-1] in self.family.stop_ids
        kept = tokens[:-1] if ended else tokens
        text = self.family.text_of(kept)
        stops = request.generation.stop
        if endings.holds(text, stops):
            text, ended = endings.cut(text, stops), True
        over_context = finished.over_context and not ended
        flags = flags_of(text, kept, ended=ended, over_context=over_context)
        if self.grammar and not self.grammar.is_followed(text):
            flags += ("invalid_json",)
        task, retried = request.task, {}
        if isinstance(task, _SecondTry):
            retried = {"because": list(task.first.flags), "changes": task.changes}
            task = task.first.task
        flags += ("from_flagged",) if task.from_flagged else ()
        flags += ("gaps",) if task.gaps else ()
        return Made(task, text, len(kept), finished.seconds, flags, retried, tuple(kept))
