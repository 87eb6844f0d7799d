"""Blocks that wait elsewhere change no bit of the features."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from checkpoints import write_checkpoint

from cogcache.errors import ConfigError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.halves.offload import Offload
from cogcache.models.halves.sizes import block_paths, half_sizes
from cogcache.models.quantization.head import HeadInParts
from cogcache.models.quantization.layers import Quantization, quantized_linear
from cogcache.models.registry import family_of
from cogcache.planning import fitted
from cogcache.planning.fitted import VisionLoader
from cogcache.settings.settings import load_settings
from cogcache.system.memory_monitor import sample
from cogcache.units import KIB, MIB


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> WholeModel:
    return WholeModel.of(Checkpoint.open(str(write_checkpoint(tmp_path_factory.mktemp("model")))))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 56, 56, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("resident", [0, 1])
def test_features_equal_those_of_the_resident_half(whole, pixels, resident):
    offloaded = load_half(whole, "vision", offload=Offload(resident)).model
    expected = load_half(whole, "vision").model.get_video_features(pixels).pooler_output
    with torch.inference_mode():
        found = offloaded.get_video_features(pixels).pooler_output
    assert torch.equal(found, expected)


@pytest.mark.parametrize("resident", [0, 1])
@pytest.mark.parametrize("kind", ["none", "nf4", "int8", "int4"])
@pytest.mark.parametrize("head", ["none", "nf4", "int8", "int4"])
def test_logits_equal_those_of_the_resident_half(whole, resident, kind, head):
    quantization = Quantization(kind=kind, head=head)
    ids = torch.arange(4, 24)[None]
    found, wanted = (logits(whole, ids, quantization, o) for o in (Offload(resident, True), None))
    assert torch.equal(found, wanted)


def logits(whole, ids, quantization, offload) -> torch.Tensor:
    half = load_half(whole, "language", quantization=quantization, offload=offload)
    with torch.inference_mode():
        return half.model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits


def test_a_quantised_head_gives_nearly_the_same_logits(whole):
    ids = torch.arange(4, 24)[None]
    plain, eight, *both = (
        logits(whole, ids, Quantization(kind="none", head=head), None).float()
        for head in ("none", "int8", "nf4", "int4")
    )
    assert 0 < (eight - plain).norm() / plain.norm() < 0.05
    for four in both:
        assert 0 < (four - plain).norm() / plain.norm() < 0.2


def test_a_head_in_parts_gives_the_logits_of_one_layer():
    torch.manual_seed(0)
    weight, hidden = torch.randn(96, 64).bfloat16(), torch.randn(1, 3, 64).bfloat16()
    quantization = Quantization(double_quant=False)  # nested scales share an offset
    whole = quantized_linear(weight, None, quantization, "cpu")
    parts = [quantized_linear(rows, None, quantization, "cpu") for rows in weight.split(32)]
    with torch.inference_mode():
        assert torch.equal(HeadInParts(parts)(hidden), whole(hidden))


def test_an_embedding_that_the_head_needs_is_not_sent_away():
    tied = WholeModel.of(Checkpoint.open("tiny"))
    tied.meta.all_tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    with pytest.raises(ConfigError, match="must be where the model runs"):
        load_half(tied, "language", offload=Offload(embedding=True))


def test_waiting_blocks_are_not_in_memory(whole):
    model = load_half(whole, "vision", offload=Offload(1)).model
    first, second = (model.get_submodule(p) for p in block_paths(model.named_parameters()))
    assert {p.device.type for p in first.parameters()} == {"cpu"}
    assert {p.device.type for p in second.parameters()} == {"meta"}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
@pytest.mark.parametrize("waiting", [Offload(0), None])
def test_memory_between_what_stays_goes_back_while_blocks_wait(whole, waiting):
    half = load_half(whole, "vision", offload=waiting)
    passing, staying = [], []
    for _ in range(40):
        passing.append(torch.ones(4 * MIB, dtype=torch.uint8))
        staying.append(torch.ones(MIB // 4, dtype=torch.uint8))
    full_bytes = sample().anonymous_bytes
    passing.clear()
    given_back = full_bytes - sample().anonymous_bytes > 100 * MIB
    assert given_back == (waiting is not None)
    assert half


def test_sizes_add_up_to_the_half(whole):
    for half in ("vision", "language"):
        sizes = half_sizes(whole.checkpoint, whole.partition, half)
        infos = whole.checkpoint.tensors(whole.partition.names(half))
        assert sizes.num_parameters == sum(info.num_parameters for info in infos.values())
        assert sizes.num_layers == 2


def first_choice(whole, memory):
    settings = load_settings(None, {"model": str(whole.checkpoint.folder), "memory": memory})
    return VisionLoader(family_of(whole.checkpoint), settings).first()


def test_a_memory_that_holds_nothing_is_refused_with_what_would_do(whole):
    with pytest.raises(ConfigError, match="not fit 1MiB, of which the process itself") as refused:
        first_choice(whole, "1MiB")
    enough = re.search(r"--memory (\d+)MiB or more", refused.value.hint)
    assert enough
    assert int(enough[1]) * MIB - sample().host_bytes < 64 * MIB
    assert first_choice(whole, f"{int(enough[1]) + 16}MiB").fits  # it may have grown meanwhile


def test_free_memory_that_does_not_do_is_refused_with_what_would(whole, monkeypatch):
    monkeypatch.setattr(fitted, "free_bytes", lambda _: KIB)
    with pytest.raises(ConfigError, match="not fit the 1 KiB that are free") as refused:
        first_choice(whole, "auto")
    assert re.fullmatch(r"free .* KiB or more", refused.value.hint)
