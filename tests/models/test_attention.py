"""Which kernel attention really takes: torch's own, and its flash attention where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from cogcache.generation.decoder import Decoder
from cogcache.generation.requests import Request
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import load_half
from cogcache.models.registry import family_of
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.stage_one import Sampling
from cogcache.settings.stage_two import Generation
from cogcache.video.reading import read_clip

FUSED = "aten::scaled_dot_product_attention"
FLASH = SDPBackend.FLASH_ATTENTION


class Calls(TorchDispatchMode):
    """Counts what is called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Any:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_clip(draw_scene(np.random.default_rng(7)), path)
    return family_of(Checkpoint.open("tiny")).prepare(read_clip(path, Sampling()), torch.bfloat16)


def test_each_vision_block_takes_the_flash_kernel(clip):
    family, model = family_of(Checkpoint.open("tiny")), load_half("tiny", "vision").model
    with sdpa_kernel(FLASH), Calls() as calls:  # no other kernel is allowed
        family.encode(model, [clip], 48)
    assert calls.names.count(FUSED) == len(model.model.vision.transformer.layers)
    assert "aten::_softmax" not in calls.names


def test_prefill_and_decoding_take_the_flash_kernel(clip):
    family, language = family_of(Checkpoint.open("tiny")), load_half("tiny", "language").model
    [features] = family.encode(load_half("tiny", "vision").model, [clip], 48)
    row = family.row(features, "What color is the shape?", "chat")
    request = Request(row, "clip", 0, Generation(max_new_tokens=4))
    with sdpa_kernel(FLASH), Calls() as calls:  # no other kernel is allowed
        [made] = Decoder(language, family, 1).run([[request]])
    passes = 1 + len(made.tokens)  # the video part, the prompt behind it, and each further token
    assert calls.names.count(FUSED) >= passes * language.config.num_hidden_layers
    assert "aten::_softmax" not in calls.names
