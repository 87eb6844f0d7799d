from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import MINI, Sizes, random_tensors, read_checkpoint, write_checkpoint
from torch import nn

from cogcache.errors import QuantizationError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import LoadedHalf, WholeModel, load_half
from cogcache.models.quantization.layers import (
    Quantization,
    dequantized,
    kind_of,
    left_out,
    quantized_bytes,
)
from cogcache.models.quantization.verify import ERROR_BOUND, QuantizationReport, verify

bitsandbytes = pytest.importorskip("bitsandbytes")

KINDS = ("nf4", "fp4", "int8", "int4")
FOUR_BITS = ("nf4", "fp4")
SUITED = Sizes(width=128, inner=256, layers=3, vocabulary=256)
"""Every linear layer of the decoder can be taken by the 4-bit product on the CPU."""
LAYER = "model.language_model.layers.{}."
MATRICES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (256, 128),
    "mlp.up_proj": (256, 128),
    "mlp.down_proj": (128, 256),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("suited") / "model", SUITED)


def load(folder: Path, **settings) -> LoadedHalf:
    return load_half(str(folder), "language", quantization=Quantization(**settings))


def report_of(loaded: LoadedHalf) -> QuantizationReport:
    assert loaded.quantization is not None
    return loaded.quantization


def verified(folder: Path, loaded: LoadedHalf, **settings) -> QuantizationReport:
    """Verify a half once more, as loading did."""
    names = loaded.partition.names("language")
    sources = {loaded.partition.targets[name]: name for name in names}
    checkpoint = Checkpoint.open(str(folder))
    return verify(loaded.model, Quantization(**settings), sources, checkpoint)


def kinds_of(loaded: LoadedHalf) -> dict[str, str]:
    return {
        path: type(module).__name__
        for path, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear)
    }


# What is loaded


def test_nf4_with_double_quantisation_and_bfloat16_products_is_the_default(folder):
    loaded = load(folder)
    layer = loaded.model.get_submodule(f"{LAYER.format(0)}mlp.up_proj")
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.compute_dtype == torch.bfloat16


def test_double_quantisation_can_be_left_out(folder):
    layer = load(folder, double_quant=False).model.get_submodule(f"{LAYER.format(0)}mlp.up_proj")
    assert not layer.weight.quant_state.nested


def test_the_dtype_of_products_can_be_chosen(folder):
    loaded = load(folder, compute_dtype="float32")
    layer = loaded.model.get_submodule(f"{LAYER.format(0)}mlp.up_proj")
    assert layer.compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("nf4", "Linear4bit"),
        ("fp4", "Linear4bit"),
        ("int8", "Linear8bitLt"),
        ("int4", "Int4Linear"),
    ],
)
def test_every_linear_layer_of_the_decoder_is_quantised_and_the_head_is_not(folder, kind, module):
    found = kinds_of(load(folder, kind=kind))
    assert found.pop("lm_head") == "Linear"
    wanted = [f"{LAYER.format(index)}{name}" for index in range(3) for name in MATRICES]
    assert found == dict.fromkeys(wanted, module)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_norms_keep_their_values(folder, kind):
    tensors = read_checkpoint(folder)
    state = load(folder, kind=kind).model
    assert torch.equal(state.lm_head.weight, tensors["lm_head.weight"])
    decoder = state.get_decoder()
    assert torch.equal(decoder.embed_tokens.weight, tensors["model.embed_tokens.weight"])
    assert torch.equal(decoder.norm.weight, tensors["model.norm.weight"])


def test_none_leaves_every_weight_as_it_is(folder):
    loaded = load(folder, kind="none")
    assert set(kinds_of(loaded).values()) == {"Linear"}
    assert {each.dtype for each in loaded.model.parameters()} == {torch.bfloat16}
    report = report_of(loaded)
    assert (report.num_quantized, report.share, report.worst_error) == (0, 0.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_near_those_of_the_checkpoint(folder, kind):
    original = read_checkpoint(folder)["model.layers.1.mlp.language_mlp.up_proj.weight"].float()
    layer = load(folder, kind=kind).model.get_submodule(f"{LAYER.format(1)}mlp.up_proj")
    error = (dequantized(layer).float() - original).norm() / original.norm()
    typical = {"nf4": 0.092, "fp4": 0.123, "int8": 0.0067, "int4": 0.084}[kind]
    assert abs(error - typical) < 0.1 * typical


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_quantised_weights(folder, kind):
    """Of a half in bfloat16 into which the same weights were put, dequantised."""
    inputs = torch.arange(4, 40)[None]
    plain, loaded = load(folder, kind="none").model, load(folder, kind=kind).model
    for path, layer in loaded.get_decoder().named_modules():
        if isinstance(layer, nn.Linear) and kind_of(layer) != "none":
            twin = plain.get_decoder().get_submodule(path)
            twin.weight = nn.Parameter(dequantized(layer).to(torch.bfloat16), requires_grad=False)
    with torch.inference_mode():
        wanted, found = (each(inputs).logits.float() for each in (plain, loaded))
    # int8 rounds what it multiplies, too.
    assert (found - wanted).norm() / wanted.norm() < (0.2 if kind == "int8" else 0.05)


def test_products_in_int8_are_no_line_each(folder, caplog):
    half = load(folder, kind="int8").model
    with torch.inference_mode():
        half(torch.arange(4, 40)[None])
    assert not caplog.records


def test_layers_of_shapes_that_the_product_cannot_take_are_left_out_and_named():
    """Of the golden checkpoint `down_proj` has 160 columns; a block has 64 weights."""
    loaded = load(MINI)
    report = report_of(loaded)
    excluded = {f"{LAYER.format(index)}mlp.down_proj" for index in range(3)}
    assert set(report.left_out) == excluded | {"lm_head"}
    found = kinds_of(loaded)
    assert {path for path, kind in found.items() if kind == "Linear"} == excluded | {"lm_head"}
    assert (report.num_quantized, report.num_linears) == (18, 22)
    matrices = 3 * (128 * 64 + 64 * 64 + 2 * 160 * 64)
    assert report.share == pytest.approx(matrices / (matrices + 3 * 64 * 160))
    with torch.inference_mode():
        assert loaded.model(torch.arange(4, 40)[None]).logits.isfinite().all()


def test_the_vision_half_and_the_head_are_on_the_list_of_what_is_left_out(folder):
    whole = WholeModel.of(Checkpoint.open(str(folder)))
    found = left_out(whole.meta)
    vision = [
        path
        for path, module in whole.meta.named_modules()
        if isinstance(module, nn.Linear) and path.startswith("model.vision.")
    ]
    assert vision
    assert sorted(found) == sorted(["lm_head", *vision])


# The report


def test_the_report_is_one_line(folder):
    line = report_of(load(folder)).summary()
    assert "\n" not in line
    assert line.startswith("nf4: 21 of 22 linear layers, 100.0% of the decoder's weights, ")
    assert "weight error 0.09" in line
    assert line.endswith("left out: lm_head")


def test_the_report_of_an_unquantised_half_says_so(folder):
    report = report_of(load(folder, kind="none"))
    assert report.summary().startswith("language half not quantised, ")


def test_the_report_compares_with_what_the_headers_say(folder):
    loaded = load(folder)
    described = Checkpoint.open(str(folder)).tensors(loaded.partition.names("language"))
    report = report_of(loaded)
    assert report.source_bytes == sum(info.num_bytes for info in described.values())
    assert report.memory_bytes < 0.6 * report.source_bytes


# Bytes


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("kind", FOUR_BITS)
def test_bytes_of_a_4_bit_layer_are_exact(folder, kind, double_quant):
    settings = {"kind": kind, "double_quant": double_quant}
    loaded = load(folder, **settings)
    for name, shape in MATRICES.items():
        weight = loaded.model.get_submodule(f"{LAYER.format(1)}{name}").weight
        state = weight.quant_state
        tensors = [weight, state.absmax, state.code]
        if double_quant:
            tensors += [state.offset, state.state2.absmax, state.state2.code]
        found = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert found == quantized_bytes(*shape, Quantization(**settings)), name


def test_bytes_of_an_8_bit_layer_are_exact(folder):
    loaded = load(folder, kind="int8")
    for name, shape in MATRICES.items():
        weight = loaded.model.get_submodule(f"{LAYER.format(1)}{name}").weight
        found = weight.numel() * weight.element_size() + weight.SCB.numel() * 4
        assert found == quantized_bytes(*shape, Quantization(kind="int8")), name


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_the_half_are_those_of_its_parts(folder, kind):
    settings = Quantization(kind=kind)
    matrices = 3 * sum(quantized_bytes(*shape, settings) for shape in MATRICES.values())
    plain = 2 * (2 * 256 * 128 + (2 * 3 + 1) * 128)
    tables = 2 * 4 * 16  # of the rotary positions, kept in float32
    assert report_of(load(folder, kind=kind)).memory_bytes == matrices + plain + tables


@pytest.mark.parametrize(("double_quant", "wanted"), [(False, 3.93e9), (True, 3.60e9)])
def test_the_published_decoder_takes_the_known_bytes_in_nf4(double_quant, wanted):
    """6.98 billion weights in 32 layers."""
    shapes = [(4096, 4096)] * 2 + [(1024, 4096)] * 2 + [(14336, 4096)] * 2 + [(4096, 14336)]
    settings = Quantization(double_quant=double_quant)
    found = 32 * sum(quantized_bytes(*shape, settings) for shape in shapes)
    assert found == pytest.approx(wanted, rel=0.002)


# Faults put in


def swap_back(loaded: LoadedHalf) -> None:
    layer = loaded.model.get_decoder().layers[1].mlp
    layer.up_proj = nn.Linear(128, 256, bias=False, dtype=torch.bfloat16).eval()


def quantise_the_head(loaded: LoadedHalf) -> None:
    head = bitsandbytes.nn.Linear4bit(128, 256, bias=False, quant_type="nf4")
    head.weight = bitsandbytes.nn.Params4bit(
        loaded.model.lm_head.weight.data, requires_grad=False, quant_type="nf4"
    )
    loaded.model.lm_head = head.to("cpu").eval()


def train(loaded: LoadedHalf) -> None:
    loaded.model.get_decoder().layers[2].mlp.train()


def widen_the_embedding(loaded: LoadedHalf) -> None:
    embedding = loaded.model.get_decoder().embed_tokens
    wide = torch.zeros(4 * 256, 128, dtype=torch.bfloat16)
    embedding.weight = nn.Parameter(wide[:256], requires_grad=False)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (swap_back, r"asked for nf4, but 1 layers differ: .*layers\.1\.mlp\.up_proj"),
        (quantise_the_head, r"asked for nf4, but 1 layers differ: \['lm_head'\]"),
        (train, "training mode"),
        (widen_the_embedding, "in memory where .* were expected"),
    ],
)
def test_a_half_that_is_not_as_asked_is_refused(folder, fault, message):
    loaded = load(folder)
    verified(folder, loaded)
    fault(loaded)
    with pytest.raises(QuantizationError, match=message):
        verified(folder, loaded)


@pytest.mark.parametrize(
    ("loaded_as", "asked"), [("nf4", "fp4"), ("fp4", "nf4"), ("int8", "nf4"), ("int4", "nf4")]
)
def test_another_kind_than_the_one_asked_for_is_refused(folder, loaded_as, asked):
    loaded = load(folder, kind=loaded_as)
    with pytest.raises(QuantizationError, match=f"asked for {asked}, but 21 layers differ"):
        verified(folder, loaded, kind=asked)


def test_a_quantised_half_is_refused_where_none_was_asked_for(folder):
    loaded = load(folder)
    with pytest.raises(QuantizationError, match="asked for none, but 21 layers differ"):
        verified(folder, loaded, kind="none")


@pytest.mark.parametrize("double_quant", [True, False])
def test_scales_that_are_quantised_otherwise_than_asked_are_refused(folder, double_quant):
    loaded = load(folder, double_quant=not double_quant)
    with pytest.raises(QuantizationError, match="asked for nf4, but 21 layers differ"):
        verified(folder, loaded, double_quant=double_quant)


def test_products_in_another_dtype_than_asked_are_refused(folder):
    loaded = load(folder, compute_dtype="float32")
    with pytest.raises(QuantizationError, match="asked for nf4, but 21 layers differ"):
        verified(folder, loaded)


def roll(weight: torch.Tensor) -> torch.Tensor:
    return weight.roll(1, dims=0)


def zero(weight: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [roll, zero])
@pytest.mark.parametrize("path", ["0.self_attn.o_proj", "2.mlp.down_proj"])
def test_a_wrong_weight_is_refused(folder, kind, fault, path):
    loaded = load(folder, kind=kind)
    weight = loaded.model.get_decoder().get_submodule(f"layers.{path}").weight
    weight.data = fault(weight.data)
    with pytest.raises(QuantizationError, match=f"relative error is .* in {kind}"):
        verified(folder, loaded, kind=kind)


def test_the_sample_takes_whole_tensors_of_every_kind_of_layer(tmp_path, monkeypatch):
    """Of layers cut from a fused tensor alone the error would always be 0."""
    folder = write_checkpoint(tmp_path, Sizes(layers=16))
    read: list[str] = []
    originals = Checkpoint.originals

    def recorded(checkpoint: Checkpoint, name: str) -> Any:
        read.append(name)
        return originals(checkpoint, name)

    monkeypatch.setattr(Checkpoint, "originals", recorded)
    assert report_of(load(folder)).worst_error > 0.08
    kinds = {name.split(".")[-2] for name in read}
    assert kinds == {"language_expert_dense", "up_proj", "gate_proj", "down_proj"}
    assert read[0].startswith("model.layers.0.")
    assert read[-1].startswith("model.layers.15.")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_with_heavy_tails_stay_within_the_bound(tmp_path, kind):
    """Student's t with 3 degrees of freedom: heavier than those of trained models."""
    torch.manual_seed(0)
    tails = torch.distributions.StudentT(3.0)
    tensors = {
        name: 0.1 * tails.sample(tensor.shape) if "mlp.language_mlp" in name else tensor
        for name, tensor in random_tensors(SUITED).items()
    }
    folder = write_checkpoint(tmp_path, SUITED, tensors=tensors)
    assert report_of(load(folder, kind=kind)).worst_error < ERROR_BOUND[kind]


def test_nothing_to_quantise_is_an_error(tmp_path):
    """Where no layer has a shape that suits, 4 bits were asked for and none are there."""
    sizes = Sizes(width=48, inner=80, heads=4, key_value_heads=2)
    folder = write_checkpoint(tmp_path, sizes)
    with pytest.raises(QuantizationError, match="none of 0 quantised layers"):
        load(folder)


# The fast way


has_fast_way = bitsandbytes.functional.has_avx512bf16()


@pytest.mark.skipif(not has_fast_way, reason="the CPU has no AVX512-BF16")
def test_products_on_the_cpu_take_the_fast_way(folder):
    """bitsandbytes packs a weight anew at the first product, but never in training mode."""
    model = load(folder).model
    with torch.inference_mode():
        model(torch.arange(4, 20)[None])
    layers = [each for each in model.modules() if isinstance(each, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 21
    assert all(layer.weight.quant_state.packing_format_for_cpu for layer in layers)


def test_settings_for_the_key_say_everything():
    wanted = {"kind": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
    assert Quantization().fields() == wanted
