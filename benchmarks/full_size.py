"""The flagship's full size on this machine: what each stage takes, from the operating system.

    python -m benchmarks.full_size write FOLDER        write 25.0 GB of random weights
    python -m benchmarks.full_size vision FOLDER       one 24-frame video, resident weights
    python -m benchmarks.full_size language FOLDER     NF4, 8 new tokens, from the cached features
    python -m benchmarks.full_size whole FOLDER        the model in one piece
    python -m benchmarks.full_size remove FOLDER

With `--limit 10GiB` a stage runs inside a memory control group with that hard limit, its bf16
weights copied into anonymous memory as a card would hold them (a mapped file the kernel may
drop). Needs Linux, and root for the limit. Each prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cogcache.memory import MemoryMonitor
from cogcache.units import parse_bytes

GROUPS = Path("/sys/fs/cgroup/memory")
PROMPT = "Please describe this video in detail."
NUM_FRAMES = 24
NEW_TOKENS = 8
CACHE_KEY = "f" * 64


def write(folder: Path, _: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint."""
    from benchmarks.random_checkpoint import TOTAL_BYTES
    from benchmarks.random_checkpoint import write as write_checkpoint

    write_checkpoint(folder)
    return {"bytes": TOTAL_BYTES}


def vision(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Encode one video of 24 frames and cache its features."""
    import torch

    from cogcache.checkpoint import Checkpoint
    from cogcache.models.halves import WholeModel, load_half
    from cogcache.models.registry import family_of
    from cogcache.store import FeatureStore

    split, base = Laps(), status("RssAnon")
    family = family_of(Checkpoint.open(str(folder)))
    inputs = family.prepare(read_video(folder), torch.bfloat16)
    split.lap("decode")
    loaded = load_half(WholeModel.of(family.checkpoint), "vision", dtype=torch.bfloat16)
    if options.limit:
        make_anonymous(loaded.model)
    split.lap("load")
    (features,) = family.encode(loaded.model, [inputs], options.frames_per_batch)
    split.lap("encode")
    store = FeatureStore.create_or_open(folder / "cache")
    size_bytes = store.write(CACHE_KEY, features.tensors, {})
    split.lap("seal")
    return {
        "split_s": split.seconds,
        "base_bytes": base,
        "bytes_by_shard": dict(loaded.bytes_by_shard),
        "feature_bytes": size_bytes,
        "features": list(features.tensors["features"].shape),
    }


def language(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Generate a few tokens from the cached features with the language half in NF4."""
    import torch

    from cogcache.checkpoint import Checkpoint
    from cogcache.models.halves import WholeModel, load_half
    from cogcache.models.registry import family_of
    from cogcache.quantization import Quantization

    split, base = Laps(), status("RssAnon")
    family = family_of(Checkpoint.open(str(folder)))
    whole = WholeModel.of(family.checkpoint)
    quantization = Quantization(kind="nf4", double_quant=True)
    loaded = load_half(whole, "language", dtype=torch.bfloat16, quantization=quantization)
    if options.limit:
        make_anonymous(loaded.model)
    split.lap("load")
    tokens = generate(loaded.model, folder, split)
    assert loaded.quantization is not None
    return {
        "split_s": split.seconds,
        "base_bytes": base,
        "bytes_by_shard": dict(loaded.bytes_by_shard),
        "quantization": loaded.quantization.summary(),
        "new_tokens": len(tokens),
    }


def whole(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Do both with the whole model in one piece, in bf16."""
    import torch

    from cogcache.models.halves import load_whole

    split, base = Laps(), status("RssAnon")
    model = load_whole(str(folder), dtype=torch.bfloat16)
    if options.limit:
        make_anonymous(model)
    split.lap("load")
    tokens = generate(model, folder, split)
    return {"split_s": split.seconds, "base_bytes": base, "new_tokens": len(tokens)}


def remove(folder: Path, _: argparse.Namespace) -> dict[str, Any]:
    """Delete the checkpoint and the cache beside it."""
    shutil.rmtree(folder)
    return {}


class Laps:
    """Seconds from one lap to the next, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the time since the last lap."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now


def generate(model: Any, folder: Path, split: Laps) -> list[int]:
    """Generate from the cached features; the first step holds the prefill."""
    import torch

    from cogcache.checkpoint import Checkpoint
    from cogcache.models.cogvlm2 import layout
    from cogcache.models.family import ClipTensors, Row
    from cogcache.models.registry import family_of
    from cogcache.store import FeatureStore

    family = family_of(Checkpoint.open(str(folder)))
    features = FeatureStore.open(folder / "cache").read(CACHE_KEY).tensors
    frames, per_frame, _ = features["features"].shape
    # Random weights have no tokenizer: digits and the eleven tokens of the official prompt.
    ids = iter(range(15, 15 + frames))
    text = [14924, 25, 5321, 7664, 420, 2835, 304, 7872, 13, 22559, 25]
    encode = lambda part: [next(ids)] if part.isdigit() else text  # noqa: E731
    built = layout.build(encode, PROMPT, "chat", frames, per_frame, (128000, 128002))
    sequences = {
        "input_ids": torch.tensor(built.input_ids),
        "token_type_ids": torch.tensor(built.token_type_ids),
    }
    inputs = family.model_inputs([Row(ClipTensors(features), sequences)], model)
    split.lap("read")
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        split.lap("prefill")
        inputs = family.model_inputs([Row(ClipTensors(features), sequences)], model)
        output = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
        )
    split.lap(f"prefill_and_{NEW_TOKENS}_tokens")
    tokens: list[int] = output[0, len(built.input_ids) :].tolist()
    return tokens


def read_video(folder: Path) -> Any:
    """Write a real H.264 video of 25 s, 320 × 240, and read 24 frames of it."""
    import av
    import numpy as np

    from cogcache.settings_clips import Sampling
    from cogcache.video import read_clip

    path = folder / "clip.mp4"
    texture = np.random.default_rng(0).integers(0, 256, (60, 80 + 200, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(8 * 25):
            picture = texture[:, number : number + 80].repeat(4, 0).repeat(4, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return read_clip(path, Sampling(max_frames=NUM_FRAMES), 0.0, None)


def make_anonymous(model: Any) -> None:
    """Copy weights that are mapped from a file into memory of the process' own."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def status(field: str) -> int:
    """Return a field of this process' status in bytes, as the kernel has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


STAGES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "write": write,
    "vision": vision,
    "language": language,
    "whole": whole,
    "remove": remove,
}


def main() -> None:
    """Run one stage; with a limit, in a child inside a control group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=parse_bytes)
    parser.add_argument("--frames-per-batch", type=int, default=NUM_FRAMES)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.limit and not options.inside:
        print(json.dumps(run_limited(options.limit)))
        return
    started = time.perf_counter()
    with MemoryMonitor() as monitor:
        found = STAGES[options.stage](options.folder, options)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found |= {
        "total_s": round(time.perf_counter() - started, 1),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "sampled_peak_anonymous_bytes": monitor.peak.anonymous_bytes,
        "anonymous_bytes_at_end": status("RssAnon"),
        "file_bytes_at_end": status("RssFile"),
    }
    print(json.dumps({"stage": options.stage, **found}))


def run_limited(limit_bytes: int) -> dict[str, Any]:
    """Run this very command inside a control group and return what it said and took."""
    group = GROUPS / f"cogcache-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        command = [sys.executable, "-m", "benchmarks.full_size", *sys.argv[1:], "--inside"]
        join = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", join, "sh", *command], stdout=subprocess.PIPE, text=True, check=False
        )
        found: dict[str, Any] = {"limit_bytes": limit_bytes, "exit_status": done.returncode}
        found["group_peak_bytes"] = int((group / "memory.max_usage_in_bytes").read_text())
        found["anonymous_limit_hits"] = int((group / "memory.failcnt").read_text())
        return found | (json.loads(done.stdout.splitlines()[-1]) if done.stdout else {})
    finally:
        group.rmdir()


if __name__ == "__main__":
    main()
