"""Blocks that wait elsewhere change no bit of the features."""

from __future__ import annotations

import pytest
import torch
from checkpoints import write_checkpoint

from cogcache.checkpoint import Checkpoint
from cogcache.config import load_settings
from cogcache.errors import ConfigError
from cogcache.loading import VisionLoader
from cogcache.models.halves import WholeModel, load_half
from cogcache.models.offload import Offload
from cogcache.models.registry import family_of
from cogcache.models.sizes import block_paths, half_sizes


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


def test_waiting_blocks_are_not_in_memory(whole):
    model = load_half(whole, "vision", offload=Offload(1)).model
    first, second = (model.get_submodule(p) for p in block_paths(model.named_parameters()))
    assert {p.device.type for p in first.parameters()} == {"cpu"}
    assert {p.device.type for p in second.parameters()} == {"meta"}


def test_sizes_add_up_to_the_half(whole):
    for half in ("vision", "language"):
        sizes = half_sizes(whole.checkpoint, whole.partition, half)
        infos = whole.checkpoint.tensors(whole.partition.names(half))
        assert sizes.num_parameters == sum(info.num_parameters for info in infos.values())
        assert sizes.num_layers == 2


def test_a_memory_that_holds_nothing_is_refused_with_what_would_do(whole):
    settings = load_settings(None, {"model": str(whole.checkpoint.folder), "memory": "1MiB"})
    with pytest.raises(ConfigError, match="does not fit"):
        VisionLoader(family_of(whole.checkpoint), settings).first()
