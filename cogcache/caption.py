"""Stage two: cached features to captions, through the language half alone.

find what is missing → read features ahead → lay prompts out around them → generate in
batches over clips and prompts → look at what came out → commit every few seconds
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from cogcache.captionlist import CaptionList, Task, list_captions
from cogcache.catalog import CaptionRow, Catalog, failure_row, text_to_path
from cogcache.checkpoint import Checkpoint
from cogcache.config import Settings
from cogcache.errors import ClipError, CogcacheError, CorruptFeaturesError, FeaturesError
from cogcache.generation import generate
from cogcache.guards import flags_of
from cogcache.inputs import find_videos
from cogcache.memory import MemoryMonitor, out_of_memory, sample
from cogcache.models.family import ClipTensors, Family, Row
from cogcache.models.identity import HalfIdentity, identify
from cogcache.models.registry import family_of
from cogcache.plan import plan_language
from cogcache.quantization import Quantization
from cogcache.runs import Counts, RunReport, Split
from cogcache.stopping import Stop, stop_on_signals
from cogcache.store import FeatureStore

if TYPE_CHECKING:
    from cogcache.models.halves import LoadedHalf

logger = logging.getLogger(__name__)

COMMIT_EVERY_S = 3.0
"""Finished captions wait at most this long for their transaction."""


def caption(
    cache: Path,
    settings: Settings,
    *,
    videos: Sequence[str | Path] | None = None,
) -> RunReport:
    """Caption every clip of the cache with every prompt, where the catalog lacks the caption.

    Args:
        cache: folder of the cache.
        settings: which model, prompts and precision; those of stage one say which clips.
        videos: only clips of these; None for all.

    Returns:
        What was done. Captions are in the catalog.

    Raises:
        CogcacheError: a setting, the checkpoint or the cache is not usable.
        QuantizationError: the language half is not quantised as asked.
    """
    store = FeatureStore.open(cache)
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    paths = None if videos is None else find_videos([str(video) for video in videos])
    with Catalog(cache / "catalog.sqlite") as catalog, MemoryMonitor() as monitor:
        split = Split()
        with split.time("digest"):
            identity = identify(family, "language", catalog)
            work = list_captions(settings, family, identity, catalog, paths)
        run = catalog.start_run("caption", settings.model, settings.model_dump(mode="json"))
        counts = Counts(found=work.num_cached + len(work.missing), cached=work.num_cached)
        report = RunReport(run, "caption", settings.model, counts, split)
        if work.missing:
            job = _Captioning(settings, family, identity, store, catalog, report)
            with stop_on_signals() as stop:
                job.run(work, stop)
            report.stopped = stop.reason
    report.finish(monitor)
    with Catalog(cache / "catalog.sqlite") as catalog:
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

    def __post_init__(self) -> None:
        # Drawn tokens must not depend on who else is in the batch: one row at a time then.
        generation = self.settings.generation
        together = 1 if generation.do_sample else self.settings.language.clips_per_batch
        self.rows_per_batch = self.family.rows_together(together, generation.num_beams)

    def run(self, work: CaptionList, stop: Stop) -> None:
        """Make every missing caption, or as many as there is time for."""
        with self.report.split.time("load"):
            loaded = self._load()
        total = self.report.counts.found
        bar = tqdm(
            total=total, initial=work.num_cached, unit="caption", desc="caption", disable=None
        )
        with ThreadPoolExecutor(1, "features") as reader, bar:
            for tasks, features in self._read_ahead(work.missing, reader):
                if stop:
                    break
                rows = self._rows(tasks, features)
                for task, made in zip(
                    rows, self._generate(loaded, list(rows.values())), strict=True
                ):
                    self._keep(task, made)
                bar.update(len(tasks))
        self._commit()

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

    def _read_ahead(
        self, tasks: Sequence[Task], reader: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Task], dict[str, ClipTensors | ClipError]]]:
        """Yield tasks in batches with their features, the next batch being read meanwhile."""
        remaining = list(tasks)
        following = reader.submit(self._read, remaining[: self.rows_per_batch])
        while remaining:
            batch, remaining = remaining[: self.rows_per_batch], remaining[self.rows_per_batch :]
            with self.report.split.time("wait_for_features"):
                features = following.result()
            if remaining:
                following = reader.submit(self._read, remaining[: self.rows_per_batch])
            yield batch, {task.key.feature_key: features[task.key.feature_key] for task in batch}

    def _read(self, tasks: Sequence[Task]) -> dict[str, ClipTensors | ClipError]:
        return {key: self._read_one(key) for key in {task.key.feature_key for task in tasks}}

    def _read_one(self, key: str) -> ClipTensors | ClipError:
        if key not in self.store:
            hint = "run `cogcache extract` again: it makes what is missing"
            return FeaturesError("features_missing", f"the feature file {key} is gone", hint)
        try:
            stored = self.store.read(key)
        except CorruptFeaturesError as error:
            moved = self.store.quarantine(key, error.problem)
            hint = "run `cogcache extract` again: it makes the clip anew"
            problem = f"{error.problem}; moved to {moved}"
            return FeaturesError("features_corrupt", problem, hint)
        texts = stored.attributes["texts"]
        assert isinstance(texts, Mapping)  # sealed so by stage one
        return ClipTensors(stored.tensors, {name: str(text) for name, text in texts.items()})

    def _rows(
        self, tasks: Sequence[Task], features: dict[str, ClipTensors | ClipError]
    ) -> dict[Task, Row]:
        """Lay out a row a task; a task without features becomes a failure."""
        rows = {}
        for task in tasks:
            found = features[task.key.feature_key]
            if isinstance(found, ClipError):
                self._fail(task, found)
            else:
                rows[task] = self.family.row(found, task.prompt, task.key.layout)
        if rows and self.report.planned is None:
            longest = max(row.length for row in rows.values())
            config = self.family.checkpoint.config
            self.report.planned = plan_language(self.identity, config, self.settings, longest)
        return rows

    def _generate(self, loaded: LoadedHalf, rows: Sequence[Row]) -> Iterator[_Made]:
        """Generate for all rows; where memory runs out, for half as many at a time."""
        done = 0
        while done < len(rows):
            batch = rows[done : done + self.rows_per_batch]
            try:
                with self.report.split.time("generate"):
                    made = self._generate_batch(loaded, batch)
            except (MemoryError, RuntimeError) as error:
                self._halve(error)
                continue
            yield from made
            done += len(batch)

    def _halve(self, error: BaseException) -> None:
        if not out_of_memory(error):
            raise error
        if self.rows_per_batch == 1:
            raise CogcacheError(
                "memory runs out with a single caption at a time",
                "give the stage more memory, or fewer frames (--max-frames)",
            ) from error
        self.rows_per_batch //= 2
        logger.warning("out of memory: going on with %d captions at a time", self.rows_per_batch)

    def _generate_batch(self, loaded: LoadedHalf, rows: Sequence[Row]) -> list[_Made]:
        started = time.perf_counter()
        tokens = generate(loaded.model, self.family, rows, self.settings.generation)
        seconds = (time.perf_counter() - started) / len(rows)
        return [self._made(row_tokens, seconds) for row_tokens in tokens]

    def _made(self, tokens: list[int], seconds: float) -> _Made:
        ended = bool(tokens) and tokens[-1] in self.family.stop_ids
        kept = tokens[:-1] if ended else tokens
        text = self.family.text_of(kept)
        return _Made(text, len(kept), seconds, flags_of(text, kept, ended=ended))

    def _keep(self, task: Task, made: _Made) -> None:
        clip = task.clip
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
                "settings": task.key.fields(),
                "run": self.report.run,
            }
        )
        if time.monotonic() - self.committed_s > COMMIT_EVERY_S:
            self._commit()

    def _commit(self) -> None:
        with self.report.split.time("commit"):
            self.catalog.add_captions(self.uncommitted)
        self.report.counts.done += len(self.uncommitted)
        self.uncommitted.clear()
        self.committed_s = time.monotonic()

    def _fail(self, task: Task, error: ClipError) -> None:
        span = (task.clip["start_s"], task.clip["end_s"])
        video, key = text_to_path(task.clip["video"]), task.key.feature_key
        row = failure_row(video, span, "caption", error, run=self.report.run, key=key)
        self.catalog.add_failure(row)
        self.report.counts.failed += 1
        logger.warning("%s: %s", task.clip["video"], error.problem)


@dataclass(frozen=True, slots=True)
class _Made:
    """One generated caption."""

    text: str
    num_tokens: int
    seconds: float
    """Its share of the batch's time."""
    flags: tuple[str, ...]
