"""Plans from headers and config alone, against what is loaded."""

from __future__ import annotations

import pytest
import torch
from scenes import settings

from cogcache.budget import choose_vision
from cogcache.checkpoint import Checkpoint
from cogcache.models.halves import WholeModel, load_half
from cogcache.models.identity import HalfIdentity
from cogcache.models.sizes import half_sizes
from cogcache.plan import frame_bytes, plan_language
from cogcache.quantization import Quantization

GIB = 1024**3
PUBLISHED_TEXT = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_multi_query_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256,
}  # fmt: skip
PUBLISHED_VISION = {
    "hidden_size": 1792, "intermediate_size": 15360, "num_positions": 257, "image_size": 224,
    "patch_size": 14, "num_hidden_layers": 63,
}  # fmt: skip
PUBLISHED = {**PUBLISHED_TEXT, "vision_config": PUBLISHED_VISION}


@pytest.fixture(scope="module")
def tiny() -> WholeModel:
    return WholeModel.of(Checkpoint.open("tiny"))


def identity(whole: WholeModel, half: str) -> HalfIdentity:
    described = whole.checkpoint.tensors(whole.partition.names(half)).values()
    num_bytes, count = sum(d.num_bytes for d in described), sum(d.num_parameters for d in described)
    return HalfIdentity("cogvlm2", "0", num_bytes, count, 0)


def held_bytes(whole: WholeModel, half: str, kind: str = "none") -> int:
    quantization = Quantization(kind=kind) if half == "language" else None
    loaded = load_half(whole, half, dtype=torch.bfloat16, quantization=quantization)
    model = loaded.model
    return sum(each.nbytes for each in model.parameters())


def test_planned_vision_weights_are_what_is_held(tiny):
    sizes = half_sizes(tiny.checkpoint, tiny.partition, "vision")
    planned = choose_vision(sizes, tiny.checkpoint.config, settings(), GIB).plan
    assert planned.weights_bytes == pytest.approx(held_bytes(tiny, "vision"), rel=0.001)


@pytest.mark.parametrize(("kind", "rel"), [("none", 0.001), ("nf4", 0.2), ("int8", 0.2)])
def test_planned_language_weights_are_what_is_held(tiny, kind, rel):
    asked = settings(quantization=kind)
    planned = plan_language(identity(tiny, "language"), tiny.checkpoint.config, asked, 80)
    assert planned.weights_bytes == pytest.approx(held_bytes(tiny, "language", kind), rel=rel)


def test_the_published_language_half_takes_some_5_gib_in_4_bits():
    half = HalfIdentity("cogvlm2", "0", 0, 8_030_261_248, 0)
    planned = plan_language(half, PUBLISHED, settings(clips_per_batch=1), 1620)
    assert planned.weights_bytes / GIB == pytest.approx(5.3, abs=0.2)


def test_keys_and_values_are_those_of_all_rows_at_full_length():
    planned = plan_language(
        HalfIdentity("cogvlm2", "0", 0, 8_030_261_248, 0),
        PUBLISHED,
        settings(clips_per_batch=3, max_new_tokens=100),
        1620,
    )
    assert planned.cache_bytes == 3 * (1620 + 100) * 32 * 8 * 128 * 2 * 2


def test_a_frame_takes_more_in_float32(tiny):
    config = tiny.checkpoint.config
    few, many = (frame_bytes(config, settings(vision_dtype=t)) for t in ("bfloat16", "float32"))
    assert many == 2 * few


def test_only_one_prefill_is_in_memory_at_once():
    half = HalfIdentity("cogvlm2", "0", 0, 8_030_261_248, 0)
    one, eight = (
        plan_language(half, PUBLISHED, settings(clips_per_batch=rows), 1620) for rows in (1, 8)
    )
    assert eight.activations_bytes - one.activations_bytes == 7 * 128256 * 4


def test_a_config_without_intermediate_sizes_can_be_planned():
    config = {"vision_config": {"embed_dim": 64, "patch_size": 14, "image_size": 56}}
    assert frame_bytes(config, settings()) > 0
