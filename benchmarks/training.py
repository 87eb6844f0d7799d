"""What a step of training takes, and whether features from the cache save any of it.

    python -m benchmarks.training [FOLDER] [--repeats 3]

The random model of `benchmarks.small`, a clip of 24 frames and a caption of 100 tokens. Each way
runs in a process of its own, all of them in turn, and is timed in processor seconds of one thread,
so that a shared machine can measure them. Activations are what a step holds at its peak
beyond what was there before it. The whole model gets its frames ready made, and its frozen vision
half runs without gradients: what another trainer would do at its best. `--full-size` times two of
the flagship's vision blocks and two of its decoder layers, and scales them by their number: an
estimate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from benchmarks.small import Bench
from cogcache.models import ClipTensors, Family, load_half
from cogcache.settings import Settings
from cogcache.store import FeatureStore
from cogcache.system import Stop, blocks_given_back
from cogcache.system.memory_monitor import MemoryMonitor, sample
from cogcache.training import Chosen, Collator, Example, base_kind
from cogcache.training.learning import load_language
from cogcache.training.lora import prepare
from cogcache.training.loss import Batch
from cogcache.training.trainer import CaptionTrainer, Data, arguments_for
from cogcache.video.reading import read_clip

CAPTION_TOKENS: Final = 100
STEPS: Final = 4
"""Of each process; the first, in which libraries compile what they need, is not counted."""
COMMON: Final = {
    "quantization": "none", "tokens_per_batch": 256, "accumulate": 1, "eval_share": 0.0,
    "samples": 0, "save_every": 1000, "max_steps": STEPS, "device": "cpu",
}  # fmt: skip
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "bf16": {},
    "bf16, no checkpointing": {"gradient_checkpointing": False},
    "float32": {"precision": "fp32"},
    "NF4 base, bf16": {"quantization": "nf4"},
    "whole model, frozen vision": {},
}
"""Settings of each; the last has the vision half run in each step."""
WHOLE: Final = "whole model, frozen vision"
FULL_LAYERS, FULL_BLOCKS = 32, 63
POSITIONS: Final = 257
"""Of one frame in the vision half at full size."""
FRAMES: Final = 24


@dataclass(frozen=True)
class FromPixels(Collator):
    """Makes a batch as a trainer of the whole model does: the vision half encodes each clip.

    Args:
        vision: the half.
        pixels: of the clip, ready for it.
        spent: seconds of each encoding; added to.
    """

    vision: Any = None
    pixels: Any = None
    spent: list[float] = field(default_factory=list)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Encode, then lay out."""
        began_s = time.process_time()
        features = self.family.encode(self.vision, [self.pixels], FRAMES)
        self.spent.append(time.process_time() - began_s)
        return self.laid_out(examples, features)


class Made(Bench):
    """The same, where it may be there already."""

    @cached_property
    def model(self) -> str:
        """The checkpoint's folder."""
        folder = self.folder / "model"
        return str(folder) if (folder / "config.json").is_file() else super().model

    @cached_property
    def videos(self) -> list[Path]:
        """The clip."""
        path = self.folder / "0.mp4"
        return [path] if path.is_file() else super().videos

    @cached_property
    def cache(self) -> Path:
        """A cache with its features."""
        path = self.folder / "cache"
        return path if path.is_dir() else super().cache


def example_of(family: Family, features: ClipTensors, key: str) -> Example:
    """Return a caption of random tokens behind a clip and its prompt."""
    row = family.row(features, "Please describe this video in detail.", "base")
    answer = torch.randint(10, 4000, (CAPTION_TOKENS,), generator=torch.Generator().manual_seed(0))
    sequences = {
        name: torch.cat((each, answer if name == "input_ids" else torch.zeros_like(answer)))
        for name, each in row.sequences.items()
    }
    chosen = Chosen("caption", key, "video", "a clip", "detail", "What?", "Random words.")
    return Example(chosen, row.length, sequences)


def one(folder: Path, way: str) -> dict[str, Any]:
    """Train for some steps in this process; return seconds a step and bytes."""
    torch.set_num_threads(1)
    bench = Made(folder, 1, num_clips=1)
    settings, family = bench.settings(**{**COMMON, **WAYS[way]}), bench.family
    store = FeatureStore.open(bench.cache)
    key = next(iter(store))
    example = example_of(family, ClipTensors(store.read(key).tensors), key)
    half = load_language(family, settings, base_kind(settings), "cpu")
    collate = Collator(family, half.model, store)
    if way == WHOLE:
        collate = with_vision(bench, settings, collate)
    model = prepare(half.model, settings.training)
    return {"tokens": example.length, **steps(model, settings, example, collate, folder)}


def with_vision(bench: Bench, settings: Settings, collate: Collator) -> Collator:
    """Return what makes batches from pixels."""
    frames = read_clip(bench.videos[0], settings.sampling, 0.0, None)
    vision = load_half(bench.whole, "vision", dtype=torch.bfloat16).model
    pixels = bench.family.prepare(frames, torch.bfloat16)
    return FromPixels(collate.family, collate.model, collate.store, vision, pixels)


def steps(
    model: Any, settings: Settings, example: Example, collate: Collator, folder: Path
) -> dict[str, Any]:
    """Make the steps as `cogcache train` makes them; return what they took."""
    training, laps, levels = settings.training, [time.process_time()], [0]
    monitors: list[MemoryMonitor] = []
    data = Data([example], [], collate, STEPS)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = arguments_for(training, Path(out), data, "cpu")
        trainer = CaptionTrainer(model, arguments, training, data, Path(out), Stop())

        def observe(what: str, _: Mapping[str, Any]) -> None:
            if what != "step":
                return
            laps.append(time.process_time())
            if len(laps) == 2:
                levels[0] = sample().anonymous_bytes
                monitors.append(MemoryMonitor().__enter__())

        trainer.observers = [observe]
        with blocks_given_back():
            trainer.go()
        monitors[0].__exit__(None, None, None)
    taken = [after - before for before, after in pairwise(laps[1:])]
    peak = monitors[0].peak.anonymous_bytes
    found = {"step_s": median(taken), "held": levels[0], "activations": peak - levels[0]}
    spent = getattr(collate, "spent", [])
    return found | ({"encode_s": median(spent[1:])} if spent else {})


def in_processes(folder: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Measure each way so many times, all of them in turn."""
    found = defaultdict(list)
    for _ in range(repeats):
        for way in WAYS:
            start = [sys.executable, "-m", "benchmarks.training", str(folder), "--one", way]
            done = subprocess.run(start, stdout=subprocess.PIPE, text=True, check=True)
            line = done.stdout.splitlines()[-1]
            print(f"{way}: {line}", flush=True)
            found[way].append(json.loads(line))
    return found


def report(found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Print the table, and the ratios that were aimed at."""

    def middle(way: str, what: str) -> float:
        return median(each[what] for each in found[way])

    print(f"{found['bf16'][0]['tokens']} tokens\n")
    print("| way | processor seconds a step | over the repeats | activations, MB | time / bf16's |")
    print("| --- | --- | --- | --- | --- |")
    for way, all_of in found.items():
        seconds = [each["step_s"] for each in all_of]
        both = zip(all_of, found["bf16"], strict=True)
        ratio = median(each["step_s"] / plain["step_s"] for each, plain in both)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        held = f"{middle(way, 'activations') / 1e6:.0f}"
        print(f"| {way} | {median(seconds):.2f} | {spread} | {held} | {ratio:.2f} |")
    fewer = middle("bf16, no checkpointing", "activations") / middle("bf16", "activations")
    print(f"\nactivations without checkpointing: {fewer:.1f} times those with")
    print(f"of the whole model's step, its vision half takes {middle(WHOLE, 'encode_s'):.2f} s")


# ---- an estimate for full size ------------------------------------------------------------------


def full_size(repeats: int) -> None:
    """Time some blocks and layers of the flagship, and scale them to all of them."""
    torch.set_num_threads(1)
    blocks_s, layers_s = vision_blocks(repeats), decoder_layers(repeats)
    vision_s, language_s = blocks_s * FULL_BLOCKS / 2, layers_s * FULL_LAYERS / 2
    print(f"two vision blocks: {blocks_s:.1f} s; all {FULL_BLOCKS}: {vision_s:.0f} s")
    print(f"two decoder layers' step: {layers_s:.1f} s; all {FULL_LAYERS}: {language_s:.0f} s")
    print(f"estimate: whole / from the cache = {(vision_s + language_s) / language_s:.2f}")


def vision_blocks(repeats: int) -> float:
    """Return the seconds of two vision blocks, a frame after the other."""
    from benchmarks.random_checkpoint import CONFIG
    from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig
    from cogcache.models.cogvlm2.vision import Transformer

    config = CogVLM2VideoConfig(**CONFIG).vision_config
    config.num_hidden_layers = 2
    blocks = Transformer(config).bfloat16().eval()
    tokens = torch.randn(4, POSITIONS, config.hidden_size).bfloat16()

    def encode() -> None:
        with torch.inference_mode():
            blocks(tokens)

    return FRAMES / 4 * _median_s(encode, repeats)


def decoder_layers(repeats: int) -> float:
    """Return the seconds of two decoder layers: LoRA, checkpointing, forwards and backwards."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaModel

    from benchmarks.random_checkpoint import CONFIG
    from cogcache.training.lora import checkpoint_activations

    names = ("hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps")
    config = LlamaConfig(
        **{name: CONFIG[name] for name in names},
        num_key_value_heads=CONFIG["num_multi_query_heads"],
        num_hidden_layers=2,
        vocab_size=16,
    )
    decoder = LlamaModel(config).bfloat16().requires_grad_(False)
    checkpoint_activations(decoder)
    wide = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
    model = get_peft_model(decoder, wide)
    inputs = torch.randn(1, 1_620 + CAPTION_TOKENS, config.hidden_size).bfloat16()

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(inputs_embeds=inputs, use_cache=False).last_hidden_state.float().sum()
        loss.backward()

    return _median_s(step, repeats)


def _median_s(work: Any, repeats: int) -> float:
    work()
    taken = []
    for _ in range(repeats):
        began_s = time.process_time()
        work()
        taken.append(time.process_time() - began_s)
    return median(taken)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=list(WAYS))
    parser.add_argument("--full-size", action="store_true")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="training-"))
    if given.one:
        print(json.dumps(one(folder, given.one)))
    elif given.full_size:
        full_size(given.repeats)
    else:
        print(f"cache: {Made(folder, 1, num_clips=1).cache}", flush=True)
        report(in_processes(folder, given.repeats))


if __name__ == "__main__":
    main()
