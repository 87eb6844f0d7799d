"""What is chosen for a given memory, on the flagship's published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from checkpoints import published_tensors

from benchmarks.random_checkpoint import CONFIG
from cogcache.models.halves.sizes import HalfSizes, LanguageSizes
from cogcache.models.quantization.layers import Quantization, quantized_bytes
from cogcache.planning.choices import (
    LanguageChoice,
    choose_language,
    choose_vision,
    usable_bytes,
    whole_bytes,
)
from cogcache.planning.estimates import row_tokens
from cogcache.planning.fitted import less
from cogcache.settings.settings import Settings
from cogcache.units import GIB

VISION = HalfSizes(63, 67_926_784, 4_477_269_248 - 63 * 67_926_784)
PLAIN = 2 * 525_336_576
"""Bytes of the embedding, and of the output head."""
LAYER = quantized_bytes(218_103_808 // 4096, 4096, Quantization()) + 2 * 2 * 4096
LANGUAGE = LanguageSizes(32, LAYER, PLAIN, True, PLAIN, 2 * 4096, 58_720_256, 32 * LAYER, 0)
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


def test_the_language_half_in_nf4_takes_5_gib():
    assert LANGUAGE.total_bytes == pytest.approx(5.31 * GIB, rel=0.01)
    assert language(12).plan.weights_bytes == LANGUAGE.total_bytes


def test_the_embedding_waits_before_any_layer_does():
    choice = language(6)
    assert choice.embedding_waits
    assert choice.resident_layers == 32
    assert choice.plan.weights_bytes == LANGUAGE.total_bytes - LANGUAGE.embedding_bytes


@pytest.mark.parametrize("gib", [3, 4])
def test_layers_wait_last_and_the_plan_keeps_within_the_memory(gib):
    choice = language(gib)
    assert choice.fits
    assert choice.embedding_waits
    assert choice.resident_layers < 32
    assert choice.plan.peak_bytes <= usable_bytes(gib * GIB, on_device=True)


def test_a_tied_embedding_never_waits():
    tied = replace(LANGUAGE, embedding_can_wait=False, head_bytes=0)
    usable = usable_bytes(6 * GIB, on_device=True)
    assert not choose_language(tied, CONFIG, SETTINGS, usable, TOKENS).embedding_waits


def test_what_is_too_small_for_stage_two_says_the_smallest_that_would_do():
    choice = language(1)
    assert not choice.fits
    assert language(whole_bytes(choice.smallest_bytes, on_device=True) / GIB).fits


def test_rows_are_fewer_where_memory_is_small():
    assert language(6).clips_per_batch < language(12).clips_per_batch == 8


def test_each_choice_gives_its_reason():
    assert "all weights (5.31 GiB) stay" in language(12).reason
    assert "the embedding (0.979 GiB) waits" in language(6).reason
    assert "of 32 layers" in language(4).reason


def test_after_running_out_of_memory_less_is_chosen_until_nothing_is_left():
    def choose(usable: int) -> LanguageChoice:
        return choose_language(LANGUAGE, CONFIG, SETTINGS, usable, TOKENS)

    choice, peaks = choose(8 * GIB), []
    while choice is not None:
        peaks.append(choice.plan.peak_bytes)
        last, choice = choice, less(choose, choice)
    assert peaks == sorted(set(peaks), reverse=True)
    assert len(peaks) > 3
    assert (last.resident_layers, last.clips_per_batch) == (0, 1)
    assert last.plan.peak_bytes == last.smallest_bytes
