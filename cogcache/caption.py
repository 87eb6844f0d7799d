"""Stage two: cached features to captions, through the language half alone.

find what is missing → read features ahead → lay prompts out around them → a clip's video part
once, all its prompts behind it → look at what came out → commit every few seconds
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cogcache.captionlist import CaptionList, Task, list_captions
from cogcache.catalog import CaptionRow, Catalog, failure_row, text_to_path
from cogcache.checkpoint import Checkpoint
from cogcache.claims import sweep
from cogcache.config import Settings
from cogcache.errors import ClipError
from cogcache.following import Following
from cogcache.generation import Batches, Finished, Request
from cogcache.guards import changes_for, flags_of
from cogcache.memory import MemoryMonitor, sample
from cogcache.models.family import ClipTensors, Family
from cogcache.models.identity import HalfIdentity, identify
from cogcache.models.registry import family_of
from cogcache.plan import plan_language
from cogcache.progress import at_work
from cogcache.quantization import Quantization
from cogcache.readahead import read_ahead
from cogcache.runs import Counts, RunReport, Split
from cogcache.stopping import Stop
from cogcache.store import FeatureStore

if TYPE_CHECKING:
    from cogcache.decoding import Decoder
    from cogcache.models.halves import LoadedHalf

logger = logging.getLogger(__name__)

COMMIT_EVERY_S = 3.0
"""Finished captions wait at most this long for their transaction."""


def caption(
    cache: Path,
    settings: Settings,
    *,
    videos: Sequence[str | Path] | None = None,
    follow: bool = False,
) -> RunReport:
    """Caption every clip of the cache with every prompt, where the catalog lacks the caption.

    Args:
        cache: folder of the cache.
        settings: which model, prompts and precision; those of stage one say which clips.
        videos: only clips of these, which need not be there any more; None for all.
        follow: wait for the clips that a running `extract` still adds.

    Returns:
        What was done. Captions are in the catalog.

    Raises:
        CogcacheError: a setting, the checkpoint or the cache is not usable.
        QuantizationError: the language half is not quantised as asked.
    """
    store = FeatureStore.open(cache)
    sweep(cache)
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    family = family.at(settings.vision.cache_point)
    with Catalog(cache / "catalog.sqlite") as catalog:
        with MemoryMonitor() as monitor:
            split = Split()
            with split.time("digest"):
                identity = identify(family, "language", catalog)
                listed = partial(list_captions, settings, family, identity, catalog, videos)
                work = listed()
            run = catalog.start_run("caption", settings.model, settings.model_dump(mode="json"))
            counts = Counts(found=work.num_cached + len(work.missing), cached=work.num_cached)
            report = RunReport(run, "caption", settings.model, counts, split)
            if work.missing or follow:
                job = _Captioning(settings, family, identity, store, catalog, report)
                limit = settings.limits.limit
                following = Following(cache, lambda: listed().missing, counts, limit, follow)
                with at_work(cache, report, settings.limits) as at:
                    job.run(work, following, at.stop)
                report.stopped, report.fault = at.stop.reason, at.stop.fault
        report.finish(monitor)
        catalog.finish_run(run, **report.row())
    return report


@dataclass
class _Captioning:
    """One run with work to do: the language half, and captions that wait to be committed."""

    settings: Settings
    family: Family
    identity: HalfIdentity
    store: FeatureStore
    catalog: Catalog
    report: RunReport
    uncommitted: list[CaptionRow] = field(default_factory=list)
    committed_s: float = field(default_factory=time.monotonic)

    def run(self, work: CaptionList, following: Following, stop: Stop) -> None:
        """Make every missing caption, or as many as there is time for."""
        if not (tasks := following.next(stop)):
            return
        with self.report.split.time("load"):
            loaded = self._load()
        self.decoder = self._decoder(loaded)
        self.bar = tqdm(
            total=self.report.counts.found, initial=work.num_cached,
            unit="caption", desc="caption", disable=None,
        )  # fmt: skip
        with self.bar:
            while tasks:
                finished = self.decoder.run(self._requests(tasks, stop))
                for made in self._timed(finished):
                    self._look_at(made)
                self._commit()
                tasks = following.next(stop)
                self.bar.total = self.report.counts.found
        self.report.notes += self.decoder.statistics.lines()

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
            return Decoder(loaded.model, self.family, rows)
        reason = "beams" if beams > 1 else "layers that do not keep all keys"
        self.report.notes.append(f"prompts of a clip share no prefill: {reason}")
        return Batches(loaded.model, self.family, rows)

    def _requests(self, tasks: Sequence[Task], stop: Stop) -> Iterator[list[Request]]:
        """Yield what is asked about one clip after another; failed clips are left out."""
        clips = read_ahead(tasks, self.store, lambda: self.report.split.time("wait_for_features"))
        for of_clip, features in clips:
            if stop:
                return
            if isinstance(features, ClipError):
                self._fail(of_clip, features)
            else:
                yield [self._request(task, features) for task in of_clip]

    def _request(self, task: Task, features: ClipTensors) -> Request:
        row = self.family.row(features, task.prompt, task.key.layout)
        if self.report.planned is None:  # clips come longest first
            config = self.family.full_config()
            self.report.planned = plan_language(self.identity, config, self.settings, row.length)
        seed = int(task.key.digest[:15], 16)  # the caption's own, whoever is beside it
        return Request(row, task.key.feature_key, seed, self.settings.generation, task)

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

    def _look_at(self, made: Finished) -> None:
        """Keep a caption, or ask for it once more where something is wrong with it."""
        request = made.request
        found, task = self._caption(made), request.task
        generation = self.settings.generation
        changes = changes_for(found.flags, generation) if generation.retry else {}
        if isinstance(task, _SecondTry):
            self._keep(task.task, min(task.first, found, key=lambda each: len(each.flags)))
        elif changes:
            again = _SecondTry(task, found, changes)
            changed = generation.model_copy(update=changes)
            self.decoder.submit(replace(request, generation=changed, task=again))
        else:
            self._keep(task, found)

    def _caption(self, made: Finished) -> _Caption:
        """Turn tokens into a caption and its flags."""
        request, tokens = made.request, made.tokens
        ended = bool(tokens) and tokens[-1] in self.family.stop_ids
        kept = tokens[:-1] if ended else tokens
        text = self.family.text_of(kept)
        if (stop := request.generation.stop) and stop in text:
            text, ended = text[: text.index(stop)].strip(), True
        flags = flags_of(text, kept, ended=ended, over_context=made.over_context)
        changes: dict[str, Any] = {}
        if isinstance(request.task, _SecondTry):
            first = request.task.first
            changes = {"because": list(first.flags), "changes": request.task.changes}
        return _Caption(text, len(kept), made.seconds, flags, changes)

    def _keep(self, task: Task, made: _Caption) -> None:
        clip = task.clip
        retried = {"retried": made.retried} if made.retried else {}
        self.uncommitted.append(
            {
                "caption_key": task.key.digest,
                "feature_key": task.key.feature_key,
                "video": clip["video"],
                "start_s": clip["start_s"],
                "end_s": clip["end_s"],
                "prompt_name": task.prompt_name,
                "prompt": task.prompt,
                "caption": made.text,
                "model": self.settings.model,
                "quantization": self.settings.language.quantization,
                "flags": list(made.flags),
                "num_tokens": made.num_tokens,
                "seconds": made.seconds,
                "settings": {**task.key.fields(), **retried},
                "run": self.report.run,
            }
        )
        self.bar.update()
        if time.monotonic() - self.committed_s > COMMIT_EVERY_S:
            self._commit()

    def _commit(self) -> None:
        with self.report.split.time("commit"):
            self.catalog.add_captions(self.uncommitted)
        self.report.counts.done += len(self.uncommitted)
        self.uncommitted.clear()
        self.committed_s = time.monotonic()

    def _fail(self, of_clip: Sequence[Task], error: ClipError) -> None:
        clip = of_clip[0].clip
        span = (clip["start_s"], clip["end_s"])
        video, key = text_to_path(clip["video"]), clip["feature_key"]
        row = failure_row(video, span, "caption", error, run=self.report.run, key=key)
        self.catalog.add_failure(row)
        self.report.counts.failed += len(of_clip)
        self.bar.update(len(of_clip))
        logger.warning("%s: %s", clip["video"], error.problem)


@dataclass(frozen=True, slots=True)
class _Caption:
    """One generated caption."""

    text: str
    num_tokens: int
    seconds: float
    """Its share of the time."""
    flags: tuple[str, ...]
    retried: dict[str, Any]
    """Why it was made a second time, and with which settings changed; empty for a first try."""


@dataclass(frozen=True, slots=True)
class _SecondTry:
    """A task whose first caption was not good."""

    task: Task
    first: _Caption
    changes: dict[str, Any]
