"""Compares 4 bits with bf16 on this processor, and again limited to AVX2 if it has more.

    python -m benchmarks.processors [FIGURE ...] [--repeats 5] [--threads 2] [--wall] [--clips 16]

Each figure is a ratio of two ways measured in turn in one run. They are timed in processor seconds
of one thread, so that a shared machine can measure them; `--wall --threads 2` takes the clock on
the wall. The second run has ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2. bitsandbytes
heeds neither: its layers are told to dequantise, as they do where there is no AVX512-BF16, but the
loop that does so takes AVX-512 by itself. With nothing but AVX2, NF4 is slower than shown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.random_checkpoint import CONFIG
from benchmarks.recaption import Stepwise, drain, groups, prompts
from benchmarks.small import Bench
from benchmarks.timing import HEAD, Clock, Line, in_turn, timed
from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig
from cogcache.models.cogvlm2.vision import Transformer
from cogcache.models.halves.raised import Raised
from cogcache.models.halves.waiting import settle
from cogcache.models.quantization.layers import Kind, Quantization, quantized_linear
from cogcache.system import processor

FORCED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
SIDE, ROWS = 4096, (1, 16, 256)
CLIPS, PROMPTS, TOKENS = 16, 8, 64
POSITIONS = 1025
"""Of one frame at full size."""
OURS: Kind = "int4"
Figure = Callable[[Bench], Iterator[Line]]


def products(bench: Bench) -> Iterator[Line]:
    """One weight of the flagship's: int4 against NF4, bf16 and float32; bf16 raised or not."""
    weight = torch.randn(SIDE, SIDE) / SIDE**0.5
    layers = {kind: quantized(weight, kind) for kind in ("int4", "nf4")}
    plain, wide = weight.bfloat16(), weight
    for rows in ROWS:
        inputs = torch.randn(rows, SIDE).bfloat16()
        others: dict[str, Callable[[], object]] = {
            "nf4": lambda x=inputs: layers["nf4"](x),
            "bf16": lambda x=inputs: nn.functional.linear(x, plain),
            "float32": lambda x=inputs: nn.functional.linear(x.float(), wide),
        }
        for name, theirs in others.items():
            found = in_turn(bench.repeats, lambda x=inputs: layers["int4"](x), theirs)
            bar = "≥ 10" if (rows, name) == (1, "nf4") else ""
            yield Line(f"{SIDE}² × {rows} rows: int4, {name}", *found, bar)
    if not processor().multiplies_bf16:
        yield from raised_products_of(bench, layers, inputs)


def raised_products_of(
    bench: Bench, layers: dict[str, nn.Module], inputs: torch.Tensor
) -> Iterator[Line]:
    """As a prefill multiplies many rows: int4 raised to float32, against NF4 raised and not."""

    def run(kind: str, context: Any = Raised) -> Callable[[], object]:
        def work() -> object:
            with torch.inference_mode(), context():
                return layers[kind](inputs)

        return work

    name = f"{SIDE}² × {len(inputs)} rows: int4 raised"
    plain = in_turn(bench.repeats, run("int4"), run("nf4", nullcontext))
    yield Line(f"{name}, NF4", *plain, "≥ 2.5")
    yield Line(f"{name}, NF4 raised", *in_turn(bench.repeats, run("int4"), run("nf4")), "")
    yield Line(f"{name}, int4", *in_turn(bench.repeats, run("int4"), run("int4", nullcontext)), "")


def quantized(weight: torch.Tensor, kind: Kind) -> nn.Module:
    """Return a layer, laid out for this processor."""
    return as_here(quantized_linear(weight, None, Quantization(kind=kind), "cpu"))


def as_here(model: nn.Module) -> nn.Module:
    """Have bitsandbytes dequantise where AVX2 is forced, as it would with no more than that."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu") and not processor().multiplies_bf16:
            layer.support_avx512bf16_for_cpu = False
    with torch.inference_mode():
        settle(model)
    return model


def captions(bench: Bench) -> Iterator[Line]:
    """16 clips × 8 prompts × 64 tokens: int4 against NF4 and none; prefill, steps, memory."""
    halves = {kind: as_here(bench.language(kind)) for kind in ("int4", "nf4", "none")}
    asked = groups(bench, prompts(PROMPTS), TOKENS)
    count = len(asked) * PROMPTS * TOKENS
    ours: dict[str, list[Any]] = {kind: [] for kind in halves}
    for _ in range(bench.repeats):
        for kind, half in halves.items():
            decoder = Stepwise(half, bench.family, 8)
            spent = timed(lambda d=decoder: drain(d, asked))
            ours[kind].append((spent, decoder.step_s, spent - decoder.step_s))
    for other in ("nf4", "none"):
        name = f"{len(asked)} clips × {PROMPTS} prompts × {TOKENS} tokens: int4, {other}"
        parts = zip(("all", "decoding, 8 rows a step", "prefill"), range(3), strict=True)
        for part, place in parts:
            both = ([each[place] for each in ours[kind]] for kind in ("int4", other))
            bar = "≥ 2.5" if (part, other) == ("prefill", "nf4") else ""
            yield Line(f"{name}, {part}", *both, bar)
        rates = [[count / each[0] for each in ours[kind]] for kind in ("int4", other)]
        yield Line(f"{name}, tokens a second", rates[1], rates[0], "", unit="/s")
        sizes = [[held(halves[kind]) / 1e6] * bench.repeats for kind in ("int4", other)]
        yield Line(f"{name}, memory of the half", *sizes, "", unit="MB")


def one_by_one(bench: Bench) -> Iterator[Line]:
    """Tokens of one row a step: int4 against NF4 and none."""
    halves = {kind: as_here(bench.language(kind)) for kind in ("int4", "nf4", "none")}
    asked = groups(bench, prompts(1), TOKENS)[:1]

    def step_s(kind: str) -> float:
        decoder = Stepwise(halves[kind], bench.family, 1)
        drain(decoder, asked)
        return decoder.step_s / (TOKENS - 1)

    for kind in halves:
        step_s(kind)
    for other, bar in (("nf4", "≥ 10"), ("none", "")):
        found = [(step_s("int4"), step_s(other)) for _ in range(bench.repeats)]
        name = f"a token, one row a step, 50 M parameters: int4, {other}"
        yield Line(name, *map(list, zip(*found, strict=True)), bar)


def held(model: nn.Module) -> int:
    """Return the bytes of a half's parameters, and of the scales of bitsandbytes' layers."""
    from cogcache.models.quantization.verify import _memory_bytes

    return _memory_bytes(model)


def vision(bench: Bench) -> Iterator[Line]:
    """Two of the flagship's 63 vision blocks on one frame: products raised, in bf16."""
    config = CogVLM2VideoConfig(**CONFIG).vision_config
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    blocks = Transformer(config).bfloat16().eval()
    tokens = torch.randn(1, POSITIONS, config.hidden_size).bfloat16()

    def run(context: Any) -> torch.Tensor:
        with torch.inference_mode(), context():
            return blocks(tokens)

    raised, plain = run(Raised), run(nullcontext)
    exact = blocks.float()
    with torch.inference_mode():
        wanted = exact(tokens.float())
    blocks.bfloat16()
    apart = [float((each.float() - wanted).norm() / wanted.norm()) for each in (raised, plain)]
    found = in_turn(bench.repeats, lambda: run(Raised), lambda: run(nullcontext))
    yield Line("two vision blocks at full size, one frame: raised, bf16", *found, "≥ 2.5")
    yield Line("their distance from float32: raised, bf16", apart[:1], apart[1:], "≥ 1", unit="")


FIGURES: tuple[Figure, ...] = (products, one_by_one, captions, vision)


def main() -> None:
    """Measure, then once more with AVX2 forced where the processor has more."""
    names = [figure.__name__ for figure in FIGURES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", choices=[*names, []], metavar="FIGURE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="time by the clock on the wall")
    parser.add_argument("--clips", type=int, default=CLIPS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.wall:
        Clock.now = staticmethod(time.perf_counter)
    print(f"\n{processor().name}: {processor().level}; {options.threads} threads\n\n{HEAD}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.repeats, num_clips=options.clips)
        for figure in FIGURES:
            if not options.figures or figure.__name__ in options.figures:
                for line in figure(bench):
                    print(line, flush=True)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}", flush=True)
    if processor().has_avx512:
        again = [sys.executable, "-m", "benchmarks.processors", *sys.argv[1:]]
        subprocess.run(again, env={**os.environ, **FORCED}, check=True)


if __name__ == "__main__":
    main()
