"""Checks of an installation: versions, 4-bit arithmetic, decoders, files, disk, device."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path

from cogcache.errors import CogcacheError
from cogcache.stages import versions
from cogcache.system import (
    available_bytes,
    install_line,
    pick_device,
    processor,
    scratch_folder,
    version_of,
)
from cogcache.units import GIB, format_bytes

MIN_FREE_BYTES = 2 * GIB
MIN_MEMORY_BYTES = 2 * GIB
HUB_PATIENCE_S = 3.0
EXTRA_MODULES = {
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "scenes": ("scenedetect", "cv2"),
    "semantic": ("sentence_transformers", "usearch"),
    "structured": ("jsonschema", "llguidance"),
    "train": ("peft",),
    "web": ("jinja2", "starlette", "uvicorn"),
}
"""The packages of each extra."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    check: str
    ok: bool
    found: str


class NotWell(Exception):
    """Raised by a check that found a fault; its text says which."""


def examine(cache: Path | None = None, backend_python: Path | None = None) -> list[Check]:
    """Run all checks; none changes anything outside a temporary folder.

    Args:
        cache: folder whose disk is looked at; the current one where None.
        backend_python: of vLLM's environment, which is tried where it is named.
    """
    others = [] if backend_python is None else [_run("vLLM", lambda: _vllm(backend_python))]
    return [
        *others,
        _run("versions", lambda: ", ".join(f"{k} {v}" for k, v in versions().items())),
        _run("transformers", _transformers),
        _run("device", _device),
        _run("processor", _processor),
        _run("products on the CPU", _products),
        _run("4-bit product against bf16", _product),
        _run("decord", lambda: _decodes("decord")),
        _run("PyAV", lambda: _decodes("pyav")),
        _run("feature file", _feature_file),
        _run("full-text search", _full_text),
        _run("model tiny", _tiny),
        _run("main memory", _main_memory),
        _run("disk", lambda: _disk(cache or Path.cwd())),
        _run("extras", _extras),
        _run("hub", _hub),
        _run("CUDA and NVML", _cuda),
    ]


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (NotWell, CogcacheError, ImportError, OSError, RuntimeError) as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


def _transformers() -> str:
    """Say whether all families were tested with the installed release of transformers."""
    from cogcache.models import PASSED, minor_of

    installed, tried = version_of("transformers"), ", ".join(PASSED)
    if installed in PASSED:
        return f"{installed}: what families give was compared with their own releases on it"
    if minor_of(installed) in map(minor_of, PASSED):
        return f"{installed}: never tried; {tried} were, which differ by corrections alone"
    raise NotWell(f"{installed} was never tried, only {tried}: install one of these")


def _main_memory() -> str:
    free = available_bytes()
    if free < MIN_MEMORY_BYTES:
        raise NotWell(f"{format_bytes(free)} are free; close other programs, or give --memory")
    return f"{format_bytes(free)} free to this process"


def _extras() -> str:
    """Name the installed extras, and the command that installs the others."""
    there = [name for name, modules in EXTRA_MODULES.items() if all(map(find_spec, modules))]
    absent = [name for name in EXTRA_MODULES if name not in there]
    found = f"there: {', '.join(there) or 'none'}"
    return found if not absent else f"{found}; the others: {install_line(*absent)}"


def _hub() -> str:
    """Check that the hub can be reached, unless this machine is set to offline."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return "offline, as HF_HUB_OFFLINE says: models are folders, or cached"
    try:
        with socket.create_connection(("huggingface.co", 443), timeout=HUB_PATIENCE_S):
            return "reachable"
    except OSError as error:
        return f"not reachable ({error}): give --model a folder, or set HF_HUB_OFFLINE=1"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "no CUDA device" if built is None else f"no CUDA device; torch has CUDA {built}"
    nvml = "NVML there" if find_spec("pynvml") else f"no NVML: {install_line('nvml')}"
    return f"{torch.cuda.device_count()} CUDA devices, {nvml}"


def _device() -> str:
    device = pick_device("auto")
    if device == "cpu":
        return "cpu (no GPU found; everything runs, slower)"
    import torch

    return f"{device}: {torch.cuda.get_device_name()}" if device.startswith("cuda") else device


def _processor() -> str:
    """Name the processor features that speed depends on."""
    seen = processor()
    return f"{seen.name}: {seen.level}"


def _products() -> str:
    """Time one product of each kind of weight: which is fast depends on the processor."""
    from cogcache.models import (
        PRODUCT_SIDE,
        WIDE_PRODUCT_ROWS,
        product_times_s,
        wide_product_times_s,
    )

    one, wide = product_times_s(), wide_product_times_s()
    side = f"{PRODUCT_SIDE:,} × {PRODUCT_SIDE:,}"
    return f"{side}, one row: {_in_ms(one)}; {WIDE_PRODUCT_ROWS} rows: {_in_ms(wide)}"


def _in_ms(seconds: Mapping[str, float]) -> str:
    """List times in milliseconds, the shortest first."""
    ordered = sorted(seconds.items(), key=itemgetter(1))
    return ", ".join(f"{kind} {1000 * spent:.2f} ms" for kind, spent in ordered)


def _product() -> str:
    """Multiply with a 4-bit layer and with the same weights in bf16."""
    import torch

    from cogcache.models import Quantization, dequantized, quantized_linear

    torch.manual_seed(0)
    device = pick_device("auto")
    layer = quantized_linear(torch.randn(256, 256) / 16, None, Quantization(), device)
    twin = dequantized(layer).to(torch.bfloat16)
    x = torch.randn(1, 256, dtype=torch.bfloat16, device=device)
    with torch.inference_mode():
        expected = x @ twin.T
        error = float((layer(x) - expected).float().norm() / expected.float().norm())
    if not error < 0.02:
        raise NotWell(f"products differ by {error:.3f}; install bitsandbytes anew")
    return f"relative difference {error:.4f} on {device}"


def _decodes(decoder: str) -> str:
    """Write a short H.264 clip and read it with one decoder."""
    import numpy as np

    from cogcache.selftest.shapes import draw_scene, write_clip
    from cogcache.video import decord_frames, index_frames, pyav_frames

    with scratch_folder() as folder:
        path = folder / "clip.mp4"
        write_clip(draw_scene(np.random.default_rng(0)), path)
        index, numbers = index_frames(path), [0, 10, 20]
        if decoder == "decord":
            frames = decord_frames(path, index, numbers)
        else:
            frames, _ = pyav_frames(path, index, numbers)
    if frames is None:
        raise NotWell("a plain H.264 clip cannot be read; PyAV serves in its place")
    return f"{len(frames)} frames of {frames.shape[2]} × {frames.shape[1]}"


def _feature_file() -> str:
    import torch

    from cogcache.store import FeatureStore

    features = torch.randn(4, 66, 64).bfloat16()
    with scratch_folder() as folder:
        store = FeatureStore.create_or_open(folder / "cache")
        store.write("0" * 64, {"features": features}, {})
        if not torch.equal(store.read("0" * 64).tensors["features"], features):
            raise NotWell("features came back changed; install h5py and hdf5plugin anew")
    return "bf16 written, read back and equal"


def _vllm(python: Path) -> str:
    from cogcache.selftest.backend_check import check_environment

    return check_environment(python)


def _full_text() -> str:
    import sqlite3

    with scratch_folder() as folder:
        connection = sqlite3.connect(folder / "try.sqlite")
        connection.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='trigram')")
        connection.close()
    return f"SQLite {sqlite3.sqlite_version} with FTS5"


def _tiny() -> str:
    from cogcache.models import Checkpoint

    checkpoint = Checkpoint.open("tiny")
    checkpoint.tensors(list(checkpoint.weight_map))
    return f"{len(checkpoint.weight_map)} tensors, {format_bytes(checkpoint.total_bytes)}"


def _disk(folder: Path) -> str:
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise NotWell(f"{format_bytes(free)} free at {existing}; give a cache elsewhere")
    return f"{format_bytes(free)} free at {existing}"
