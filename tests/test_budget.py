"""What is chosen for a given memory, on the flagship's published sizes."""

from __future__ import annotations

import pytest
from checkpoints import published_tensors

from benchmarks.random_checkpoint import CONFIG
from cogcache.budget import choose_language, choose_vision, usable_bytes, whole_bytes
from cogcache.config import Settings, load_settings
from cogcache.models.sizes import HalfSizes
from cogcache.plan import row_tokens
from cogcache.units import GIB

VISION = HalfSizes(63, 67_926_784, 4_477_269_248 - 63 * 67_926_784)
LANGUAGE = HalfSizes(32, 218_112_000, 8_030_261_248 - 32 * 218_112_000)
SETTINGS = Settings()
TOKENS = row_tokens(CONFIG, 24)


def vision(gib: float, settings: Settings = SETTINGS):
    usable = usable_bytes(int(gib * GIB), on_device=True)
    return choose_vision(VISION, CONFIG, settings, usable)


def language(gib: float, settings: Settings = SETTINGS):
    usable = usable_bytes(int(gib * GIB), on_device=True)
    return choose_language(LANGUAGE, CONFIG, settings, usable, TOKENS)


def test_the_sizes_are_those_of_the_published_tensors():
    block = [
        shape
        for name, (_, shape) in published_tensors().items()
        if name.startswith("model.vision.transformer.layers.7.")
    ]
    count = 0
    for shape in block:
        product = 1
        for side in shape:
            product *= side
        count += product
    assert count == VISION.layer_parameters


def test_the_official_prompt_has_1620_tokens():
    assert TOKENS == 1620


@pytest.mark.parametrize("gib", [12, 16, 24, 48])
def test_the_vision_half_is_resident_from_12_gib(gib):
    assert vision(gib).resident_layers == 63


@pytest.mark.parametrize("gib", [4, 6, 8])
def test_below_blocks_are_offloaded_and_the_plan_keeps_within_the_memory(gib):
    choice = vision(gib)
    assert choice.fits
    assert 0 < choice.resident_layers < 63
    assert choice.plan.peak_bytes <= usable_bytes(gib * GIB, on_device=True)


def test_what_is_too_small_says_the_smallest_that_would_do():
    choice = vision(0.8)
    assert not choice.fits
    assert vision(whole_bytes(choice.smallest_bytes, on_device=True) / GIB).fits


def test_more_memory_never_gives_a_worse_choice():
    choices = [vision(gib / 2) for gib in range(3, 40)]
    layers = [choice.resident_layers for choice in choices]
    assert layers == sorted(layers)


def test_the_language_half_in_nf4_runs_in_8_gib():
    choice = language(8)
    assert choice.fits
    assert choice.plan.weights_bytes == pytest.approx(5.31 * GIB, rel=0.01)


def test_unquantised_it_does_not():
    assert not language(12, load_settings(None, {"quantization": "none"})).fits


def test_rows_are_fewer_where_memory_is_small():
    assert language(7).clips_per_batch < language(12).clips_per_batch == 8
