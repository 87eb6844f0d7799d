"""Weights in 8 bits through vLLM, and what it expects at each place of a caption."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_caches import NUM_CLIPS, PROMPTS, Kept, check, on_vllm, settings_of, tokens_of

from cogcache.models import WholeModel, open_family
from cogcache.stages.captioning.precision import check_precision


def rounded(model: str, folder: Path) -> str:
    """Write a checkpoint whose decoder has the numbers that 8 bits leave of its weights."""
    whole = WholeModel.of(open_family(settings_of(model)).checkpoint)
    decoder = {
        name
        for name in whole.partition.language
        if ".layers." in name and "norm" not in name and "inv_freq" not in name
    }
    shutil.copytree(whole.checkpoint.folder, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in decoder & tensors.keys():
            if (weight := tensors[name]).ndim == 2:
                scales = weight.float().abs().amax(dim=1, keepdim=True) / 127
                tensors[name] = (weight.float() / scales).round() * scales
        save_file(tensors, file)
    return str(folder)


@pytest.mark.parametrize("name", ["cogvlm2", "qwen2_vl"])
def test_int8_gives_the_tokens_of_weights_that_were_rounded_before(kept, tmp_path, name):
    of: Kept = kept(name)
    expected, _ = tokens_of(of.cache, settings_of(rounded(of.model, tmp_path / "rounded")))
    found, captioner = tokens_of(of.cache, on_vllm(of.model, quantization="int8"))
    check(expected, found)
    assert found != of.expected, "8 bits changed nothing"
    assert "int8 by vLLM" in captioner.report.quantization


@pytest.mark.parametrize("name", ["tiny", "qwen3_vl"])
def test_what_vllm_expects_is_what_transformers_expects(kept, name):
    of: Kept = kept(name)
    pairs = check_precision(of.cache, on_vllm(of.model), clips=3, positions=12)
    assert len(pairs) == min(3, NUM_CLIPS) * len(PROMPTS)
    assert max(pair.expectations.kl_max for pair in pairs) < 1e-4
    assert all(pair.caption == pair.reference_caption for pair in pairs)


def test_what_8_bits_lose_is_told(kept):
    of: Kept = kept("qwen3_vl")
    asked = on_vllm(of.model, quantization="int8")
    pairs = check_precision(of.cache, asked, clips=3, positions=12)
    assert 1e-7 < max(pair.expectations.kl for pair in pairs) < 0.5
    assert torch.tensor([pair.expectations.agreement for pair in pairs]).mean() > 0.5
