"""Stage two on transformers and on vLLM, in turn: tokens a second, first caption, memory.

    python -m benchmarks.backends --python /opt/vllm/bin/python [--repeats 5] [--dtype bfloat16]

A random model of 50 M parameters with the flagship's proportions, random features of 16 clips of 24
frames, 8 prompts a clip and 64 new tokens each, greedy. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.recaption import prompts
from benchmarks.small import SIZES, write_checkpoint
from cogcache.errors import ClipError
from cogcache.generation import Decoder, Finished, Request, View, VllmDecoder, opening_of
from cogcache.models import ClipTensors, WholeModel, load_half, open_family
from cogcache.settings import Generation, Settings, load_settings
from cogcache.store import FeatureStore
from cogcache.system import MemoryMonitor

BACKENDS = ("transformers", "vllm")
ROWS = 16
FRAMES = 24


def settings_of(folder: Path, options: argparse.Namespace, backend: str) -> Settings:
    """Return the settings of one measurement."""
    given: dict[str, Any] = {"model": str(folder / "model"), "compute_dtype": options.dtype}
    given |= {"rotary_dtype": "float32", "quantization": "none", "clips_per_batch": ROWS}
    if backend == "vllm":
        given |= {"backend": "vllm", "backend_python": options.python, "kv_cache_gib": 1.0}
    return load_settings(None, given)


def prepare(folder: Path, clips: int) -> None:
    """Write the model, and features of clips that are not there."""
    write_checkpoint(folder / "model", SIZES)
    store = FeatureStore.create_or_open(folder / "cache")
    random = torch.Generator().manual_seed(0)
    for number in range(clips):
        rows = 0.5 * torch.randn((FRAMES, 66, SIZES.width), generator=random)
        store.write(f"{number:064x}", {"features": rows.bfloat16()}, {"texts": {}})


class Files:
    """Where the worker finds features."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def path_of(self, key: str) -> Path:
        """Return where a feature file lies."""
        return self.store.path_of(key)

    def refused(self, key: str, reason: str, problem: str) -> ClipError:
        """Return what is wrong with one."""
        return ClipError(reason, problem)


def groups(settings: Settings, store: FeatureStore, count: int) -> Iterator[list[Request]]:
    """Read clip after clip, and ask all prompts about it."""
    family, greedy = open_family(settings), Generation(max_new_tokens=64, retry=False)
    for key in store:
        # vLLM's worker reads the numbers itself.
        found = store.outline(key) if settings.inference.is_vllm else store.read(key)
        clip = ClipTensors(found.tensors)
        yield [Request(family.row(clip, text, "chat"), key, 0, greedy) for text in prompts(count)]


def measure(folder: Path, options: argparse.Namespace, backend: str) -> dict[str, float]:
    """Caption everything in this process, and what it starts; return what it took."""
    began = time.perf_counter()
    settings = settings_of(folder, options, backend)
    family, store = open_family(settings), FeatureStore.open(folder / "cache")
    with MemoryMonitor() as monitor:
        decoder: Decoder | VllmDecoder
        if backend == "vllm":
            decoder = _vllm(settings, folder, store)
        else:
            whole = WholeModel.of(family.checkpoint, **family.config_overrides(settings.language))
            dtype = getattr(torch, options.dtype)
            decoder = Decoder(load_half(whole, "language", dtype=dtype).model, family, ROWS)
        loaded = time.perf_counter()
        found = _timed(decoder.run(groups(settings, store, options.prompts)))
    peak_bytes = monitor.peak.host_bytes
    if isinstance(decoder, VllmDecoder):
        decoder.close()
        peak_bytes += decoder.peaks.host_bytes
    return {
        "tokens_per_s": found["tokens"] / (found["end"] - loaded),
        "first_caption_s": found["first"] - loaded,
        "load_s": loaded - began,
        "peak_bytes": peak_bytes,
        "tokens": found["tokens"],
    }


def _vllm(settings: Settings, folder: Path, store: FeatureStore) -> VllmDecoder:
    view = View.of(open_family(settings), settings.language)
    (folder / "view").mkdir(exist_ok=True)
    view.write(folder / "view")
    opening = opening_of(settings, folder / "view")
    decoder = VllmDecoder(opening, open_family(settings), Files(store), 2048)
    decoder.open(FRAMES * 70 + 128)
    return decoder


def _timed(finished: Iterator[Finished]) -> dict[str, float]:
    first, tokens = 0.0, 0
    for each in finished:
        first = first or time.perf_counter()
        tokens += len(each.tokens)
    return {"first": first, "tokens": float(tokens), "end": time.perf_counter()}


def in_turn(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Measure both backends, one after the other, as often as is asked for."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in BACKENDS}
    for _ in range(options.repeats):
        for name in BACKENDS:
            command = [sys.executable, "-m", "benchmarks.backends", *sys.argv[1:]]
            command += ["--one", name, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, done.stdout.splitlines()[-1], flush=True)
    return found


def table(found: dict[str, list[dict[str, float]]]) -> Sequence[str]:
    """Return the medians, a line a backend."""
    lines = ["| backend | tokens a second | first caption | loading | peak memory |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, runs in found.items():
        m = {key: median(run[key] for run in runs) for key in runs[0]}
        lines.append(
            f"| {name} | {m['tokens_per_s']:.0f} | {m['first_caption_s']:.1f} s | "
            f"{m['load_s']:.1f} s | {m['peak_bytes'] / 2**30:.2f} GiB |"
        )
    return lines


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="of vLLM's environment")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--one", choices=BACKENDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.folder, options, options.one)))
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), options.clips)
        print("\n".join(table(in_turn(Path(name), options))))


if __name__ == "__main__":
    main()
