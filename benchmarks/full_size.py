"""Runs CogVLM2 at full size on this machine, and measures each stage from outside.

    python -m benchmarks.full_size write FOLDER          write 25.0 GB of random weights
    python -m benchmarks.full_size vision FOLDER         encode one 24-frame video
    python -m benchmarks.full_size language FOLDER       8 new tokens from the cached features
    python -m benchmarks.full_size language FOLDER --quantization int4 --head int4 --memory 5.5GiB
                                                         the same in int4, planned for 5.5 GiB
    python -m benchmarks.full_size train FOLDER --memory 12GiB --limit 12GiB [--frames 1]
                                                         two QLoRA steps on the cached features
    python -m benchmarks.full_size whole FOLDER          the model in one piece
    python -m benchmarks.full_size search vision FOLDER --between 8GiB 10GiB
                                                         the smallest limit at which a stage runs
    python -m benchmarks.full_size remove FOLDER

`--memory` is what the plan goes by, as on the command line of cogcache. With `--limit 10GiB` a
stage runs inside a memory control group with that hard limit, what stays of its weights copied
into anonymous memory as a card would hold them (a mapped file the kernel may drop). Needs Linux,
and root for the limit. Each prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.control_group import run_limited, status
from cogcache.settings.settings import Settings, load_settings
from cogcache.stages.runs.report import Counts, RunReport, Timings
from cogcache.system import processor
from cogcache.system.heap import blocks_given_back
from cogcache.system.memory_monitor import MemoryMonitor
from cogcache.units import format_bytes, parse_bytes

PROMPT = "Please describe this video in detail."
NUM_FRAMES = 24
NEW_TOKENS = 8
CACHE_KEY = "f" * 64
STEP_BYTES = 1 << 28
"""A quarter of a GiB: how closely a smallest size is found."""


def write(folder: Path, _: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint."""
    from benchmarks.random_checkpoint import TOTAL_BYTES
    from benchmarks.random_checkpoint import write as write_checkpoint

    write_checkpoint(folder)
    return {"bytes": TOTAL_BYTES}


def vision(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Encode one video of 24 frames and cache its features."""
    import torch

    from cogcache.models.checkpoints.checkpoint import Checkpoint
    from cogcache.models.registry import family_of
    from cogcache.planning.fitted import Fitted, VisionLoader
    from cogcache.store.store import FeatureStore

    stage = Stage.begin(folder, options, frames_per_batch=NUM_FRAMES)
    family = family_of(Checkpoint.open(str(folder)))
    inputs = family.prepare(read_video(folder), torch.bfloat16)
    stage.split.lap("decode")
    half = Fitted(VisionLoader(family, stage.settings), stage.report.note_load)
    stage.loaded(half.model, options)
    frames = half.choice.frames_per_batch
    (features,) = family.encode(half.model, [inputs], frames)
    stage.split.lap("encode")
    store = FeatureStore.create_or_open(folder / "cache")
    size_bytes = store.write(CACHE_KEY, features.tensors, {})
    stage.split.lap("seal")
    return stage.found() | {
        "resident_layers": half.choice.resident_layers,
        "frames_per_batch": frames,
        "feature_bytes": size_bytes,
        "features": list(features.tensors["features"].shape),
    }


def language(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Generate a few tokens from the cached features with the language half in 4 bits."""
    from cogcache.generation.decoder import Decoder
    from cogcache.models.checkpoints.checkpoint import Checkpoint
    from cogcache.models.registry import family_of
    from cogcache.planning.fitted import Fitted, LanguageLoader

    stage = Stage.begin(
        folder,
        options,
        quantization=options.quantization,
        head_quantization=options.head,
        clips_per_batch=1,
        max_new_tokens=NEW_TOKENS,
    )
    family = family_of(Checkpoint.open(str(folder)))
    request = request_for(folder, stage.settings, options.frames)
    half = Fitted(
        LanguageLoader(family, stage.settings, request.row.length), stage.report.note_load
    )
    stage.loaded(half.model, options)
    decoder = Decoder(half.model, family, half.choice.clips_per_batch)
    (made,) = decoder.run([[request]])
    stage.split.lap("generate")
    return stage.found() | {
        "resident_layers": half.choice.resident_layers,
        "embedding_waits": half.choice.embedding_waits,
        "quantization": stage.report.quantization,
        "processor": processor().level,
        "prefill_s": round(decoder.statistics.prefill_s, 1),
        "seconds_a_token": round(decoder.statistics.decode_s / max(NEW_TOKENS - 1, 1), 2),
        "new_tokens": len(made.tokens),
    }


def train(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Take two steps of training on a caption of random tokens behind the cached features."""
    from benchmarks import training_at_full_size as steps

    stage = Stage.begin(
        folder, options, **steps.SETTINGS, method=options.method, quantization=options.quantization
    )
    request = request_for(folder, stage.settings, options.frames)
    steps.plan(stage, request.row)
    taken = steps.take(stage, request.row, folder, options)
    return stage.found() | taken | {"row_tokens": request.row.length + steps.CAPTION_TOKENS}


def whole(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Do both with the whole model in one piece, in bf16."""
    import torch

    from cogcache.generation.decoder import Decoder
    from cogcache.models.checkpoints.checkpoint import Checkpoint
    from cogcache.models.halves.load import load_whole
    from cogcache.models.registry import family_of

    stage = Stage.begin(folder, options)
    model = load_whole(str(folder), dtype=torch.bfloat16)
    stage.loaded(model, options)
    family = family_of(Checkpoint.open(str(folder)))
    family.encode(model, [family.prepare(read_video(folder), torch.bfloat16)], NUM_FRAMES)
    stage.split.lap("encode")
    (made,) = Decoder(model, family, 1).run([[request_for(folder, stage.settings)]])
    stage.split.lap("generate")
    return stage.found() | {"new_tokens": len(made.tokens)}


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


class Stage:
    """One stage at work: its settings, times, and memory at its turning points."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.split = settings, Laps()
        self.report = RunReport(0, "full size", settings.model, Counts(), Timings())
        self.base = status("RssAnon")
        self.monitor = MemoryMonitor()
        self.monitor.__enter__()
        self.load_peak = self.after_load = 0

    @classmethod
    def begin(cls, folder: Path, options: argparse.Namespace, **settings: object) -> Stage:
        """Start with the settings of a run whose `--memory` is the one given."""
        import torch  # noqa: F401 - what it takes is no part of the stage

        if options.stage == "train":  # nor is what its libraries take, as with `cogcache train`
            import bitsandbytes  # noqa: F401

            from cogcache.training.learning import Run  # noqa: F401

        asked = {"model": str(folder), "memory": options.memory, "device": "cpu", **settings}
        return cls(load_settings(None, asked))

    def loaded(self, model: Any, options: argparse.Namespace) -> None:
        """Note what loading took, and copy what stays into memory of the process' own."""
        self.after_load = status("RssAnon")
        self.load_peak = self.monitor.peak.anonymous_bytes
        self.split.lap("load")
        with blocks_given_back():
            if options.limit:
                make_anonymous(model)
        self.split.lap("copy")

    def found(self) -> dict[str, Any]:
        """Return what was measured, and how far from it the plan is."""
        self.monitor.__exit__(None, None, None)
        peak, report = self.monitor.peak.anonymous_bytes, self.report
        planned = report.planned.peak_bytes + self.base if report.planned else None
        return {
            "memory": self.settings.memory,
            "split_s": self.split.seconds,
            "base_bytes": self.base,
            "load_peak_anonymous_bytes": self.load_peak,
            "loaded_anonymous_bytes": self.after_load,
            "peak_anonymous_bytes": peak,
            "peak_file_bytes": self.monitor.peak.file_bytes,
            "planned_bytes": planned,
            "plan_error": round(planned / peak - 1, 3) if planned else None,
            "bytes_by_shard": dict(report.bytes_by_shard),
            "notes": report.notes,
        }


def request_for(folder: Path, settings: Settings, num_frames: int = NUM_FRAMES) -> Any:
    """Return the official prompt about the cached features of the first frames."""
    import torch

    from cogcache.generation.requests import Request
    from cogcache.models.cogvlm2 import layout
    from cogcache.models.family import ClipTensors, PromptRow
    from cogcache.store.store import FeatureStore

    stored = FeatureStore.open(folder / "cache").read(CACHE_KEY).tensors
    features = {"features": stored["features"][:num_frames].contiguous()}
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
    return Request(PromptRow(ClipTensors(features), sequences), CACHE_KEY, 0, settings.generation)


def read_video(folder: Path) -> Any:
    """Write a real H.264 video of 25 s, 320 × 240, and read 24 frames of it."""
    import av
    import numpy as np

    from cogcache.settings.stage_one import Sampling
    from cogcache.video.reading import read_clip

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
    """Copy weights that are mapped from a file into memory of the process' own.

    What waits elsewhere is no parameter, or has no values, and stays where it is.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != "meta":
            tensor.data = tensor.data.clone()


def search(stage: str, options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Find the smallest limit at which a stage runs to its end, by halving.

    Args:
        stage: its name.
        options: `between`: a limit at which it does not run, and one at which it does; with
            `memory` "limit" the plan goes by each limit.
        arguments: others of the stage.
    """
    low, high = (parse_bytes(text) // STEP_BYTES for text in options.between)
    tried = {}
    while high - low > 1:
        middle = (low + high) // 2
        limit = f"{middle * STEP_BYTES}B"
        memory = limit if options.memory == "limit" else options.memory
        command = [stage, str(options.folder), "--memory", memory, "--limit", limit, *arguments]
        found = run_limited(middle * STEP_BYTES, "benchmarks.full_size", command)
        name = format_bytes(middle * STEP_BYTES)
        tried[name] = {key: found.get(key) for key in ("exit_status", "peak_anonymous_bytes")}
        low, high = (low, middle) if found["exit_status"] == 0 else (middle, high)
    return {"search": stage, "smallest_bytes": high * STEP_BYTES, "tried": tried}


STAGES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "write": write,
    "vision": vision,
    "language": language,
    "train": train,
    "whole": whole,
    "remove": remove,
}


def main() -> None:
    """Run one stage; with a limit, in a child inside a control group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*STAGES, "search"])
    parser.add_argument("of", nargs="?", choices=("vision", "language", "train", "whole"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=parse_bytes)
    parser.add_argument("--memory", default="auto")
    parser.add_argument("--quantization", default="nf4", help="of the decoder's layers")
    parser.add_argument("--head", default="none", help="precision of the output head")
    parser.add_argument("--frames", type=int, default=NUM_FRAMES, help="of the cached ones")
    parser.add_argument("--method", default="lora", help="of training")
    parser.add_argument("--between", nargs=2, default=("1GiB", "16GiB"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    started = time.perf_counter()
    if options.stage == "search":
        precisions = ["--head", options.head, "--quantization", options.quantization]
        found = search(options.of, options, precisions)
    elif options.limit and not options.inside:
        command = [options.stage, str(options.folder), "--memory", options.memory]
        command += ["--quantization", options.quantization, "--method", options.method]
        command += ["--frames", f"{options.frames}"]
        command += ["--head", options.head, "--limit", f"{options.limit}B"]
        found = run_limited(options.limit, "benchmarks.full_size", command)
    else:
        found = {"stage": options.stage, **STAGES[options.stage](options.folder, options)}
    print(json.dumps(found | {"total_s": round(time.perf_counter() - started, 1)}))


if __name__ == "__main__":
    main()
