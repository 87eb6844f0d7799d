"""Checkpoints whose decoder is stored in AWQ and its like: what reads them, and what refuses."""

from __future__ import annotations

import pytest
from scenes import settings
from stored import METHODS, store
from zoo import QWEN2_VL

from cogcache.errors import CheckpointError, ConfigError
from cogcache.generation.vllm.supported import check_backend
from cogcache.generation.vllm.view import View
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of


@pytest.fixture(scope="module", params=[*METHODS])
def kept(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "model"
    QWEN2_VL.write(folder)
    store(folder, request.param)
    return request.param, folder


def test_the_vision_half_is_read_and_the_language_half_refused_by_transformers(kept):
    method, folder = kept
    whole = WholeModel.of(Checkpoint.open(str(folder)))
    assert load_half(whole, "vision").model is not None
    with pytest.raises(CheckpointError, match=f"language half of .* is stored in {method}"):
        load_half(whole, "language")


def test_vllm_is_shown_every_part_of_a_weight_and_how_it_is_stored(kept):
    method, folder = kept
    family = family_of(Checkpoint.open(str(folder)))
    view = View.of(family, settings().language)
    partition = WholeModel.of(family.checkpoint).partition
    assert {name for _, name in view.tensors.values()} == {*partition.language}
    ends = {name.rpartition(".")[2] for name in view.tensors if ".mlp." in name}
    assert ends == (
        {"qweight", "qzeros", "scales"} if method == "awq" else {"weight", "weight_scale"}
    )
    assert view.config["quantization_config"]["quant_method"] == method
    assert all(name.startswith(("model.", "lm_head.")) for name in view.tensors)


def test_they_want_unproven_and_no_other_quantisation(kept):
    method, folder = kept
    family = family_of(Checkpoint.open(str(folder)))
    vllm = {"backend": "vllm", "backend_python": "python", "model": str(folder)}
    check_backend(settings(**vllm, quantization="none", unproven=True), family)
    with pytest.raises(ConfigError, match=f"never run here with weights stored in {method}"):
        check_backend(settings(**vllm, quantization="none"), family)
    with pytest.raises(ConfigError, match=f"stored in {method}, not int8"):
        check_backend(settings(**vllm, quantization="int8", unproven=True), family)
