"""Measure `tiny` on new clips: real mp4 files, decoded and captioned in two halves as in use.

    python -m tiny_training.evaluate_tiny --json build/tiny.json

Each clip is asked every question in the words that come first in `QUESTIONS`; an answer counts
when it equals the true one in every character.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import ClipTensors, Family
from cogcache.models.halves.load import LoadedHalf, load_half
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import family_of
from cogcache.selftest.shapes import QUESTIONS, Scene, draw_scene, write_clip
from cogcache.settings.stage_one import Sampling
from cogcache.video.reading import read_clip

EVALUATION_STREAM = 1_000_003
CLIPS_PER_BATCH = 50
BOUNDS = {"none": 0.95, "nf4": 0.90}
"""Least share of exact answers on any attribute, by the decoder's quantisation."""

Shares = dict[str, dict[str, float]]


def evaluate(model: str, scenes: list[Scene], videos: Path) -> Shares:
    """Return the share of exact answers by quantisation and attribute.

    Args:
        model: `tiny` or a checkpoint's folder.
        scenes: what to ask about.
        videos: an empty folder for the clips' files.
    """
    family = family_of(Checkpoint.open(model))
    vision = load_half(model, "vision")
    features = [encode(family, vision, path) for path in write_clips(scenes, videos)]
    shares: Shares = {}
    for kind in BOUNDS:
        language = load_half(model, "language", quantization=Quantization(kind=kind))
        shares[kind] = {
            attribute: accuracy(family, language, features, scenes, attribute)
            for attribute in QUESTIONS
        }
    return shares


def write_clips(scenes: list[Scene], folder: Path) -> Iterator[Path]:
    """Write the scenes as mp4 files, one after the other."""
    for number, scene in enumerate(scenes):
        path = folder / f"{number:04d}.mp4"
        write_clip(scene, path)
        yield path


def encode(family: Family, vision: LoadedHalf, path: Path) -> ClipTensors:
    """Return what the vision half makes of a video file."""
    clip = read_clip(path, Sampling(), 0.0, None)
    inputs = family.prepare(clip, vision.model.dtype)
    return family.encode(vision.model, [inputs], frames_per_batch=48)[0]


def accuracy(
    family: Family,
    language: LoadedHalf,
    features: list[ClipTensors],
    scenes: list[Scene],
    attribute: str,
) -> float:
    """Return the share of clips whose answer about one attribute is exactly the true one."""
    right = 0
    for start in range(0, len(scenes), CLIPS_PER_BATCH):
        clips = slice(start, start + CLIPS_PER_BATCH)
        answers = ask(family, language, features[clips], QUESTIONS[attribute][0])
        truths = [scene.answer(attribute) for scene in scenes[clips]]
        right += sum(said == true for said, true in zip(answers, truths, strict=True))
    return right / len(scenes)


def ask(family: Family, language: LoadedHalf, features: list[ClipTensors], query: str) -> list[str]:
    """Return greedy answers to one question about several clips."""
    rows = [family.row(clip, query, "chat") for clip in features]
    inputs = family.model_inputs(rows, language.model)
    with torch.inference_mode():
        tokens = language.model.generate(**inputs, max_new_tokens=32, do_sample=False)
    start = inputs["input_ids"].shape[1]
    return [family.text_of(row.tolist()) for row in tokens[:, start:]]


def table(shares: Shares, num_clips: int) -> str:
    """Return the shares as a Markdown table, in percent."""
    lines = [
        f"| exact answers on {num_clips} clips | asked as | bfloat16 | NF4 |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {queries[0]} | {shares['none'][name]:.1%} | {shares['nf4'][name]:.1%} |"
        for name, queries in QUESTIONS.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, and print; the status is 1 below the bounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny", help="`tiny` or a checkpoint's folder")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--json", type=Path, help="also write the shares to this file")
    arguments = parser.parse_args()
    rngs = (np.random.default_rng((EVALUATION_STREAM, seed)) for seed in range(arguments.clips))
    scenes = [draw_scene(rng) for rng in rngs]
    with tempfile.TemporaryDirectory() as videos:
        shares = evaluate(arguments.model, scenes, Path(videos))
    print(table(shares, len(scenes)))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(shares, indent=2) + "\n", encoding="utf-8")
    enough = all(min(shares[kind].values()) >= bound for kind, bound in BOUNDS.items())
    raise SystemExit(0 if enough else 1)


if __name__ == "__main__":
    main()
