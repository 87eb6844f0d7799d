"""Writes a checkpoint of random weights with CogVLM2's exact names, shapes, types and shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
POOL = 1 << 25
"""Random values that all weights are cut from, at offsets of their own: drawing 12.5 billion
would take longer than everything that is measured."""
CONFIG = json.loads((GOLDEN / "published-config.json").read_text())
TOTAL_BYTES = 25_015_065_088


@dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint."""

    name: str
    shard: int
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in bfloat16."""
        return 2 * prod(self.shape)


def published_entries() -> list[Entry]:
    """Return all tensors as they are published, in the order of their names."""
    content = json.loads((GOLDEN / "published-tensors.json").read_text())
    entries = [
        Entry(template.format(layer), shard, tuple(shape))
        for shard, template, first, last, shape in content["tensors"]
        for layer in range(first, last + 1)
    ]
    return sorted(entries, key=lambda entry: entry.name)


def write(folder: Path) -> Path:
    """Write the checkpoint, 25.0 GB, and return its folder.

    Raises:
        OSError: the disk has not room enough.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < 1.1 * TOTAL_BYTES:
        raise OSError(f"{folder} has no room for {TOTAL_BYTES / 1e9:.0f} GB")
    entries = published_entries()
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    for shard in sorted({entry.shard for entry in entries}):
        _write_shard(folder / _shard(shard), [e for e in entries if e.shard == shard], pool)
    weight_map = {entry.name: _shard(entry.shard) for entry in entries}
    index = {"metadata": {"total_size": TOTAL_BYTES}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    return folder


def _shard(number: int) -> str:
    return f"model-{number:05}-of-00006.safetensors"


def _write_shard(path: Path, entries: list[Entry], pool: torch.Tensor) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        offsets = [offset, offset + entry.num_bytes]
        header[entry.name] = {"dtype": "BF16", "shape": entry.shape, "data_offsets": offsets}
        offset += entry.num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            for block in _values(entry, pool):
                file.write(block.view(torch.uint16).numpy().astype(np.uint16).tobytes())


def _values(entry: Entry, pool: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's values in blocks; scaled so that activations stay finite."""
    last = entry.name.rpartition(".")[2]
    if entry.name.endswith("inv_freq"):
        yield (500_000.0 ** -(torch.arange(64) / 64)).bfloat16()
        return
    if "norm" in entry.name:
        yield torch.full(entry.shape, 1.0 if last == "weight" else 0.0).bfloat16()
        return
    fan_in = prod(entry.shape[1:]) if len(entry.shape) > 1 else 1
    scale = 0.02 if "embed" in entry.name or fan_in == 1 else fan_in**-0.5
    remaining = prod(entry.shape)
    start = hash_of(entry.name) % (POOL // 2)
    while remaining:
        block = pool[start : start + min(remaining, POOL - start)]
        yield (block * scale).bfloat16()
        remaining -= len(block)
        start = 0


def hash_of(name: str) -> int:
    """Return a number that is the same in every run."""
    return int.from_bytes(name.encode(), "little") % 1_000_003
