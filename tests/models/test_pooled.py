"""Features from before the projector: smaller files, the same tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import MINI, write_checkpoint, write_tokenizer

from cogcache.catalog.catalog import Catalog
from cogcache.errors import ConfigError
from cogcache.generation.batches import generate
from cogcache.generation.decoder import Decoder
from cogcache.generation.requests import Request
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.identity import identify
from cogcache.models.halves.load import WholeModel, load_half, load_whole
from cogcache.models.quantization.layers import Quantization, kind_of, linear_layers
from cogcache.models.registry import family_of
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.settings.stage_two import Generation, Language
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.video.reading import read_clip

PROMPT = "What color is the shape?"
GREEDY = Generation(max_new_tokens=16)
PROJECTION = ("linear_proj", "boi", "eoi")


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    for path in MINI.glob("*"):
        if path.name != "golden.safetensors":
            shutil.copy(path, folder)
    write_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(params=["tiny", "golden"])
def model(request, golden) -> str:
    return "tiny" if request.param == "tiny" else str(golden)


def pooled(model: str) -> tuple:
    family = family_of(Checkpoint.open(model)).at("pooled")
    return family, WholeModel.of(family.checkpoint, **family.config_overrides(Language()))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        write_clip(draw_scene(np.random.default_rng(70 + number)), folder / f"{number}.mp4")
    return folder


def test_the_projector_is_in_the_language_half_and_nowhere_else(model):
    _, whole = pooled(model)
    parts = whole.partition
    names = [*parts.vision, *parts.language, *parts.shared, *parts.dropped]
    assert sorted(names) == sorted(whole.checkpoint.weight_map)
    projection = {f"model.vision.{each}" for each in PROJECTION}
    kept = {name for name in parts.language if name.startswith("model.vision.")}
    assert {".".join(name.split(".")[:3]) for name in kept} == projection
    for half in ("vision", "language"):
        tensors = load_half(whole, half, dtype=torch.float32).model.state_dict()
        found = {".".join(name.split(".")[:3]) for name in tensors} & projection
        assert found == (projection if half == "language" else set())


def test_tokens_equal_those_of_the_whole_model_as_published(model, videos):
    """The reference has its projector where it always was, and sees pixels."""
    family, whole = pooled(model)
    vision = load_half(whole, "vision", dtype=torch.float32).model
    language = load_half(whole, "language", dtype=torch.float32).model
    reference = load_whole(WholeModel.of(family.checkpoint), dtype=torch.float32)
    settings = load_settings(None, {"model": model})
    for path in sorted(videos.iterdir()):
        inputs = family.prepare(read_clip(path, settings.sampling, 0.0, None), torch.float32)
        [features] = family.encode(vision, [inputs], 48)
        expected = family.expected(inputs, torch.float32).tensors["features"]
        assert features.tensors["features"].shape == expected.shape
        row = family.row(features, PROMPT, "chat")
        arguments = family.model_inputs([row], reference)
        del arguments["mm_encoder_outputs"]
        expected = reference.generate(
            **arguments, **inputs.tensors, max_new_tokens=16, do_sample=False,
            eos_token_id=list(family.stop_ids), pad_token_id=family.pad_id,
        )[0, row.length :].tolist()  # fmt: skip
        assert generate(language, family, [row], GREEDY) == [expected]
        [made] = Decoder(language, family, 2).run([[Request(row, "", 0, GREEDY)]])
        assert made.tokens == expected


def test_beams_over_clips_of_unequal_length_keep_them_apart(videos):
    family, whole = pooled("tiny")
    language = load_half(whole, "language", dtype=torch.float32).model
    vision = load_half(whole, "vision", dtype=torch.float32).model
    settings = load_settings()
    paths = sorted(videos.iterdir())
    inputs = [
        family.prepare(read_clip(p, settings.sampling, 0.0, None), torch.float32) for p in paths
    ]
    rows = [family.row(each, PROMPT, "chat") for each in family.encode(vision, inputs, 48)]
    assert len({row.length for row in rows}) > 1
    beams = Generation(max_new_tokens=16, num_beams=2)
    alone = [generate(language, family, [row], beams)[0] for row in rows]
    assert generate(language, family, rows, beams) == alone


def test_the_projector_is_not_quantised(tmp_path):
    folder = write_checkpoint(tmp_path / "random")
    _, whole = pooled(str(folder))
    language = load_half(whole, "language", quantization=Quantization()).model
    kinds = {path: kind_of(module) for path, module in linear_layers(language)}
    assert {k for path, k in kinds.items() if "linear_proj" in path} == {"none"}
    assert {k for path, k in kinds.items() if ".layers." in path} == {"nf4"}


def test_both_cache_points_live_in_one_cache_and_caption_alike(videos, tmp_path):
    texts = {}
    for point in ("projected", "pooled"):
        changes = {"cache_point": point, "quantization": "none", "prompts": {"color": PROMPT}}
        changes |= {"vision_dtype": "float32", "compute_dtype": "float32", "decode_workers": 1}
        settings = load_settings(None, changes)
        assert extract([videos], tmp_path, settings).counts.done == 4
        run = caption(tmp_path, settings).run
        with Catalog(tmp_path / "catalog.sqlite") as catalog:
            rows = [row for row in catalog.captions.rows() if row["run"] == run]
        texts[point] = {row["video"]: row["caption"] for row in rows}
    assert len(texts["pooled"]) == 4
    assert texts["pooled"] == texts["projected"]


def test_halves_are_told_apart_by_cache_point(tmp_path):
    with Catalog(tmp_path / "catalog.sqlite") as memory:
        family = family_of(Checkpoint.open("tiny"))
        found = {
            identify(family.at(point), half, memory.files).digest
            for point in ("projected", "pooled")
            for half in ("vision", "language")
        }
    assert len(found) == 4


def test_a_family_without_the_cache_point_says_which_it_has():
    from cogcache.models.derived.family import DerivedFamily

    with pytest.raises(ConfigError, match="no cache point 'pooled'"):
        DerivedFamily(Checkpoint.open("tiny")).at("pooled")
