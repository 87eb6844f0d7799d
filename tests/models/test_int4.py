"""int4 by torch's packed product: what is stored, what is multiplied, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import MINI, Sizes, write_checkpoint
from safetensors.torch import save_file
from torch._subclasses import FakeTensorMode

from cogcache.errors import ConfigError, QuantizationError
from cogcache.models import load_half
from cogcache.models.halves.offload import Offload
from cogcache.models.quantization import int4, int4_products
from cogcache.models.quantization.int4 import Int4Linear
from cogcache.models.quantization.int4_products import check_product, lay_out, product
from cogcache.models.quantization.layers import Quantization
from cogcache.settings import GROUP_SIZES, load_settings


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rows", [16, 80, 144])
def test_laying_out_changes_no_weight(group_size, rows):
    """Kernels take 16 to 64 rows as one; the last of them may be fewer."""
    torch.manual_seed(0)
    layer = Int4Linear.of(torch.randn(rows, 512) / 16, None, group_size)
    stored = layer.dequantized()
    layer.lay_out()
    assert torch.equal(layer.dequantized(), stored.bfloat16().float())


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(128,), (1, 128), (3, 5, 128), (300, 128)])
def test_products_are_those_of_the_stored_weights(shape, has_bias):
    torch.manual_seed(0)
    bias = torch.randn(64).bfloat16() if has_bias else None
    layer = Int4Linear.of(torch.randn(64, 128) / 11, bias, 64)
    inputs = torch.randn(shape).bfloat16()
    wanted = inputs.float() @ layer.dequantized().T + (0 if bias is None else bias.float())
    found = layer(inputs)
    assert (found.shape, found.dtype) == ((*shape[:-1], 64), torch.bfloat16)
    assert relative(found, wanted) < 0.005


@pytest.mark.parametrize("capability", ["avx2"])
def test_weights_stored_on_one_processor_are_right_on_another(tmp_path, capability):
    """Each lays codes out in its own order: what is stored must have none of it."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(80, 128) / 11, torch.randn(3, 128).bfloat16()
    layer = Int4Linear.of(weight, None, 64)
    made = {"weight": weight, "inputs": inputs, "codes": layer.weight.data, "wanted": layer(inputs)}
    save_file(made, tmp_path / "made.safetensors")
    script = """
import sys, torch
from safetensors.torch import load_file
from cogcache.models.quantization.int4 import Int4Linear
from cogcache.models.quantization.int4_products import check_product, lay_out, product
made = load_file(sys.argv[1])
layer, wanted = Int4Linear.of(made["weight"], None, 64), made["wanted"]
assert torch.equal(layer.weight, made["codes"])
assert ((layer(made["inputs"]) - wanted).float().norm() / wanted.float().norm()) < 0.01
"""
    variables = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-c", script, str(tmp_path / "made.safetensors")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("group_size", "most"), [(32, 0.073), (64, 0.085), (128, 0.095), (256, 0.104)]
)
def test_fitted_scales_are_nearer_than_those_that_span_a_group(monkeypatch, group_size, most):
    """Gaussian weights; NF4 has 0.092."""
    torch.manual_seed(0)
    weight = torch.randn(64, 2048)
    found = relative(Int4Linear.of(weight, None, group_size).dequantized(), weight)
    monkeypatch.setattr(int4, "ROUNDS", 0)
    spanning = relative(Int4Linear.of(weight, None, group_size).dequantized(), weight)
    assert found < most
    assert found < 0.95 * spanning


@pytest.mark.parametrize("value", [0.0, 0.37, -1e-9, 3e4])
def test_a_group_of_equal_weights_keeps_them(value):
    dense = Int4Linear.of(torch.full((16, 64), value), None, 64).dequantized()
    assert torch.allclose(dense, torch.tensor(value), rtol=2**-8, atol=1e-9)


def test_one_large_weight_does_not_cost_its_group_a_code_out_of_range():
    weight = torch.zeros(16, 64)
    weight[3, 5] = 2
    dense = Int4Linear.of(weight, None, 64).dequantized()
    assert relative(dense, weight) < 0.01


# What is refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    sizes = Sizes(width=128, inner=256, layers=2, vocabulary=256)
    return write_checkpoint(tmp_path_factory.mktemp("int4") / "model", sizes)


def test_a_group_size_that_does_not_divide_is_refused_and_one_that_does_is_named(folder):
    asked = Quantization(kind="int4", group_size=256)
    with pytest.raises(QuantizationError, match="groups of 256 do not divide the 128") as caught:
        load_half(str(folder), "language", quantization=asked)
    assert "--group-size 128" in str(caught.value.hint)


def test_a_group_size_that_does_not_divide_the_head_is_refused(folder):
    asked = Quantization(kind="none", head="int4", group_size=256)
    with pytest.raises(QuantizationError, match="columns of lm_head"):
        load_half(str(folder), "language", quantization=asked)


def test_smaller_groups_serve_where_the_usual_do_not():
    """The golden checkpoint has layers of 160 columns, five times 32."""
    with pytest.raises(QuantizationError, match="groups of 64 do not divide the 160 columns"):
        load_half(str(MINI), "language", quantization=Quantization(kind="int4"))
    loaded = load_half(str(MINI), "language", quantization=Quantization(kind="int4", group_size=32))
    assert loaded.quantization.share == 1.0


def test_a_torch_without_the_operators_is_told(folder, monkeypatch):
    monkeypatch.setitem(int4_products.OPERATORS, "cpu", ("_no_such_product",))
    with pytest.raises(QuantizationError, match=r"torch .* has no product of int4 weights"):
        load_half(str(folder), "language", quantization=Quantization(kind="int4"))


def test_a_device_without_a_product_is_told_before_anything_is_read(folder):
    with pytest.raises(QuantizationError, match=r"products for CPUs and NVIDIA GPUs.* is mps"):
        load_half(str(folder), "language", quantization=Quantization(kind="int4"), device="mps")


def test_a_half_that_does_not_fit_a_gpu_is_refused_in_int4(folder):
    asked, offload = Quantization(kind="int4"), Offload(resident_layers=1)
    with pytest.raises(QuantizationError, match="fits there whole"):
        load_half(str(folder), "language", quantization=asked, device="cuda:0", offload=offload)


class TestProductOfAGpu:
    """What can be said of it without a GPU."""

    @pytest.fixture(autouse=True)
    def standing_in(self, monkeypatch):
        check_product.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
        yield
        check_product.cache_clear()

    @pytest.mark.parametrize("group_size", [32, 64, 128, 256])
    def test_the_product_of_this_processor_is_right(self, group_size):
        check_product("cpu", group_size)

    def test_another_order_of_codes_is_refused(self, monkeypatch):
        monkeypatch.setattr(
            int4_products, "lay_out", lambda codes: lay_out(codes << 4 | codes >> 4)
        )
        with pytest.raises(QuantizationError, match="% off what its weights give"):
            check_product("cpu", 64)

    def test_no_number_is_refused(self, monkeypatch):
        nothing = torch.full((4, 32), float("nan"))
        monkeypatch.setattr(int4_products, "product", lambda *_: nothing)
        with pytest.raises(QuantizationError, match="nan% off"):
            check_product("cpu", 64)

    def test_an_old_gpu_is_told(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
        with pytest.raises(QuantizationError, match=r"capability 8\.0, and cuda:0 has \(7, 5\)"):
            check_product("cuda:0", 64)

    @pytest.mark.parametrize("columns", [32, 64, 96, 128, 4096])
    def test_codes_for_a_gpu_have_the_shape_that_its_product_takes(self, columns):
        """torch says it, by what it compiles with; nothing is multiplied."""
        with FakeTensorMode(), torch.device("cuda"):
            codes = torch.empty(16, columns // 2, dtype=torch.uint8)
            laid_out = lay_out(codes)
            assert (laid_out.dtype, laid_out.nbytes) == (torch.int32, codes.nbytes)
            rows = torch.empty(3, columns, dtype=torch.bfloat16)
            scales = torch.empty(columns // 32, 16, 2, dtype=torch.bfloat16)
            assert product(rows, laid_out, 32, scales).shape == (3, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
def test_a_gpu_multiplies_as_the_codes_say(group_size):
    check_product("cuda:0", group_size)
    weight = torch.randn(64, 512)
    layer = Int4Linear.of(weight, None, group_size)
    wanted = layer.dequantized()
    layer = layer.to("cuda:0")
    rows = torch.randn(5, 512).bfloat16()
    found = layer(rows.to("cuda:0")).float().cpu()
    assert torch.allclose(found, rows.float() @ wanted.T, rtol=0.05, atol=0.2)
    assert torch.allclose(layer.dequantized().cpu(), wanted, rtol=0.01, atol=0.01)


def test_products_in_float32_are_refused(folder):
    asked = Quantization(kind="int4", compute_dtype="float32")
    with pytest.raises(QuantizationError, match="multiplies in bfloat16"):
        load_half(str(folder), "language", dtype=torch.float32, quantization=asked)


@pytest.mark.parametrize("size", [0, 48, 512])
def test_only_group_sizes_that_the_product_takes_can_be_set(size):
    with pytest.raises(ConfigError, match="group_size is 32, 64, 128 or 256"):
        load_settings(None, {"group_size": size})


# Keys


def test_the_key_names_kind_and_group_size():
    wanted = {"kind": "int4", "group_size": 32, "compute_dtype": "bfloat16"}
    assert Quantization(kind="int4", group_size=32).fields() == wanted


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", "none"])
def test_keys_of_other_kinds_are_what_they_were(kind):
    wanted = {"kind": kind, "double_quant": True, "compute_dtype": "bfloat16"}
    assert Quantization(kind=kind, group_size=128).fields() == wanted
    assert Quantization(kind=kind, head="nf4").fields() == {**wanted, "head": "nf4"}


def test_an_int4_head_behind_nf4_layers_names_both():
    found = Quantization(kind="nf4", head="int4").fields()
    assert {found["group_size"], found["double_quant"], found["head"]} == {64, True, "int4"}
