"""`tiny` distilled to fewer layers: exactness and speed, with its probabilities and without them.

    python -m benchmarks.distill_tiny [FOLDER] [--seeds 3] [--steps 80] [--clips 160]

Makes clips, caches their features, and has `tiny` caption most of them. A student of one or two of
its three layers learns these captions, once from their words alone and once with the teacher's
probabilities, in as many steps. Asked are clips that neither has learnt. Each with several seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from cogcache.catalog import Catalog, Selection
from cogcache.generation import generate
from cogcache.models import Checkpoint, ClipTensors, WholeModel, family_of, load_half
from cogcache.selftest.shapes import QUESTIONS, draw_scene, write_clip
from cogcache.settings import Generation, load_settings
from cogcache.stages import StudentChoice, caption, extract, study, teach
from cogcache.store import FeatureStore

SEED = 5_000_000
TINY = {"model": "tiny", "device": "cpu", "quantization": "none"}
OPTIONS = {
    **TINY, "method": "full", "precision": "fp32", "gradient_checkpointing": False,
    "learning_rate": 0.002, "tokens_per_batch": 2048, "accumulate": 1, "eval_share": 0.0,
    "samples": 0, "save_every": 100_000,
}  # fmt: skip
PROMPT = QUESTIONS["detail"][0]


@dataclass(frozen=True)
class Lab:
    """A cache, the clips that are learnt from, and those that are asked."""

    folder: Path
    num_clips: int
    num_unseen: int

    @property
    def cache(self) -> Path:
        """The folder of the cache."""
        return self.folder / "cache"

    def prepare(self) -> None:
        """Make clips and features, and have the teacher caption those that are learnt from."""
        videos = self.folder / "videos"
        videos.mkdir(parents=True, exist_ok=True)
        for number in range(self.num_clips + self.num_unseen):
            path = videos / f"{number:04}.mp4"
            if not path.exists():
                write_clip(draw_scene(np.random.default_rng(SEED + number)), path)
        extract([str(videos)], self.cache, load_settings(None, {**TINY, "decode_workers": 1}))
        learnt = [str(videos / f"{number:04}.mp4") for number in range(self.num_clips)]
        settings = load_settings(None, {**TINY, "prompts": {"detail": PROMPT}})
        caption(self.cache, settings, videos=learnt)

    def asked(self, model: str) -> tuple[float, float]:
        """Return the share of exact descriptions of unseen clips, and tokens a second."""
        family = family_of(Checkpoint.open(model))
        half = load_half(WholeModel.of(family.checkpoint), "language", dtype=torch.float32).model
        store = FeatureStore.open(self.cache)
        with Catalog(self.cache / "catalog.sqlite") as catalog:
            keys = {Path(c["video"]).stem: c["feature_key"] for c in catalog.clips.rows()}
        exact, tokens, spent_s = 0, 0, 0.0
        for number in range(self.num_clips, self.num_clips + self.num_unseen):
            features = ClipTensors(store.read(keys[f"{number:04}"]).tensors)
            rows = [family.row(features, PROMPT, "chat")]
            began_s = time.process_time()
            [made] = generate(half, family, rows, Generation(max_new_tokens=40))
            spent_s += time.process_time() - began_s
            tokens += len(made)
            wanted = draw_scene(np.random.default_rng(SEED + number)).answer("detail")
            exact += family.text_of(made) == wanted
        return exact / self.num_unseen, tokens / spent_s

    def student(self, layers: int, kd_weight: float, seed: int, steps: int) -> tuple[float, float]:
        """Train a student, and ask it."""
        more: dict[str, Any] = {"max_steps": steps, "train_seed": seed, "kd_weight": kd_weight}
        settings = load_settings(None, {**OPTIONS, **more})
        choice, chosen = StudentChoice(layers=str(layers)), Selection(models=("tiny",))
        teach(self.cache, settings, chosen, choice)
        out = self.folder / f"student-{layers}-{kd_weight}-{seed}-{steps}"
        study(self.cache, out, settings, chosen, choice)
        return self.asked(str(out))


def main() -> None:
    """Print a line for the teacher and one for each kind of student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--unseen", type=int, default=60)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="distill-tiny-"))
    lab = Lab(folder, given.clips, given.unseen)
    lab.prepare()
    exact, rate = lab.asked("tiny")
    print("| model | exact, each seed | mean | tokens a second against the teacher |")
    print(f"| --- | --- | --- | --- |\n| teacher, 3 layers | {exact:.0%} | | 1.00 |", flush=True)
    for layers in (2, 1):
        for kd_weight in (0.0, 0.5):
            found = [
                lab.student(layers, kd_weight, seed, given.steps) for seed in range(given.seeds)
            ]
            shares = [share for share, _ in found]
            how = "with probabilities" if kd_weight else "captions alone"
            each = ", ".join(f"{share:.0%}" for share in shares)
            faster = mean(speed for _, speed in found) / rate
            print(
                f"| {layers} of 3 layers, {how} | {each} | {mean(shares):.0%} | {faster:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
