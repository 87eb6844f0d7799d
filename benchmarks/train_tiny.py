"""Trains `tiny` on a new wording; measures it on unseen clips, and what else it forgets.

    python -m benchmarks.train_tiny [FOLDER]

Makes clips, caches their features, imports captions of 300 of them in other words, and has some of
its own answers to the other questions made, which are learnt beside the new ones: a model that is
shown one kind of answer alone gives that to every question. Then it trains, and asks 100 clips that
it has not seen.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
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


def main() -> None:
    """Run it and print a line of shares before and one after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=400, help="three quarters are learnt from")
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--rehearsed", type=int, default=60, help="clips of other questions")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="train-tiny-"))
    scenes = {
        f"{n:04}.mp4": draw_scene(np.random.default_rng(SEED + n)) for n in range(given.clips)
    }
    cache = prepare(folder, scenes, given.clips * 3 // 4, given.rehearsed)
    unseen = list(scenes)[given.clips * 3 // 4 :]
    print("before:", shares(cache, scenes, unseen, None))
    began_s = time.perf_counter()
    settings = load_settings(None, {**OPTIONS, "max_steps": given.steps})
    train(cache, folder / "adapter", settings, Selection(models=("reworded", "tiny")))
    print(f"{given.steps} steps in {time.perf_counter() - began_s:.0f} s")
    print("after: ", shares(cache, scenes, unseen, folder / "adapter"))


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
    others = {name: asked[0] for name, asked in QUESTIONS.items() if name != "detail"}
    some = [str(videos / name) for name in list(scenes)[:rehearsed]]
    caption(cache, load_settings(None, {**TINY, "prompts": others}), videos=some)
    return cache


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
