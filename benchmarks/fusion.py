"""Measures what torch.compile gains for the vision half's blocks and for a decoding step.

    python -m benchmarks.fusion vision    # blocks of the flagship's width, bfloat16, random
    python -m benchmarks.fusion decode    # a random model of 50 M parameters, one column a step

Ways are timed in turn, in processor seconds of one thread, which other work on the machine hardly
touches; printed are medians with extremes, what compiling itself took by the wall, and how far the
numbers are apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.small import Bench
from cogcache.models.cogvlm2.configuration import CogVLM2VisionConfig
from cogcache.models.cogvlm2.vision import Transformer

BLOCKS = 2
KEYS = 1640


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time each way, one after the other, `repeats` times over."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.process_time()
            way()
            times[name].append(time.process_time() - started)
    return times


def show(times: dict[str, list[float]]) -> None:
    """Print medians with extremes."""
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:24} {middle:.4f} s ({min(seconds):.4f} to {max(seconds):.4f})")


def first_call(way: Callable[[], Any]) -> Any:
    """Run a way for the first time, and print what it took."""
    started = time.perf_counter()
    made = way()
    print(f"first compiled call      {time.perf_counter() - started:.1f} s")
    return made


def apart(found: torch.Tensor, wanted: torch.Tensor) -> str:
    """Say how far two results are from one another."""
    equal = (found == wanted).float().mean()
    error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    return f"equal values {equal:.1%}, relative difference {error:.2e}"


def vision(repeats: int, frames: int) -> None:
    """Blocks of the published width."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = Transformer(CogVLM2VisionConfig(num_hidden_layers=BLOCKS)).to(torch.bfloat16).eval()
    compiled = [torch.compile(layer, dynamic=True) for layer in model.layers]
    inputs = torch.randn(frames, 257, 1792).to(torch.bfloat16)

    def plain() -> torch.Tensor:
        return model(inputs)

    def fused() -> torch.Tensor:
        hidden = inputs
        for layer in compiled:
            hidden = layer(hidden)
        return hidden

    with torch.inference_mode():
        print(apart(first_call(fused), plain()))
        show(in_turn({"plain": plain, "compiled": fused}, repeats))


def decode(repeats: int, rows: int) -> None:
    """One new token for each of some rows behind 1,640 keys, in a buffer that stays as it is."""
    from transformers import StaticCache

    with tempfile.TemporaryDirectory() as folder:
        model = Bench(Path(folder), repeats).language()
        text = model.config.get_text_config(decoder=True)
        decoder = model.get_decoder()
        cache = StaticCache(config=text, max_cache_len=KEYS + 64)
        embeds = torch.randn(rows, KEYS, text.hidden_size).to(torch.bfloat16)
        column = torch.randn(rows, 1, text.hidden_size).to(torch.bfloat16)
        place = torch.full((rows, 1), KEYS)
        mask = torch.ones(rows, KEYS + 64, dtype=torch.long)
        mask[:, 0] = 0
        mask[:, KEYS + 1 :] = 0
        step = torch.compile(decoder)

        def run(call: Any) -> torch.Tensor:
            for layer in cache.layers:
                layer.cumulative_length.fill_(KEYS)
            out = call(
                inputs_embeds=column, attention_mask=mask, position_ids=place,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            return out.last_hidden_state

        with torch.inference_mode():
            decoder(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
            print(apart(first_call(lambda: run(step)), run(decoder)))
            ways = {"plain": lambda: run(decoder), "compiled": lambda: run(step)}
            show(in_turn(ways, repeats))


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("vision", "decode"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "vision":
        vision(options.repeats, options.frames)
    else:
        decode(options.repeats, options.rows)


if __name__ == "__main__":
    main()
