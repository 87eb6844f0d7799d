"""Plans from headers and config alone, against what is loaded."""

from __future__ import annotations

import pytest
import torch
from scenes import settings

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.halves.sizes import half_sizes, language_sizes
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import family_of
from cogcache.planning import estimates
from cogcache.planning.choices import LanguageChoice, choose_language, choose_vision
from cogcache.planning.estimates import frame_bytes
from cogcache.planning.fitted import VisionLoader
from cogcache.planning.plan import Job, make_plan
from cogcache.planning.planned import Plan
from cogcache.settings.settings import Settings
from cogcache.system import Processor
from cogcache.system.memory_monitor import sample
from cogcache.units import GIB, MIB


@pytest.fixture(scope="module")
def tiny() -> WholeModel:
    return WholeModel.of(Checkpoint.open("tiny"))


def held_bytes(whole: WholeModel, half: str, kind: str = "none") -> int:
    quantization = Quantization(kind=kind) if half == "language" else None
    loaded = load_half(whole, half, dtype=torch.bfloat16, quantization=quantization)
    model = loaded.model
    return sum(each.nbytes for each in model.parameters())


def test_planned_vision_weights_are_what_is_held(tiny):
    sizes = half_sizes(tiny.checkpoint, tiny.partition, "vision")
    planned = choose_vision(sizes, tiny.checkpoint.config, settings(), GIB).plan
    assert planned.weights_bytes == pytest.approx(held_bytes(tiny, "vision"), rel=0.001)


def language_choice(tiny: WholeModel, asked: Settings, row_tokens: int = 80) -> LanguageChoice:
    modules, quantization = tiny.partition.modules, Quantization.of(asked.language)
    sizes = language_sizes(tiny.meta, modules, quantization, 2, on_cpu=False)
    return choose_language(sizes, tiny.checkpoint.config, asked, GIB, row_tokens)


@pytest.mark.parametrize("kind", ["none", "nf4", "int8", "int4"])
@pytest.mark.parametrize("head", ["none", "nf4"])
def test_planned_language_weights_are_what_is_held(tiny, kind, head):
    asked = settings(quantization=kind, head_quantization=head)
    loaded = load_half(tiny, "language", quantization=Quantization.of(asked.language))
    planned = language_choice(tiny, asked).plan
    assert planned.weights_bytes == pytest.approx(loaded.quantization.memory_bytes, rel=0.02)


def test_keys_and_values_are_those_of_all_rows_and_of_the_next_clip(tiny):
    one, four = (
        language_choice(tiny, settings(clips_per_batch=rows, max_new_tokens=100)).plan.cache_bytes
        for rows in (1, 4)
    )
    assert four - one == 3 * (one // 2)
    text = tiny.checkpoint.config
    head_width = text["hidden_size"] // text["num_attention_heads"]
    per_token = 2 * text["num_hidden_layers"] * text["num_multi_query_heads"] * head_width * 2
    assert one == 2 * (80 + 100) * per_token


WITH_BF16 = Processor("made up", "x86_64", "AVX512", avx512_bf16=True, amx=False)


def test_a_frame_takes_more_in_float32(tiny, monkeypatch):
    monkeypatch.setattr(estimates, "processor", lambda: WITH_BF16)
    config = tiny.checkpoint.config
    few, many = (frame_bytes(config, settings(vision_dtype=t)) for t in ("bfloat16", "float32"))
    assert many == 2 * few


def test_only_one_prefill_is_in_memory_at_once(tiny):
    one, eight = (language_choice(tiny, settings(clips_per_batch=rows)).plan for rows in (1, 8))
    assert eight.activations_bytes == one.activations_bytes
    assert eight.logits_bytes == 8 * one.logits_bytes


def test_a_config_without_intermediate_sizes_can_be_planned():
    config = {"vision_config": {"embed_dim": 64, "patch_size": 14, "image_size": 56}}
    assert frame_bytes(config, settings()) > 0


def plan_of(memory: str, frames: int = 24, **asked: object) -> Plan:
    return make_plan(settings(memory=memory, **asked), Job(frames=frames, clips=10))


def test_without_a_gpu_the_memory_of_the_process_itself_is_planned_for():
    asked = {"device": "cpu", "vision_dtype": "float32"}
    [refused] = plan_of("1MiB", **asked).memories
    enough = refused.least_bytes["vision"]
    assert not refused.vision.fits
    assert enough - sample().host_bytes < 64 * MIB
    given = settings(memory=f"{enough // MIB + 64}MiB", **asked)
    assert VisionLoader(family_of(Checkpoint.open("tiny")), given).first().fits
    [margin] = (row.margin_reason for row in plan_of("8GiB", **asked).memories)
    assert "of the process itself" in margin
    assert "driver" in plan_of("8GiB").memories[0].margin_reason


def test_blocks_of_vllm_are_planned_from_what_is_given_on_a_cpu_and_left_on_a_gpu(tiny):
    vllm = {"backend": "vllm", "backend_python": "python", "clips_per_batch": 4}
    text = tiny.checkpoint.config
    head_width = text["hidden_size"] // text["num_attention_heads"]
    token = 2 * text["num_hidden_layers"] * text["num_multi_query_heads"] * head_width * 2
    [given] = plan_of("8GiB", device="cpu", kv_cache_gib=1, **vllm).memories
    assert given.language.plan.cache_bytes == 32 * token * (2**30 // (32 * token))
    assert given.language.clips_per_batch == 4
    assert "--kv-cache-gib 1" in given.language.reason
    [left] = plan_of("8GiB", gpu_memory_share=0.5, **vllm).memories
    assert 3 * GIB < left.language.plan.peak_bytes < 4 * GIB
    assert left.language.plan.cache_bytes % (16 * token) == 0
    [none] = plan_of("900MiB", gpu_memory_share=0.4, **vllm).memories
    assert not none.language.fits
    enough = f"{none.least_bytes['language'] // MIB + 1}MiB"
    [some] = plan_of(enough, gpu_memory_share=0.4, **vllm).memories
    assert some.language.fits
    assert not plan_of("900MiB", device="cpu", **vllm).memories[0].language.fits


def test_rows_that_are_too_long_for_the_context_are_told():
    assert plan_of("8GiB").clip.over_context is None
    assert "context of 2,048" in plan_of("8GiB", frames=300).clip.over_context
    assert "context of 2,048" in plan_of("8GiB", max_new_tokens=2000).clip.over_context


def test_products_that_are_raised_are_planned_with_their_inputs_in_float32(tiny, monkeypatch):
    monkeypatch.setattr(estimates, "processor", lambda: WITH_BF16)
    plain = language_choice(tiny, settings(device="cpu")).plan.activations_bytes
    avx2 = Processor("made up", "x86_64", "AVX2", avx512_bf16=False, amx=False)
    monkeypatch.setattr(estimates, "processor", lambda: avx2)
    raised = language_choice(tiny, settings(device="cpu")).plan.activations_bytes
    assert raised - plain == 80 * 4 * tiny.checkpoint.config["intermediate_size"]
    wide = settings(device="cpu", compute_dtype="float32")
    monkeypatch.setattr(estimates, "processor", lambda: WITH_BF16)
    in_float32 = language_choice(tiny, wide).plan.activations_bytes
    monkeypatch.setattr(estimates, "processor", lambda: avx2)
    assert language_choice(tiny, wide).plan.activations_bytes == in_float32
