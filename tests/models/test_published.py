"""Both stages give what the release of transformers gave that a family was published with.

The judge is that release: tests/golden/families says which, and what it made of a clip.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from published import GOLDENS, Golden, differences, made

from cogcache.generation.requests import last_position
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.derived import processing
from cogcache.models.derived.frame_texts import whole_placeholder
from cogcache.models.derived.positions import RULES, grids_of, positions_of, with_text_axis
from cogcache.models.derived.times import FrameTimes
from cogcache.models.family import ClipTensors
from cogcache.models.registry import family_of

JUDGES = {
    path.parent.name: f"transformers-{json.loads(path.read_text())['transformers']}"
    for path in sorted(GOLDENS.glob("*/golden.json"))
}
"""The release that made each family's golden; tests bear its name."""
LONG = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")


@pytest.mark.filterwarnings("ignore")  # of transformers, about files of its earlier releases
@pytest.mark.parametrize("name", [pytest.param(k, id=f"{k}-{v}") for k, v in JUDGES.items()])
def test_pixels_ids_features_positions_logits_and_tokens_are_the_releases(name, tmp_path):
    golden = Golden.read(name)
    assert differences(golden, made(golden, golden.checkpoint(tmp_path / name))) == []


def position_inputs(name):
    golden = Golden.read(name)
    tensors = {key[5:]: each for key, each in golden.tensors.items() if key.startswith("long.")}
    config = json.loads((golden.folder / "checkpoint" / "config.json").read_text())
    config["vision_config"].setdefault("spatial_merge_size", 2)
    names = ("image_token_id", "video_token_id")
    ids = torch.tensor([config[key] for key in names if key in config])
    return tensors, config, torch.isin(tensors["input_ids"], ids)


@pytest.mark.parametrize("name", [pytest.param(k, id=f"{k}-{JUDGES[k]}") for k in LONG])
def test_positions_of_a_long_video_are_the_releases(name):
    tensors, config, slots = position_inputs(name)
    found = positions_of(slots, grids_of(RULES[name], tensors, config))
    assert torch.equal(found, tensors["positions"])
    following = last_position(with_text_axis(found)[:, None]) + 1
    assert following[1:].unique().tolist() == tensors["next"].tolist()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_counting_on_from_height_and_width_alone_is_seen(name):
    """The fault that transformers 5.3 and later have, put in again."""
    tensors, config, slots = position_inputs(name)
    grid = grids_of(RULES[name], tensors, config)[0]
    first = int(slots.int().argmax())
    end = first + grid.count
    found = positions_of(slots, [grid])
    start = first + max(grid.height, grid.width)
    found[:, end:] = torch.arange(start, start + len(slots) - end)
    assert not torch.equal(found, tensors["positions"])


def test_prompts_that_end_with_the_video_count_on_from_the_highest_position():
    positions = with_text_axis(torch.tensor([[0, 1, 3, 5], [0, 1, 1, 1], [0, 1, 1, 1]]))
    assert last_position(positions[:, None]).flatten().tolist() == [3, 5, 5, 5]


def test_slots_that_are_not_those_of_the_grids_are_refused():
    slots = torch.tensor([False, True, True])
    with pytest.raises(ValueError, match="more slots"):
        positions_of(slots, [])


@pytest.mark.filterwarnings("ignore")
def test_marks_around_the_placeholder_make_two_ids_too_many(tmp_path, monkeypatch):
    golden = Golden.read("qwen3_vl")
    checkpoint = golden.checkpoint(tmp_path / "qwen3_vl")
    monkeypatch.setattr(processing, "whole_placeholder", lambda text, processor: text)
    family = family_of(Checkpoint.open(str(checkpoint)))
    features = family.prepare(golden.clip(), torch.float32)
    ids = family.row(features, golden.facts["question"], "").sequences["input_ids"]
    assert len(ids) == len(golden.tensors["input_ids"]) + 2
    assert whole_placeholder is not processing.whole_placeholder


@pytest.mark.filterwarnings("ignore")
def test_a_rate_that_an_earlier_version_stored_is_set_right(tmp_path):
    golden = Golden.read("qwen2_5_vl")
    family = family_of(Checkpoint.open(str(golden.checkpoint(tmp_path / "qwen2_5_vl"))))
    prepared = family.prepare(golden.clip(), torch.float32)
    wrong = {"extra.second_per_grid_ts": torch.tensor([1.99])}
    stored = ClipTensors(wrong, prepared.texts, prepared.facts)
    told = family.row(stored, "What?", "").features.tensors["extra.second_per_grid_ts"]
    assert np.isclose(float(told), float(golden.tensors["extra.second_per_grid_ts"]), atol=1e-4)


def test_ids_are_made_from_times_not_from_the_text_that_was_stored(tmp_path):
    golden = Golden.read("qwen3_vl")
    family = family_of(Checkpoint.open(str(golden.checkpoint(tmp_path / "qwen3_vl"))))
    prepared = family.prepare(golden.clip(), torch.float32)
    texts = {**prepared.texts, "replacements": json.dumps(["<9.9 seconds>"])}
    stored = ClipTensors(prepared.tensors, texts, prepared.facts)
    ids = family.row(stored, golden.facts["question"], "").sequences["input_ids"]
    assert torch.equal(ids, golden.tensors["input_ids"])


def test_the_rate_of_a_part_of_a_video_counts_the_frames_of_that_part():
    times = FrameTimes([10.0, 11.0, 12.0, 13.0], 25.0, 1500, 60.0, 10.0, 14.0)
    assert times.num_frames == 100
    assert times.sampled_fps == 1.0


@pytest.mark.filterwarnings("ignore")
def test_smolvlms_frames_keep_the_size_of_videos(tmp_path):
    golden = Golden.read("smolvlm")
    folder = golden.checkpoint(tmp_path / "smolvlm")
    size = processing.load_processor(folder, "smolvlm").video_processor.size
    assert size["longest_edge"] == 112
