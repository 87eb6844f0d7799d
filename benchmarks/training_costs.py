"""What a step of training takes at the 50 M model: memory and time of each way, side by side.

    python -m benchmarks.training_costs [FOLDER] [--steps 3] [--threads 1] [WAY ...]

Each way is a process of its own: one clip of 24 frames and one caption a step, some 1,700 tokens.
Seconds are those of the processor, the first step left out. Activations are the most anonymous
memory while training above what there is once the model is loaded; `plan --train` says how much it
expects. `whole` is what trainers do that know no cache: it reads the video and runs the frozen
vision half for each step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.small import Bench
from benchmarks.training_at_full_size import CAPTION_TOKENS, example_of
from cogcache.models import load_half
from cogcache.planning import plan_training
from cogcache.settings.settings import Settings
from cogcache.store.store import FeatureStore
from cogcache.system import Stop
from cogcache.system.memory_monitor import MemoryMonitor
from cogcache.training import Record, base_kind
from cogcache.training.learning import Run
from cogcache.video.reading import read_clip

PLAIN = {"gradient_checkpointing": False}
WAYS: dict[str, dict[str, Any]] = {
    "NF4, bf16": {"quantization": "nf4"},
    "NF4, bf16, no checkpointing": {"quantization": "nf4", **PLAIN},
    "NF4, fp32": {"quantization": "nf4", "precision": "fp32"},
    "bf16": {"quantization": "none"},
    "bf16, no checkpointing": {"quantization": "none", **PLAIN},
    "fp32": {"quantization": "none", "precision": "fp32"},
    "fp32, no checkpointing": {"quantization": "none", "precision": "fp32", **PLAIN},
    "NF4, bf16, whole": {"quantization": "nf4"},
}
COMMON = {
    "device": "cpu", "accumulate": 1, "tokens_per_batch": 256, "eval_share": 0.0, "samples": 0,
    "save_every": 1000,
}  # fmt: skip


class Encoding:
    """Stands where the cache is, and encodes the video of a clip each time it is asked for."""

    def __init__(self, bench: Bench, settings: Settings) -> None:
        self.bench, self.settings = bench, settings
        self.half = load_half(bench.whole, "vision").model.eval()

    def read(self, _: str) -> Any:
        """Return a clip's features, made anew."""
        frames = read_clip(self.bench.videos[0], self.settings.sampling, 0.0, None)
        inputs = self.bench.family.prepare(frames, torch.bfloat16)
        (made,) = self.bench.family.encode(self.half, [inputs], 24)
        return SimpleNamespace(tensors=made.tensors, attributes={"texts": {}})


class Watched(Run):
    """A run that tells when its weights are there."""

    loaded: Callable[[], object]

    def _load(self) -> Any:
        half = super()._load()
        self.loaded()
        return half


def one(bench: Bench, way: str, steps: int) -> dict[str, float]:
    """Take some steps in one way."""
    settings = bench.settings(**COMMON, **WAYS[way], max_steps=steps)
    store: Any = FeatureStore.open(bench.cache)
    key = next(iter(store))
    example = example_of(bench.family.row(bench.features[0], "What happens in it?", "chat"), key)
    example.sequences["input_ids"][example.prompt_length :] %= 4000
    if way.endswith("whole"):
        store = Encoding(bench, settings)
    record = Record.of(settings, bench.family.name, "0" * 64, [example.chosen], [])
    times: list[float] = [time.process_time()]

    def observe(what: str, _: Any) -> None:
        if what == "step":
            times.append(time.process_time())

    out = bench.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    run = Watched(
        settings, bench.family, store, [example], [], out, "cpu", record, Stop(), [observe]
    )
    before: list[int] = []
    with MemoryMonitor() as monitor:
        run.loaded = lambda: before.append(_anonymous())
        run.learn()
    kind = base_kind(settings)
    planned = plan_training(bench.family, settings, kind, example.length, CAPTION_TOKENS)
    return {
        "seconds": median(later - earlier for earlier, later in pairwise(times[1:])),
        "above_bytes": monitor.peak.anonymous_bytes - before[0],
        "planned_bytes": planned.peak_bytes - planned.weights_bytes,
    }


def _anonymous() -> int:
    from benchmarks.control_group import status

    return status("RssAnon")


def main() -> None:
    """Measure each way in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", metavar="WAY")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=[*WAYS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="training-costs-"))
    bench = Bench(folder, 1, num_clips=1)
    if given.one:
        bench.__dict__ |= {"model": str(folder / "model"), "cache": folder / "cache"}
        print(json.dumps(one(bench, given.one, given.steps)))
        return
    _ = bench.model, bench.cache
    print("| way | seconds a step | above the weights | plan |\n| --- | --- | --- | --- |")
    for way in given.ways or WAYS:
        more = [f"--folder={folder}", f"--steps={given.steps}", f"--threads={given.threads}"]
        command = [sys.executable, "-m", "benchmarks.training_costs", *more, "--one", way]
        found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        sizes = [f"{found[name] / 1e6:.0f} MB" for name in ("above_bytes", "planned_bytes")]
        print(f"| {way} | {found['seconds']:.2f} | {' | '.join(sizes)} |", flush=True)


if __name__ == "__main__":
    main()
