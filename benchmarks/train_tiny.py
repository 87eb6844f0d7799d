"""Trains `tiny` on a new wording; measures it on unseen clips, and what else it forgets.

    python -m benchmarks.train_tiny [FOLDER]

Makes clips, caches their features, imports captions of 300 of them in other words, and has some of
its own answers to the other questions made, which are learnt beside the new ones: a model that is
shown one kind of answer alone gives that to every question. The brief description begins as the
full one does, so it is learnt of as many clips. Then it trains, and asks 100 clips that it has not
seen.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cogcache.catalog import Catalog, Selection
from cogcache.export.importing import import_captions
from cogcache.generation import generate
from cogcache.models import (
    Adapter,
    Checkpoint,
    ClipTensors,
    WholeModel,
    family_of,
    load_half,
    put_on,
)
from cogcache.selftest.shapes import QUESTIONS, Scene, draw_scene, write_clip
from cogcache.settings import Generation, load_settings
from cogcache.stages import caption, extract, train
from cogcache.store import FeatureStore

SEED = 3_000_000
STEPS = 160
REHEARSED = 60
TINY = {"model": "tiny", "device": "cpu"}
OPTIONS = {
    **TINY, "quantization": "none", "precision": "fp32", "gradient_checkpointing": False,
    "dropout": 0.0, "learning_rate": 0.003, "tokens_per_batch": 4096, "accumulate": 1,
    "eval_share": 0.0, "samples": 0, "save_every": 1000,
}  # fmt: skip
SENTENCE = re.compile(r"(\w+ \w+ \w+) (moves?) (slowly|quickly) (.*) on a (\w+) background\.")


def reworded(sentence: str) -> str:
    """Return the full description in other words."""
    what, moves, speed, where, background = SENTENCE.fullmatch(sentence).groups()
    return f"{what} on a {background} background {moves} {where} {speed}."


@dataclass(frozen=True)
class Found:
    """Shares of exact answers to each question, before training and after."""

    before: dict[str, float]
    after: dict[str, float]
    trained_s: float
    processor_s: float


def measured(folder: Path, clips: int, steps: int, rehearsed: int, seed: int = 0) -> Found:
    """Prepare, train and ask.

    Args:
        folder: for all of it.
        clips: three quarters of them are learnt from.
        steps: of training.
        rehearsed: clips whose answers to the other questions are learnt too.
        seed: of training.
    """
    scenes = {f"{n:04}.mp4": draw_scene(np.random.default_rng(SEED + n)) for n in range(clips)}
    learnt = clips * 3 // 4
    cache, unseen = prepare(folder, scenes, learnt, rehearsed), list(scenes)[learnt:]
    before = shares(cache, scenes, unseen, None)
    settings = load_settings(None, {**OPTIONS, "max_steps": steps, "train_seed": seed})
    out, clocks = folder / f"adapter-{seed}", (time.perf_counter, time.process_time)
    began = [clock() for clock in clocks]
    train(cache, out, settings, Selection(models=("reworded", "tiny")))
    taken = [clock() - start for clock, start in zip(clocks, began, strict=True)]
    return Found(before, shares(cache, scenes, unseen, out), *taken)


def main() -> None:
    """Run it and print a line of shares before and one after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=400, help="three quarters are learnt from")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rehearsed", type=int, default=REHEARSED, help="clips of other questions")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="train-tiny-"))
    found = measured(folder, given.clips, given.steps, given.rehearsed, given.seed)
    print("before:", found.before)
    print(f"{given.steps} steps: {found.trained_s:.0f} s, of processors {found.processor_s:.0f} s")
    print("after: ", found.after)


def prepare(folder: Path, scenes: dict[str, Scene], learnt: int, rehearsed: int) -> Path:
    """Make clips, features, captions in other words, and answers to the other questions."""
    videos, cache = folder / "videos", folder / "cache"
    videos.mkdir(parents=True, exist_ok=True)
    for name, scene in scenes.items():
        write_clip(scene, videos / name)
    extract([str(videos)], cache, load_settings(None, TINY))
    rows = [
        {
            "video": str((videos / name).absolute()), "prompt_name": "detail",
            "prompt": QUESTIONS["detail"][0], "caption": reworded(scenes[name].answer("detail")),
        }
        for name in list(scenes)[:learnt]
    ]  # fmt: skip
    file = folder / "reworded.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    import_captions(file, cache / "catalog.sqlite", "reworded")
    rehearse(cache, [str(videos / name) for name in list(scenes)[:learnt]], rehearsed)
    return cache


def rehearse(cache: Path, videos: list[str], some: int) -> None:
    """Have the model answer the other questions: the one most like the new of all clips."""
    prompts = {name: asked[0] for name, asked in QUESTIONS.items() if name != "detail"}
    caption(cache, load_settings(None, {**TINY, "prompts": prompts}), videos=videos[:some])
    like_it = {"summary": prompts["summary"]}
    caption(cache, load_settings(None, {**TINY, "prompts": like_it}), videos=videos)


def shares(
    cache: Path, scenes: dict[str, Scene], names: list[str], adapter: Path | None
) -> dict[str, float]:
    """Return the share of exact answers by question; of the description, in the new words."""
    family = family_of(Checkpoint.open("tiny"))
    half = load_half(WholeModel.of(family.checkpoint), "language", dtype=torch.float32).model
    if adapter is not None:
        put_on(half, Adapter.open(adapter))
    store, right = FeatureStore.open(cache), dict.fromkeys(QUESTIONS, 0)
    with Catalog(cache / "catalog.sqlite") as catalog:
        keys = {Path(c["video"]).name: c["feature_key"] for c in catalog.clips.rows()}
    for name in names:
        features = ClipTensors(store.read(keys[name]).tensors)
        rows = [family.row(features, asked[0], "chat") for asked in QUESTIONS.values()]
        made = generate(half, family, rows, Generation(max_new_tokens=40))
        for question, tokens in zip(QUESTIONS, made, strict=True):
            wanted = scenes[name].answer(question)
            wanted = reworded(wanted) if question == "detail" else wanted
            right[question] += family.text_of(tokens) == wanted
    return {question: count / len(names) for question, count in right.items()}


if __name__ == "__main__":
    main()
