"""A worker that speaks vLLM's protocol over real files, and makes tokens up: see `tokens_for`.

All but the engine is the worker's own code. Run as a program it takes its orders from a file that
`STANDIN` names: JSON with any of
    vllm          the version to say it has
    die_after     tokens after which the process kills itself
    deaths        how many processes do so, one after another
    held          how it says that it holds layers
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cogcache_vllm import worker
from cogcache_vllm.features import Bits

PACKAGE = Path(worker.__file__).parents[1]
VOCABULARY = 512
"""Of `tiny`."""
LENGTH = 6
"""Tokens of a caption, without the one that ends it."""


def tokens_for(
    ids: list[int], positions: list[list[int]] | None, rows: Mapping[str, bytes]
) -> list[int]:
    """Return made-up tokens that depend on all that a request says: other input, other tokens."""
    told = hashlib.sha256(json.dumps([ids, positions]).encode())
    for name in sorted(rows):
        told.update(rows[name])
    return [10 + byte for byte in told.digest()[:LENGTH]]


def write_python(folder: Path, **orders: Any) -> Path:
    """Write what stands for the Python of vLLM's environment, and obeys orders; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orders.json").write_text(json.dumps(orders))
    python = folder / "python"
    environment = f'STANDIN="{folder}/orders.json" PYTHONPATH="{PACKAGE}"'
    python.write_text(f'#!/bin/sh\n{environment} exec "{sys.executable}" "{__file__}"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


class StandIn:
    """Makes one token of each request a step, of at most so many requests as there are rows."""

    def __init__(self, asked: dict[str, Any]) -> None:
        view = Path(asked["view"])
        self.rows = asked["rows"]
        listed = json.loads((view / "cogcache.json").read_text())["tensors"]
        sizes = [_size(*place) for place in listed.values()]
        self.facts = {
            "num_tensors": len(sizes), "num_bytes": sum(sizes), "device": "cpu",
            "kv_tokens": 4096, "versions": {"vllm": "0.32.0"}, "base_bytes": worker.peak_bytes(),
            "layers": {}, "weight_error": 0.0, **_orders()[1].get("held", {}),
        }  # fmt: skip
        self.left: dict[int, tuple[list[int], int]] = {}
        self.made = 0

    def add(self, request: dict[str, Any], tensors: dict[str, Bits]) -> None:
        rows = {name: bits.array.tobytes() for name, bits in tensors.items()}
        tokens = tokens_for(request["ids"], request["positions"], rows)
        tokens = [*tokens, request["sampling"]["stop_ids"][0]]
        if look := request.get("look"):
            expected = np.full((look["places"], VOCABULARY), -math.log(VOCABULARY), np.float32)
            save_file({"expected": expected}, look["path"])
            _log({"look": look["places"]})
        self.left[request["id"]] = tokens[: request["sampling"]["max_tokens"]], 0
        held_bytes = worker.peak_bytes()
        _log({"prompt": len(request["ids"]), "in_hand": len(self.left), "held_bytes": held_bytes})

    def abort(self, request: int) -> None:
        self.left.pop(request, None)
        _log({"aborted": request})

    def is_busy(self) -> bool:
        return bool(self.left)

    def step(self) -> list[worker.Output]:
        found = []
        for number, (tokens, at) in list(self.left.items())[: self.rows]:
            self.made += 1
            _obey(self.made)
            ended = None
            if at + 1 == len(tokens):
                ended = "stop"
                del self.left[number]
            else:
                self.left[number] = tokens, at + 1
            found.append(worker.Output(number, [tokens[at]], ended))
        return found

    def measured(self) -> dict[str, Any]:
        return {}


def _size(file: str, name: str) -> int:
    with Path(file).open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    begin, end = header[name]["data_offsets"]
    return int(end - begin)


def _orders() -> tuple[Path, dict[str, Any]]:
    path = Path(os.environ["STANDIN"])
    return path, json.loads(path.read_text())


def _log(entry: dict[str, int]) -> None:
    with Path(os.environ["STANDIN"]).with_name("log").open("a") as file:
        file.write(json.dumps({**entry, "pid": os.getpid()}) + "\n")


def _obey(made: int) -> None:
    path, orders = _orders()
    if orders.get("deaths", 0) and made > orders["die_after"]:
        path.write_text(json.dumps({**orders, "deaths": orders["deaths"] - 1}))
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    version = _orders()[1].get("vllm", "0.32.0")
    worker.versions = lambda: {"vllm": version} if version else {}
    worker.main(StandIn)
