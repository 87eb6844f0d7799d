"""`distill`: a student learns a teacher's captions and its probabilities for each token.

Two processes that never share memory: the teacher's keeps its likeliest tokens in sealed files, the
student's learns from these and from cached features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from cogcache.catalog import Selection
from cogcache.errors import ConfigError
from cogcache.models import (
    PROJECTOR,
    Checkpoint,
    Family,
    WholeModel,
    family_of,
    identify,
    layers_of,
    num_layers_of,
    open_family,
    read_decoder,
    same_tokenizer,
    with_adapter,
    with_decoder,
    with_layers,
    write_with_language,
)
from cogcache.planning import teacher_bytes
from cogcache.settings import Settings
from cogcache.stages.runs.opened import OpenedRun, open_run
from cogcache.stages.runs.report import Counts
from cogcache.stages.train import TRAINING, Trained, TrainingJob
from cogcache.store import FeatureStore
from cogcache.system import pick_device
from cogcache.training import base_kind, check_method, choose, lay_out
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from cogcache.training import Example, Teacher

START: Final = "start"
"""Folder of the untrained student."""


@dataclass(frozen=True)
class StudentChoice:
    """Which student: some of the teacher's layers, or another model."""

    layers: str | None = None
    """How many layers, or a list of them."""
    checkpoint: str | None = None
    """A causal language model that reads the features through a projector of its own."""

    def shares_words(self, teacher: Family) -> bool:
        """Say whether the student has the teacher's tokenizer: only then can it be compared."""
        if self.checkpoint is None:
            return True
        return same_tokenizer(Path(self.checkpoint), teacher.checkpoint.folder)

    def check(self, settings: Settings) -> None:
        """Refuse both, or neither, and a student that cannot read the features.

        Raises:
            ConfigError: it is not clear who is to learn, or from what.
        """
        if self.checkpoint is not None and settings.vision.cache_point != "pooled":
            problem = "--student reads features from before the teacher's projector"
            raise ConfigError(problem, "give --cache-point pooled, as `extract` was given")
        if (self.layers is None) == (self.checkpoint is None):
            problem = "it is not clear who is to learn"
            raise ConfigError(problem, "give --layers 16, or --student CHECKPOINT")


def teach(
    cache: Path,
    settings: Settings,
    selection: Selection,
    choice: StudentChoice,
    catalog_path: Path | None = None,
) -> list[str]:
    """Run the teacher over captions, and keep its likeliest tokens with their probabilities.

    Args:
        cache: folder of the cache.
        settings: the teacher and its precision; how many tokens are kept.
        selection: which captions.
        choice: who the student is.
        catalog_path: catalog on this machine's own disk.

    Returns:
        Lines for a reader.

    Raises:
        CogcacheError: no caption passes, or the teacher cannot be loaded.
    """
    store = FeatureStore.open(cache)
    family = open_family(settings)
    if not choice.shares_words(family):
        return ["teacher: the student has another tokenizer, so it learns from captions alone"]
    with open_run("distill", cache, settings, catalog_path) as run:
        examples = _examples(run.catalog.path, settings, selection, family, store)
        teacher = _teacher(cache, settings, family, run)
        new = [example for example in examples if not teacher.knows(example)]
        report = run.begin(Counts(found=len(examples), cached=len(examples) - len(new)))
        covered: list[float] = []
        with run.working() as at, tqdm(total=len(new), desc="teach", disable=None) as bar:
            if new:
                for share in _thoughts(settings, family, store, teacher, new):
                    covered.append(share)
                    report.counts.done += 1
                    bar.update()
                    if at.stop:
                        break
    tokens = sum(example.num_labels for example in examples) / max(1, len(examples))
    kept = teacher_bytes(settings.distillation.teacher_top_k, round(tokens))
    lines = [
        f"teacher: {len(new)} captions thought about, {len(examples) - len(new)} there already, "
        f"some {format_bytes(kept)} a caption before compression"
    ]
    if covered:
        top_k = settings.distillation.teacher_top_k
        lines.append(f"  the {top_k} kept tokens cover {sum(covered) / len(covered):.2%}")
    return lines


def study(
    cache: Path,
    out: Path,
    settings: Settings,
    selection: Selection,
    choice: StudentChoice,
    catalog_path: Path | None = None,
) -> Trained:
    """Train a student. Run the same command again to go on where it stopped.

    Args:
        cache: folder of the cache.
        out: folder of the student's checkpoint.
        settings: the teacher, how the student is trained, and how both parts of the loss mix.
        selection: which captions.
        choice: who the student is.
        catalog_path: catalog on this machine's own disk.

    Raises:
        CogcacheError: nothing can be learnt, the folder holds another run, the half does not fit.
    """
    choice.check(settings)
    told = settings
    if settings.training.method == "full":  # the teacher may be in 4 bits; a student is not then
        language = settings.language.model_copy(update={"quantization": "none"})
        settings = settings.model_copy(update={"language": language})
    check_method(settings)
    store = FeatureStore.open(cache)
    family = open_family(settings)
    with open_run("distill", cache, settings, catalog_path) as run:
        teacher = _teacher(cache, told, family, run)
        student = ChosenStudent(family, out / TRAINING / START, choice, teacher, settings)
        job = TrainingJob(out, settings, selection, family, store, run.catalog, student=student)
        return job.work(run)


@dataclass
class ChosenStudent:
    """A teacher with some of its decoder layers, or with another decoder."""

    teacher_family: Family
    folder: Path
    choice: StudentChoice
    teacher: Teacher
    told: Settings
    settings: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.settings = {
            "layers": self.choice.layers,
            "student": self.choice.checkpoint,
            **self.told.distillation.model_dump(),
        }

    def family(self) -> Family:
        """Return the family of the student's checkpoint."""
        if not (self.folder / "config.json").is_file():
            self._make()
        made = family_of(Checkpoint.open(str(self.folder)))
        return made.at(self.teacher_family.cache_point)

    def _make(self) -> None:
        """Write the untrained student."""
        checkpoint = self.teacher_family.checkpoint
        if (other := self.choice.checkpoint) is not None:
            decoder = read_decoder(other)
            seed = self.told.training.train_seed
            with_decoder(checkpoint, decoder, self.folder, Path(other), seed)
            return
        whole = WholeModel.of(checkpoint)
        kept = layers_of(str(self.choice.layers), num_layers_of(whole))
        config, tensors = with_layers(whole, kept)
        write_with_language(whole, self.folder, tensors, config, {"layers": kept})

    def new_parts(self) -> tuple[str, ...]:
        """Return what names of parameters begin with that no model has trained before."""
        return PROJECTOR if self.choice.checkpoint is not None else ()

    def losses(self) -> Any:
        """Return what mixes the captions' loss with the teacher's, if both have the same words."""
        from cogcache.training import Distilled

        shared = self.choice.shares_words(self.teacher_family)
        return Distilled(self.teacher, self.told.distillation.kd_weight if shared else 0.0)


def _teacher(cache: Path, settings: Settings, family: Family, run: OpenedRun) -> Teacher:
    from cogcache.training import Teacher

    language = settings.language
    identity = identify(family, "language", run.catalog.files)
    identity = with_adapter(identity, language.adapter)
    return Teacher(
        cache,
        {
            "language_digest": identity.digest,
            "quantization": base_kind(settings),
            "layout": family.layout(language),
            "rotary_dtype": language.rotary_dtype,
            "top_k": settings.distillation.teacher_top_k,
        },
    )


def _examples(
    catalog: Path, settings: Settings, selection: Selection, family: Family, store: FeatureStore
) -> list[Example]:
    fits = {"family": family.name, "cache_point": family.cache_point}
    chosen = choose(catalog, selection, settings.prompts, fits)
    context = family.full_config().get("max_position_embeddings")
    return lay_out(chosen, family, store, family.layout(settings.language), context).examples


def _thoughts(
    settings: Settings, family: Family, store: FeatureStore, teacher: Teacher, new: list[Example]
) -> Any:
    from cogcache.training import Collator, load_language

    loaded = load_language(family, settings, base_kind(settings), pick_device(settings.device))
    collate = Collator(family, loaded.model, store)
    tokens = settings.training.tokens_per_batch
    return teacher.think(loaded.model, collate, new, tokens)
