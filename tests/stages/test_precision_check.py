"""What `verify-quantization` finds: nothing where nothing is lost, and what is lost where it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import copy_golden
from click.testing import CliRunner
from zoo import QWEN2_VL

from cogcache.catalog.catalog import Catalog
from cogcache.cli import main
from cogcache.cli.verify_quantization import _lines, _side_by_side
from cogcache.errors import CacheError, ConfigError, QuantizationError
from cogcache.generation.decoder import Decoder
from cogcache.generation.requests import Request
from cogcache.generation.teacher_forcing import log_probabilities
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of
from cogcache.models.split import split
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.settings.stage_two import Generation
from cogcache.stages.captioning.likeness import (
    Bounds,
    ComparedCaptions,
    Expectations,
    compare,
    similarity,
    summary,
    worst,
)
from cogcache.stages.captioning.precision import check_precision
from cogcache.stages.captioning.read_ahead import read_clip_features
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore

PROMPT = "What color is the shape?"
ONE_WORKER = {"decode_workers": 1}
SIDES = ("unquantised", "quantised")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_clip(draw_scene(np.random.default_rng(40 + number)), folder / f"{number}.mp4")
    return folder


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    return copy_golden(tmp_path_factory.mktemp("golden") / "model")


@pytest.fixture(scope="module")
def cache(videos, tmp_path_factory) -> Path:
    """Features of `tiny`."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    extract([str(videos)], folder, load_settings(None, ONE_WORKER))
    return folder


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.log_softmax(torch.tensor(rows), dim=-1)


def pair(**changes) -> ComparedCaptions:
    fields = {
        "video": "a.mp4", "start_s": 0.0, "end_s": None, "prompt_name": "p", "prompt": "What?",
        "reference_caption": "A red square.", "caption": "A red square.",
        "reference_flags": (), "flags": (), "similarity": 1.0,
        "expectations": Expectations(4, 0.1, 0.2, 1.0),
    }  # fmt: skip
    return ComparedCaptions(**{**fields, **changes})


# Figures


def test_equal_expectations_are_not_apart():
    found = compare(logits([1.0, 2, 3], [3.0, 2, 1]), logits([1.0, 2, 3], [3.0, 2, 1]))
    assert (found.positions, found.agreement) == (2, 1.0)
    assert found.kl_max == pytest.approx(0.0, abs=1e-6)


def test_divergence_is_the_textbook_one():
    one, other = logits([1.0, 2, 3], [0.0, 5, 0]), logits([3.0, 2, 1], [0.0, 5, 1])
    wanted = torch.nn.functional.kl_div(other, one, log_target=True, reduction="none").sum(-1)
    found = compare(one, other)
    assert found.kl == pytest.approx(float(wanted.mean()))
    assert found.kl_max == pytest.approx(float(wanted.max()))
    assert found.agreement == 0.5


def test_captions_are_compared_word_by_word_and_in_order():
    assert similarity("a red square", "a red square") == 1.0
    assert similarity("a red square moves", "a blue square moves") == 0.75
    assert similarity("a b c d", "d c b a") == 0.25
    assert similarity("", "") == 1.0


def test_places_weigh_alike_in_long_and_in_short_captions():
    short, long = Expectations(1, 1.0, 1.0, 0.0), Expectations(9, 0.0, 0.0, 1.0)
    found = summary([pair(expectations=short), pair(expectations=long)])
    assert (found["positions"], found["kl"], found["agreement"]) == (10, 0.1, 0.9)


def test_rates_are_given_for_both_precisions():
    pairs = [pair(flags=("empty",)), pair(reference_flags=("looping", "no_end")), pair(), pair()]
    found = summary(pairs)
    assert (found["empty"], found["reference_empty"]) == (0.25, 0.0)
    assert (found["looping"], found["reference_looping"]) == (0.0, 0.25)
    assert (found["no_end"], found["reference_no_end"]) == (0.0, 0.25)
    assert found["flagged_more"] == 0.0


def test_the_worst_are_those_with_the_fewest_words_in_common():
    pairs = [pair(video=f"{n}.mp4", similarity=1 - n / 20) for n in range(15)]
    assert [each.video for each in worst(pairs)] == [f"{n}.mp4" for n in range(14, 4, -1)]


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"max_kl": 0.05}, "kl is 0.1, at most 0.05 was asked for"),
        ({"min_agreement": 0.9}, "agreement is 0.8, at least 0.9 was asked for"),
        ({"min_similarity": 0.9}, "similarity is 0.7, at least 0.9 was asked for"),
        ({"max_flagged": 0.0}, "flagged_more is 0.5, at most 0 was asked for"),
    ],
)
def test_each_bound_is_held(bound, message):
    found = {"kl": 0.1, "agreement": 0.8, "similarity": 0.7, "flagged_more": 0.5}
    assert Bounds(**bound).broken_by(found) == [message]
    assert Bounds().broken_by(found) == []
    assert Bounds(max_kl=0.1, min_agreement=0.8, min_similarity=0.7).broken_by(found) == []


def test_a_figure_that_is_no_number_breaks_its_bound():
    assert Bounds(max_kl=1.0).broken_by({"kl": float("nan")})


# What is expected of a model


def features_of(cache: Path) -> dict:
    store = FeatureStore.open(cache)
    return {key: read_clip_features(store, key) for key in store}


@pytest.mark.parametrize("model", ["tiny", "golden", "qwen2_vl"])
def test_the_likeliest_tokens_at_the_places_of_a_caption_are_those_it_has(
    model, golden, videos, tmp_path
):
    names = {"tiny": "tiny", "golden": str(golden)}
    name = names.get(model) or str(QWEN2_VL.write(tmp_path / "model"))
    settings = load_settings(None, {"model": name, "vision_dtype": "float32", **ONE_WORKER})
    extract([str(videos / "0.mp4")], tmp_path / "cache", settings)
    family = family_of(Checkpoint.open(name))
    whole = WholeModel.of(family.checkpoint, **family.config_overrides(settings.language))
    half = load_half(whole, "language", dtype=torch.float32).model
    [features] = features_of(tmp_path / "cache").values()
    row = family.row(features, PROMPT, family.layout(settings.language))
    request = Request(row, "clip", 0, Generation(max_new_tokens=12))
    [made] = Decoder(half, family, 1).run([[request]])
    expected = log_probabilities(half, family, row, made.tokens[:-1])
    assert expected.argmax(dim=-1).tolist() == made.tokens


# The whole


def test_4_bits_of_tiny_say_the_same_and_are_hardly_apart(cache):
    """The prompt that waits for another's caption is left out."""
    settings = load_settings(None, {"prompts": {"a": "After {caption.b}?", "b": PROMPT}})
    pairs = check_precision(cache, settings, clips=2)
    assert [each.prompt for each in pairs] == [PROMPT, PROMPT]
    assert [each.caption for each in pairs] == [each.reference_caption for each in pairs]
    found = summary(pairs)
    assert (found["similarity"], found["agreement"]) == (1.0, 1.0)
    assert 0 < found["kl"] < 0.01


@pytest.mark.slow
def test_random_weights_lose_much_and_the_gate_says_so(golden, videos, tmp_path):
    """Their choices are close, so that 4 bits change many of them."""
    settings = load_settings(None, {"model": str(golden), **ONE_WORKER})
    extract([str(videos)], tmp_path / "cache", settings)
    options = ["--cache", str(tmp_path / "cache"), "--model", str(golden), "--json"]
    options += ["--max-new-tokens", "12", "--quantization", "fp4", "--max-kl", "0.0001"]
    done = CliRunner().invoke(main, ["verify-quantization", *options, "--min-agreement", "0.999"])
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert done.stderr == ""
    assert [each.split()[0] for each in found["broken"]] == ["kl", "agreement"]
    rows = found["captions"]
    assert len(rows) == found["summary"]["captions"] == 3
    assert {row["video"] for row in rows} == {str(path) for path in videos.iterdir()}
    # How many of them end within 12 tokens differs with the number of threads.
    for whose, rate in (("flags", "no_end"), ("reference_flags", "reference_no_end")):
        assert found["summary"][rate] == sum("no_end" in row[whose] for row in rows) / 3 > 0
    with Catalog(tmp_path / "cache" / "catalog.sqlite") as catalog:
        assert list(catalog.captions.rows()) == []


def test_a_table_is_printed_for_readers():
    pairs = [pair(), pair(video="b.mp4", caption="A blue square.", similarity=0.67)]
    said = "\n".join([*_lines(summary(pairs), SIDES), *_side_by_side(pairs, SIDES)])
    assert "2 captions, 8 places of them" in said
    assert "same top token: 100.00% of places" in said
    assert "The 2 that are furthest apart" in said
    assert said.index("A blue square.") < said.index("a.mp4")


def test_no_quantisation_cannot_be_compared_with_none(cache):
    with pytest.raises(ConfigError, match="no quantisation is asked for"):
        check_precision(cache, load_settings(None, {"quantization": "none"}))


def test_a_split_has_no_unquantised_half_to_compare_with(cache, tmp_path):
    settings = load_settings(None, {"model": str(tmp_path / "out")})
    split("tiny", tmp_path / "out", settings)
    with pytest.raises(QuantizationError, match="asked for was not quantised") as refusal:
        check_precision(cache, settings)
    assert "tiny" in refusal.value.hint


def test_a_cache_without_clips_is_said(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    with pytest.raises(CacheError, match="holds no clips"):
        check_precision(tmp_path / "cache", load_settings(None, {}))
