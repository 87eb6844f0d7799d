"""Distils `tiny` into one and two of its three layers, with and without its probabilities.

    python -m benchmarks.distill_tiny [FOLDER]

Students with as many layers, steps and batches learn once from the teacher's captions alone and
once from its probabilities too, with several seeds. Each describes clips that none has seen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.timing import in_turn
from cogcache.catalog import Catalog, Selection
from cogcache.generation import generate
from cogcache.models import (
    Checkpoint,
    ClipTensors,
    Family,
    PromptRow,
    WholeModel,
    family_of,
    load_half,
)
from cogcache.selftest.shapes import QUESTIONS, Scene, draw_scene, write_clip
from cogcache.settings import Generation, Settings, load_settings
from cogcache.stages import StudentChoice, caption, extract, study, teach
from cogcache.store import FeatureStore

SEED = 4_000_000
QUESTION = QUESTIONS["detail"][0]
OPTIONS = {
    "model": "tiny", "device": "cpu", "prompts": {"detail": QUESTION}, "quantization": "none",
    "precision": "fp32", "method": "full", "gradient_checkpointing": False, "accumulate": 1,
    "learning_rate": 0.002, "tokens_per_batch": 4096, "eval_share": 0.0, "samples": 0,
    "save_every": 10_000,
}  # fmt: skip
WITH_TEACHER = 0.5
"""The `kd_weight` that is compared with 0."""


def main() -> None:
    """Print a line for the teacher and one for each student, then the speeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=300, help="to learn from")
    parser.add_argument("--unseen", type=int, default=100, help="to describe")
    parser.add_argument("--steps", type=int, nargs="+", default=[60])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", nargs="+", default=["2", "1"])
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="distill-tiny-"))
    number = given.clips + given.unseen
    scenes = {f"{n:04}.mp4": draw_scene(np.random.default_rng(SEED + n)) for n in range(number)}
    cache = prepare(folder, scenes, given.clips)
    unseen = dict(list(scenes.items())[given.clips :])
    questions = Questions(cache, list(unseen))
    teacher = exact(questions.answers("tiny"), unseen)
    print(f"teacher: {teacher:.0%} exact", flush=True)
    print("| layers | steps | learns from | exact, by seed | of the teacher's | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for layers in given.layers:
        for steps in given.steps:
            for weight in (0.0, WITH_TEACHER):
                found = Students(cache, folder, layers, steps, weight).all_seeds(given.seeds)
                shares = [exact(questions.answers(str(out)), unseen) for out, _ in found]
                told = ", ".join(f"{share:.0%}" for share in shares)
                source = f"captions and probabilities ({weight:g})" if weight else "captions"
                seconds = mean(taken for _, taken in found)
                ratio = mean(shares) / teacher
                row = f"| {layers} | {steps} | {source} | {told} | {ratio:.2f} | {seconds:.0f} |"
                print(row, flush=True)
        print(speeds(questions, str(found[0][0]), layers), flush=True)


def prepare(folder: Path, scenes: dict[str, Scene], learnt: int) -> Path:
    """Make clips, features, and the teacher's descriptions of those to learn from."""
    videos, cache = folder / "videos", folder / "cache"
    videos.mkdir(parents=True, exist_ok=True)
    for name, scene in scenes.items():
        write_clip(scene, videos / name)
    extract([str(videos)], cache, load_settings(None, {"model": "tiny", "device": "cpu"}))
    some = [str(videos / name) for name in list(scenes)[:learnt]]
    caption(cache, load_settings(None, OPTIONS), videos=some)
    return cache


class Students:
    """Students of one kind, a seed each.

    Args:
        cache: features, captions, and what the teacher thinks.
        folder: for the students.
        layers: how many they keep.
        steps: of each.
        weight: of the teacher's probabilities in the loss.
    """

    def __init__(self, cache: Path, folder: Path, layers: str, steps: int, weight: float) -> None:
        self.cache, self.steps, self.weight = cache, steps, weight
        self.choice = StudentChoice(layers=layers)
        self.folder = folder / f"students-{layers}-{steps}-{weight:g}"

    def settings(self, seed: int) -> Settings:
        """Return how one is trained."""
        changes: dict[str, Any] = {"max_steps": self.steps, "train_seed": seed}
        return load_settings(None, {**OPTIONS, **changes, "kd_weight": self.weight})

    def all_seeds(self, seeds: int) -> list[tuple[Path, float]]:
        """Train one with each seed; return their folders, and the seconds of each."""
        return [self._one(seed) for seed in range(seeds)]

    def _one(self, seed: int) -> tuple[Path, float]:
        settings, out = self.settings(seed), self.folder / str(seed)
        chosen = Selection(models=("tiny",))
        teach(self.cache, settings, chosen, self.choice)
        began_s = time.process_time()
        study(self.cache, out, settings, chosen, self.choice)
        return out, time.process_time() - began_s


class Questions:
    """The clips to describe, laid out once.

    Args:
        cache: with their features.
        names: of their files.
    """

    def __init__(self, cache: Path, names: list[str]) -> None:
        store = FeatureStore.open(cache)
        with Catalog(cache / "catalog.sqlite") as catalog:
            keys = {Path(c["video"]).name: c["feature_key"] for c in catalog.clips.rows()}
        features = [ClipTensors(store.read(keys[name]).tensors) for name in names]
        self.names, family = names, family_of(Checkpoint.open("tiny"))
        self.rows = [family.row(each, QUESTION, "chat") for each in features]

    def answers(self, model: str) -> dict[str, str]:
        """Return what a model says of each clip."""
        half, family = loaded(model)
        return {
            name: family.text_of(tokens)
            for name, tokens in zip(self.names, made(half, family, self.rows), strict=True)
        }


def loaded(model: str) -> tuple[Any, Family]:
    """Return a model's language half in float32, and its family."""
    family = family_of(Checkpoint.open(model))
    whole = WholeModel.of(family.checkpoint)
    return load_half(whole, "language", dtype=torch.float32).model, family


def made(half: Any, family: Family, rows: list[PromptRow]) -> list[list[int]]:
    """Return the tokens that a half makes of all clips together."""
    return generate(half, family, rows, Generation(max_new_tokens=40))


def exact(answers: dict[str, str], scenes: dict[str, Scene]) -> float:
    """Return the share of descriptions that are the true ones, word for word."""
    return mean(answers[name] == scene.answer("detail") for name, scene in scenes.items())


def speeds(questions: Questions, student: str, layers: str) -> str:
    """Say how many tokens a second a student makes, and the teacher, measured in turn."""
    sides = [loaded(model) for model in (student, "tiny")]
    numbers = [sum(map(len, made(*side, questions.rows))) for side in sides]
    works = [lambda side=side: made(*side, questions.rows) for side in sides]
    ours, theirs = in_turn(5, *works, time.process_time)
    rates = [n / float(np.median(took)) for n, took in zip(numbers, (ours, theirs), strict=True)]
    return (
        f"{layers} layers: {rates[0]:.0f} tokens a second, the teacher {rates[1]:.0f}: "
        f"{rates[0] / rates[1]:.2f}"
    )


if __name__ == "__main__":
    main()
