"""How many rows a decoding step goes best with: measured once for a machine and a model.

A product with few rows mostly reads its weight, so that more rows cost next to nothing; where bf16
is not multiplied, kernels differ: 16 rows of packed int4 take seven times as long as one. What was
found is kept in the user's cache folder and is part of no key: rows do not depend on each other.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from cogcache.keys import Field, digest
from cogcache.system import processor, seal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLEARLY = 1.1
"""How many times as many rows a second fewer rows must give to be taken."""
REPEATS = 3
logger = logging.getLogger(__name__)


def rows_a_step(model: PreTrainedModel, most: int, depends_on: Mapping[str, Field]) -> int:
    """Return how many rows to decode together, up to `most`.

    Measured only where the processor multiplies no bf16: elsewhere more rows are always better.

    Args:
        model: the language half, all of it in memory.
        most: rows that memory has room for.
        depends_on: what makes another model of it: its weights' digest and the quantisation.
    """
    layer = _largest(model)
    if most == 1 or layer is None or processor().multiplies_bf16:
        return most
    seen = processor()
    machine: dict[str, Field] = {"processor": seen.name, "level": seen.level}
    machine |= {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    name = digest({**machine, "model": dict(depends_on)})
    file = folder() / "rows" / f"{name}.json"
    return best(_remembered(file, _candidates(most), layer, model.dtype))


def folder() -> Path:
    """Return the user's cache folder: `XDG_CACHE_HOME/cogcache`, by default `~/.cache/cogcache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cogcache"


def best(seconds: Mapping[int, float]) -> int:
    """Choose the number of rows that gives most rows a second; a larger one unless clearly less.

    Args:
        seconds: that a product takes, by its number of rows.

    Example:
        >>> best({1: 1.0, 2: 4.0, 4: 6.0})
        1
        >>> best({1: 1.0, 16: 7.0})
        16
    """
    rates = {rows: rows / max(spent, 1e-9) for rows, spent in seconds.items()}
    highest = max(rates.values())
    return max(rows for rows, rate in rates.items() if rate * CLEARLY >= highest)


def _candidates(most: int) -> list[int]:
    powers = [1 << power for power in range(most.bit_length())]
    return sorted({*powers, most})


def _largest(model: PreTrainedModel) -> nn.Linear | None:
    """Return the decoder's largest linear layer that has its weight in memory, on the CPU."""
    layers = [module for module in model.get_decoder().modules() if isinstance(module, nn.Linear)]
    in_memory = [each for each in layers if each.weight.numel() and each.weight.is_cpu]
    if len(in_memory) < len(layers):  # a step then waits for blocks that come from elsewhere
        return None
    return max(in_memory, key=lambda each: each.in_features * each.out_features, default=None)


def _remembered(
    file: Path, candidates: Sequence[int], layer: nn.Linear, dtype: torch.dtype
) -> dict[int, float]:
    """Return the seconds of each number of rows: what a file says, and what it lacks measured."""
    known: dict[int, float] = {}
    with suppress(OSError, RecursionError, ValueError, TypeError, AttributeError):
        known = {int(rows): float(spent) for rows, spent in json.loads(file.read_text()).items()}
    missing = [rows for rows in candidates if rows not in known]
    if missing:
        known |= measured(layer, missing, dtype)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            seal(file, json.dumps(known).encode())
        except OSError as error:
            logger.info("how many rows go best together cannot be kept: %s", error)
    return {rows: known[rows] for rows in candidates}


def measured(layer: nn.Linear, counts: Sequence[int], dtype: torch.dtype) -> dict[int, float]:
    """Return the seconds of a product with each number of rows, the least of three.

    Args:
        layer: on the CPU.
        counts: numbers of rows.
        dtype: of hidden states: what the layer is given as the model runs.
    """
    with torch.inference_mode():
        inputs = {rows: torch.ones(rows, layer.in_features, dtype=dtype) for rows in counts}
        return {rows: min(_times(layer, given)) for rows, given in inputs.items()}


def _times(work: Callable[[torch.Tensor], object], given: torch.Tensor) -> list[float]:
    work(given)
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work(given)
        found.append(time.perf_counter() - started)
    return found
