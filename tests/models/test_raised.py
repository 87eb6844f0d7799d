"""bf16 products raised to float32: right to the bound, no worse than bf16, and only where meant."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from checkpoints import MINI
from torch import nn
from torch.nn import functional

from cogcache.models import ClipTensors, family_of, load_half
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves import raised
from cogcache.models.halves.raised import (
    FEWEST_ROWS,
    FEWEST_ROWS_OF_INT4,
    WEIGHT_ROWS,
    Raised,
    RaisedSteps,
    raised_products,
)
from cogcache.models.quantization import int4
from cogcache.models.quantization.layers import Quantization, dequantized, quantized_linear
from cogcache.system import Processor

BOUND = 1e-2
"""Relative difference of features that two correct implementations in bf16 may show."""
AVX2 = Processor("made up", "x86_64", "AVX2", avx512_bf16=False, amx=False)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture
def on_avx2(monkeypatch):
    monkeypatch.setattr(raised, "processor", lambda: AVX2)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(FEWEST_ROWS, 96), (3, 50, 96)])
def test_a_raised_product_is_that_of_float32_rounded_once(shape, has_bias):
    torch.manual_seed(0)
    inputs = torch.randn(shape).bfloat16()
    weight = torch.randn(2 * WEIGHT_ROWS + 40, 96).bfloat16()
    bias = torch.randn(len(weight)).bfloat16() if has_bias else None
    with Raised():
        found = functional.linear(inputs, weight, bias)
    exact = functional.linear(inputs.double(), weight.double(), bias.double() if has_bias else None)
    assert (found.dtype, found.shape) == (torch.bfloat16, exact.shape)
    assert relative(found, exact) < 2**-8
    assert relative(found, exact) <= 1.01 * relative(functional.linear(inputs, weight, bias), exact)


def count_raised(monkeypatch) -> list[int]:
    rows: list[int] = []
    product = raised.linear

    def counted(input: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        rows.append(input.numel() // input.shape[-1])
        return product(input, *others)

    monkeypatch.setattr(raised, "linear", counted)
    monkeypatch.setitem(raised._RAISED, functional.linear, counted)
    return rows


@pytest.mark.parametrize(
    ("rows", "dtype"), [(FEWEST_ROWS - 1, torch.bfloat16), (FEWEST_ROWS, torch.float32)]
)
def test_few_rows_and_other_types_are_let_be(monkeypatch, rows, dtype):
    found = count_raised(monkeypatch)
    inputs, weight = torch.ones(rows, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype)
    with Raised():
        functional.linear(inputs, weight)
    assert not found


def test_a_row_is_the_same_whatever_rows_are_beside_it_where_few_are_raised():
    torch.manual_seed(0)
    inputs, weight = torch.randn(200, 64).bfloat16(), torch.randn(96, 64).bfloat16()
    with Raised(fewest_rows=1):
        whole = functional.linear(inputs, weight)
        for count in (1, 2, 3, 5, 11, FEWEST_ROWS - 1, FEWEST_ROWS + 1):
            assert torch.equal(functional.linear(inputs[-count:], weight), whole[-count:]), count


@pytest.fixture(scope="module")
def clip() -> ClipTensors:
    torch.manual_seed(0)
    return ClipTensors({"pixel_values_videos": torch.randn(4, 3, 56, 56).bfloat16()})


@pytest.fixture(scope="module")
def halves() -> dict[torch.dtype, torch.nn.Module]:
    types = (torch.bfloat16, torch.float32)
    return {dtype: load_half(str(MINI), "vision", dtype=dtype).model for dtype in types}


def features(model: torch.nn.Module, clip: ClipTensors) -> torch.Tensor:
    family = family_of(Checkpoint.open(str(MINI)))
    pixels = clip.tensors["pixel_values_videos"].to(model.dtype)
    (found,) = family.encode(model, [ClipTensors({"pixel_values_videos": pixels})], 48)
    return found.tensors["features"]


def test_features_differ_from_those_of_bf16_by_no_more_than_bf16_does(
    halves, clip, monkeypatch, on_avx2
):
    rows = count_raised(monkeypatch)
    found = features(halves[torch.bfloat16], clip)
    assert rows, "nothing was raised"
    monkeypatch.setattr(raised, "processor", lambda: Processor("", "other", "", False, False))
    plain, exact = features(halves[torch.bfloat16], clip), features(halves[torch.float32], clip)
    assert relative(found, plain) < BOUND
    assert relative(found, exact) <= 1.02 * relative(plain, exact)


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_a_prefill_is_raised_and_a_step_is_not(monkeypatch, on_avx2, kind):
    from cogcache.generation import prefixes

    half = load_half("tiny", "language", quantization=Quantization(kind=kind)).model
    if kind == "nf4":  # as where bitsandbytes has no product of its own
        for module in half.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    rows = count_raised(monkeypatch)
    cache = prefixes.DynamicCache(config=half.config)
    ids = torch.arange(4, 4 + FEWEST_ROWS)[None]
    with torch.inference_mode():
        prefixes.forward(half, cache, input_ids=ids)
        assert set(rows) == {FEWEST_ROWS}
        rows.clear()
        prefixes.forward(half, cache, input_ids=ids[:, :1])
    assert not rows


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_raised_products_of_4_bits_are_those_of_the_dequantised_weights(kind, double_quant):
    torch.manual_seed(0)
    asked = Quantization(kind=kind, double_quant=double_quant)
    bias = torch.randn(64).bfloat16()
    layer = quantized_linear(torch.randn(64, 320).bfloat16(), bias, asked, "cpu")
    layer.support_avx512bf16_for_cpu = False
    inputs = torch.randn(FEWEST_ROWS, 320).bfloat16()
    weight = dequantized(layer).to(torch.bfloat16)
    with torch.inference_mode():
        wanted, plain = raised.linear(inputs, weight, bias), layer(inputs)
        with Raised():
            assert torch.equal(layer(inputs), wanted)
    assert relative(plain, wanted) < 0.01


@pytest.mark.parametrize(
    ("seen", "raises"),
    [
        (AVX2, True),
        (Processor("", "AMD64", "AVX512", avx512_bf16=False, amx=False), True),
        (Processor("", "x86_64", "AVX512", avx512_bf16=True, amx=False), False),
        (Processor("", "x86_64", "AVX2", avx512_bf16=True, amx=False), True),
        (Processor("", "aarch64", "DEFAULT", avx512_bf16=False, amx=False), False),
    ],
)
def test_products_are_raised_where_the_processor_multiplies_no_bf16(
    monkeypatch, halves, seen, raises
):
    monkeypatch.setattr(raised, "processor", lambda: seen)
    assert isinstance(raised_products(halves[torch.bfloat16]), Raised) is raises


@pytest.mark.parametrize("rows", [FEWEST_ROWS, FEWEST_ROWS_OF_INT4])
@pytest.mark.parametrize("out", [64, 2 * int4.WIDE_ROWS + 80])
def test_raised_products_of_int4_are_those_of_its_kernel(rows, out, monkeypatch):
    torch.manual_seed(0)
    layer = quantized_linear(torch.randn(out, 320) / 18, None, Quantization(kind="int4"), "cpu")
    inputs = torch.randn(rows, 320).bfloat16()
    exact = inputs.double() @ layer.dequantized().double().T
    plain = layer(inputs)
    called = []
    wide = int4.wide_product
    monkeypatch.setattr(raised, "wide_product", lambda *all: called.append(1) or wide(*all))
    with Raised():
        found = layer(inputs)
    assert bool(called) == (rows >= FEWEST_ROWS_OF_INT4)
    assert relative(found, exact) <= 1.01 * relative(plain, exact) < 0.01


def test_an_order_of_codes_that_is_not_known_leaves_them_to_the_kernel(monkeypatch):
    layer = quantized_linear(torch.randn(64, 320), None, Quantization(kind="int4"), "cpu")
    inputs = torch.randn(FEWEST_ROWS_OF_INT4, 320).bfloat16()
    plain = layer(inputs)
    monkeypatch.setattr(int4, "_order", lambda: None)
    with Raised():
        assert torch.equal(layer(inputs), plain)


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_gradients_of_raised_steps_are_no_worse_than_those_of_bf16(kind):
    torch.manual_seed(0)
    weight, small = torch.randn(192, 128) / 11, torch.randn(8, 192) / 14
    inputs, bias = torch.randn(2, 40, 128), torch.randn(192).bfloat16()
    layer = nn.Linear(128, 192).requires_grad_(False)
    layer.weight.data, layer.bias.data = weight.bfloat16(), bias
    if kind == "nf4":
        layer = quantized_linear(weight, bias, Quantization(kind="nf4"), "cpu")
        layer.support_avx512bf16_for_cpu = False
    held = dequantized(layer) if kind == "nf4" else layer.weight

    def gradients(context, first, dtype) -> list[torch.Tensor]:
        given = [each.clone().requires_grad_() for each in (inputs, small)]
        with context, torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            hidden = functional.linear(first(given[0].to(dtype)), given[1])
            hidden.float().square().sum().backward()
        return [each.grad for each in given]

    exact = gradients(
        nullcontext(), lambda x: functional.linear(x, held.float(), bias.float()), torch.float32
    )
    plain, found = (
        gradients(context, layer, torch.bfloat16) for context in (nullcontext(), RaisedSteps())
    )
    for ours, theirs, wanted in zip(found, plain, exact, strict=True):
        assert ours.dtype == torch.float32
        assert relative(ours, wanted) <= 1.1 * relative(theirs, wanted) < 0.02


def test_a_step_of_training_is_raised_both_ways(monkeypatch):
    monkeypatch.setattr(raised, "processor", lambda: AVX2)
    called = []
    product = raised.matrices
    monkeypatch.setitem(
        raised._IN_STEPS,
        torch.ops.aten.mm.default,
        (lambda *all: called.append(all[0].shape) or product(*all), 0),
    )
    model = nn.Linear(64, 64, bias=False).bfloat16()
    model.device = torch.device("cpu")
    with raised.raised_training(model):
        model(torch.randn(FEWEST_ROWS, 64).bfloat16().requires_grad_()).sum().backward()
    assert len(called) == 3, "of the output, and of the gradients of input and weight"
