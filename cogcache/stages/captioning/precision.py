"""A quantised language half against the same one unquantised, on clips of a cache.

The unquantised half captions the clips and says what it expects at each place of its captions; then
the quantised one captions them too and is asked what it expects at the same places. Each runs in a
process of its own, one after the other, so that they never share memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cogcache.catalog import Catalog, ClipRow
from cogcache.errors import CacheError, ClipError, CogcacheError, ConfigError
from cogcache.models import Family, HalfIdentity, identify, open_family, with_adapter
from cogcache.settings import Inference, Settings
from cogcache.stages.captioning.captioner import Captioner, ClipTasks
from cogcache.stages.captioning.fill_prompts import Filler
from cogcache.stages.captioning.likeness import ComparedCaptions, Expectations, compare, similarity
from cogcache.stages.captioning.quantization import quantization_for
from cogcache.stages.captioning.read_ahead import if_fitting, read_ahead, reader_for
from cogcache.stages.captioning.results import GivenUp, Made
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.tasks import Task
from cogcache.stages.clips.choice import choose_clips
from cogcache.stages.runs.report import Counts, RunReport, Timings
from cogcache.store import FeatureStore
from cogcache.system import CachePaths, in_own_process, scratch_folder
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Said:
    """One caption of one precision."""

    text: str
    flags: tuple[str, ...]
    tokens: tuple[int, ...]
    expectations: Expectations | None
    """Against the reference; None of the reference itself."""


@dataclass(frozen=True)
class _Job:
    """What one process does."""

    cache: Path
    settings: Settings
    identity: HalfIdentity
    tasks: list[Task]
    folder: Path
    """Where the expectations of the reference are."""
    positions: int
    reference: dict[str, Said] | None
    """By the feature key and the prompt; None in the reference's own process."""


def check_precision(
    cache: Path, settings: Settings, *, clips: int = 32, positions: int = 64
) -> list[ComparedCaptions]:
    """Compare the quantisation of `settings` with none, on clips spread over a cache.

    What is compared with is transformers' half, unquantised, whatever backend the settings name.

    Nothing is written to the cache but digests of the model's files.

    Args:
        cache: folder of the cache.
        settings: model, prompts, precision; those of stage one say which clips.
        clips: most clips that are captioned.
        positions: most places of a caption at which expectations are compared.

    Raises:
        ConfigError: `settings` quantise nothing and name no other backend, or the disk has no room
            for the expectations.
        CacheError: the cache holds no clips for these settings.
    """
    is_vllm = settings.inference.is_vllm
    if not is_vllm and {settings.language.quantization, settings.language.head_quantization} == {
        "none"
    }:
        raise ConfigError("no quantisation is asked for", "give one, such as --quantization nf4")
    settings = _changed(settings, "generation", retry=False, n=1)
    FeatureStore.open(cache)
    family = open_family(settings)
    with Catalog(CachePaths(cache).catalog) as catalog:
        settings = quantization_for(settings, family, catalog).settings
        identity = identify(family, "language", catalog.files)
        identity = with_adapter(identity, settings.language.adapter)
        chosen = _spread(choose_clips(settings, family, catalog, None).clips, clips)
        tasks = list(_tasks(chosen, StageTwo(settings, family, identity), catalog))
        offsets_s = catalog.files.offsets_s({clip["video_digest"] for clip in chosen})
    if not tasks:
        problem = f"{cache} holds no clips to caption with these settings and prompts"
        raise CacheError(problem, "run `cogcache extract` first")
    with scratch_folder() as folder:
        _check_disk(folder, len(tasks) * positions, family)
        plain = _changed(settings, "language", quantization="none", head_quantization="none")
        plain = plain.model_copy(update={"inference": Inference()})
        job = _Job(cache, plain, identity, tasks, folder, positions, None)
        reference = in_own_process(_run, job)
        left = [task for task in tasks if _name(task) in reference]
        job = replace(job, settings=settings, tasks=left, reference=reference)
        said = in_own_process(_run, job)
    both = [task for task in left if _name(task) in said]
    return [_pair(task, reference[_name(task)], said[_name(task)], offsets_s) for task in both]


def _changed(settings: Settings, table: str, **changes: Any) -> Settings:
    tables = getattr(settings, table).model_copy(update=changes)
    return settings.model_copy(update={table: tables})


def _spread(clips: Sequence[ClipRow], most: int) -> list[ClipRow]:
    """Choose clips at an even step through the cache, in an order that is always the same."""
    ordered = sorted(clips, key=lambda clip: (clip["video"], clip["start_s"]))
    if len(ordered) <= most:
        return ordered
    return [ordered[index * len(ordered) // most] for index in range(most)]


def _tasks(clips: Sequence[ClipRow], stage: StageTwo, catalog: Catalog) -> Iterator[Task]:
    """Fill the prompts in; those that need captions of a run before it are left out."""
    prompts = stage.settings.prompts
    filler = Filler(prompts, list(clips), catalog, stage.family.plain, stage.around())
    for clip in clips:
        for name in prompts:
            try:
                filled = filler.fill(name, clip, 0)
            except ClipError:
                continue
            if filled is not None:
                key = stage.key(clip["feature_key"], 0, filled.text)
                yield Task(clip, name, filled.text, key)


def _check_disk(folder: Path, places: int, family: Family) -> None:
    config = family.full_config()
    vocabulary = int((config.get("text_config") or config)["vocab_size"])
    needed, free = 4 * vocabulary * places, shutil.disk_usage(folder).free
    if needed > free:
        problem = f"{format_bytes(needed)} are needed in {folder}, {format_bytes(free)} free"
        raise ConfigError(problem, "set TMPDIR, or lower --compare-clips or --positions")


def _run(job: _Job) -> dict[str, Said]:
    """Caption all clips in one precision, then look at expectations; runs in its own process."""
    family, settings = open_family(job.settings), job.settings
    report = RunReport(0, "caption", settings.model, Counts(len(job.tasks)), Timings())
    stage = StageTwo(settings, family, job.identity)
    captioner = Captioner(stage, report, FeatureStore.open(job.cache))
    made: dict[str, Made] = {}
    with (
        closing(captioner),
        tqdm(total=2 * len(job.tasks), unit="pass", desc=_name_of(settings), disable=None) as bar,
    ):
        for each in captioner.captions(_clips(job, stage)):
            if isinstance(each, GivenUp):
                raise CogcacheError(each.error.problem, each.error.hint)
            made[_name(each.task)] = each
            bar.update()
        said: dict[str, Said] = {}
        for tasks, features in _clips(job, stage):
            for task in tasks:
                name = _name(task)
                tokens = (job.reference[name] if job.reference else made[name]).tokens
                row = family.row(features, task.prompt, task.key.layout)
                expected = captioner.log_probabilities(row, task, tokens[: job.positions - 1])
                found = _look(job, expected, name)
                said[name] = Said(made[name].text, made[name].flags, made[name].tokens, found)
                bar.update()
    return said


def _name_of(settings: Settings) -> str:
    """Return what a bar is called: the backend and the kind of weights."""
    kind = settings.language.quantization
    name = "not quantised" if kind == "none" else kind
    return f"vLLM, {name}" if settings.inference.is_vllm else name


def _clips(job: _Job, stage: StageTwo) -> Iterator[ClipTasks]:
    """Yield the tasks of each clip with its features; clips without are left out."""
    store, split = FeatureStore.open(job.cache), Timings()
    family, reader = open_family(job.settings), reader_for(stage)
    for tasks, read in read_ahead(job.tasks, store, lambda: split.time("wait"), reader):
        features = if_fitting(read, family, tasks[0].key.layout)
        if not isinstance(features, ClipError):
            yield tasks, features


def _look(job: _Job, found: Tensor, name: str) -> Expectations | None:
    """Keep the expectations of the reference, or compare with those that were kept."""
    from safetensors.torch import load_file, save_file

    path = job.folder / f"{name}.safetensors"
    if job.reference is None:
        save_file({"expected": found}, path)
        return None
    return compare(load_file(path)["expected"], found)


def _name(task: Task) -> str:
    """Return what a clip with a prompt is known by, whatever the precision."""
    return task.key.digest


def _pair(
    task: Task, reference: Said, said: Said, offsets_s: Mapping[str, float]
) -> ComparedCaptions:
    assert said.expectations is not None
    clip = task.clip
    return ComparedCaptions(
        video=clip["video"],
        start_s=clip["start_s"],
        end_s=clip["end_s"],
        prompt_name=task.prompt_name,
        prompt=task.prompt,
        reference_caption=reference.text,
        caption=said.text,
        reference_flags=reference.flags,
        flags=said.flags,
        similarity=similarity(reference.text, said.text),
        expectations=said.expectations,
        offset_s=offsets_s.get(clip["video_digest"], 0.0),
    )
