"""How vLLM's worker is started: the Python, its environment, what it is asked to load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cogcache.generation.vllm.worker_process import Message
from cogcache.settings import Settings
from cogcache.units import GIB

ONLINE: Final = {"fp8": "fp8_per_channel"}
"""What vLLM calls kinds that it quantises to by itself; those of the view's config apart."""


@dataclass(frozen=True)
class Opening:
    """How a worker is started.

    Args:
        python: of vLLM's environment.
        environment: variables to set for the worker.
        asked: the message `open`, without the longest row.
        rows: most rows that are decoded together.
    """

    python: Path
    environment: Mapping[str, str]
    asked: Message
    rows: int


def opening_of(settings: Settings, view: Path) -> Opening:
    """Return how a worker is started as settings say.

    Args:
        settings: device, precision, memory, rows, and the Python; see `check_backend`.
        view: folder of what it loads.
    """
    backend, language = settings.inference, settings.language
    assert backend.backend_python is not None
    asked: Message = {
        "view": str(view),
        "dtype": language.compute_dtype,
        "device": settings.device.partition(":")[0],
        "kv_cache_bytes": int(backend.kv_cache_gib * GIB),
        "gpu_memory_share": backend.gpu_memory_share,
        "tensor_parallel": backend.tensor_parallel,
        "quantization": ONLINE.get(language.quantization),
    }
    environment = _environment(settings.device)
    return Opening(Path(backend.backend_python), environment, asked, language.clips_per_batch)


def _num_cores() -> int:
    """Return how many cores this process may use, which the worker takes over."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environment(device: str) -> dict[str, str]:
    """Return variables for a worker: offline, alone in its process, on the device that is named."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "cogcache",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    environment |= {
        name: value
        for name, value in {
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(_num_cores()),
        }.items()
        if name not in os.environ
    }
    kind, _, number = device.partition(":")
    if kind == "cuda" and number:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = (
            visible[int(number)] if int(number) < len(visible) and visible[0] else number
        )
    return environment
