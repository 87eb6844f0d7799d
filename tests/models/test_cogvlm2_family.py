from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import BOS, EOS, PAD, SMALL, shard_name, write_checkpoint

from cogcache.errors import CheckpointError, UnknownFamilyError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.cogvlm2.layout import build, question_text
from cogcache.models.family import ClipTensors, PromptRow
from cogcache.models.halves.identity import identify, recall
from cogcache.models.halves.load import load_half
from cogcache.models.registry import family_of, get_family

SLOT = 128002
QUESTION = "Please describe this video in detail."
PER_FRAME = 6


def encode(text: str) -> list[int]:
    """Make an id of every character, but one of every index below 1000, as Llama 3 does."""
    return [1000 + int(text)] if text.isdecimal() else [ord(character) for character in text]


# Layouts


def test_the_chat_layout_puts_the_index_of_a_frame_behind_its_slots():
    found = build(encode, "Question: x Answer:", "chat", 3, 66, (128000, SLOT))
    frames = [token for index in range(3) for token in [*[SLOT] * 66, 1000 + index]]
    assert found.input_ids == [128000, *frames, *encode("Question: x Answer:")]
    assert found.token_type_ids == [0] + ([1] * 66 + [0]) * 3 + [0] * 19


def test_the_chat_layout_has_the_published_length():
    """24 frames of 66 slots and an index, between bos and the 11 tokens of the question."""

    def published(text: str) -> list[int]:
        return [0] if text.isdecimal() else [0] * 11

    found = build(published, "question", "chat", 24, 66, (128000, SLOT))
    assert len(found.input_ids) == 1620


def test_the_base_layout_is_one_run_of_slots():
    found = build(encode, "x", "base", 3, 66, (128000, SLOT))
    assert found.input_ids == [128000, *[SLOT] * 198, ord("x")]
    assert found.token_type_ids == [0, *[1] * 198, 0]


def test_vqa_is_laid_out_as_chat():
    layouts = [build(encode, "x", layout, 3, 66, (128000, SLOT)) for layout in ("chat", "vqa")]
    assert layouts[0] == layouts[1]


def test_an_index_may_be_more_tokens_than_one():
    found = build(lambda text: [ord(each) for each in text], "", "chat", 11, 1, (0, 1))
    assert found.input_ids[-3:] == [1, ord("1"), ord("0")]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("chat", f"Question: {QUESTION} Answer:"),
        ("vqa", f"Question: {QUESTION} Short answer:"),
        ("base", QUESTION),
    ],
)
def test_the_text_of_a_layout_is_the_published_one(layout, text):
    assert question_text(QUESTION, layout) == text


# The family


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "model", dtype=torch.float32)


@pytest.fixture
def family(folder):
    return family_of(Checkpoint.open(str(folder)))


def clip(num_frames: int, seed: int = 0) -> ClipTensors:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(num_frames, 3, SMALL.image_size, SMALL.image_size, generator=generator)
    return ClipTensors({"pixel_values_videos": pixels})


@pytest.mark.parametrize("frames_per_batch", [1, 2, 3, 100])
def test_clips_are_encoded_alike_in_any_batch(folder, family, frames_per_batch):
    vision = load_half(str(folder), "vision", dtype=torch.float32).model
    clips = [clip(3, 0), clip(1, 1), clip(4, 2)]
    found = family.encode(vision, clips, frames_per_batch)
    for each, given in zip(found, clips, strict=True):
        with torch.inference_mode():
            alone = vision.get_video_features(given.tensors["pixel_values_videos"]).pooler_output
        torch.testing.assert_close(each.tensors["features"], alone, rtol=1e-4, atol=1e-5)


def test_a_row_has_a_slot_for_every_feature(family):
    features = ClipTensors({"features": torch.zeros(11, PER_FRAME, SMALL.width)})
    row = family.row(features, "What?", "chat")
    assert int(row.sequences["token_type_ids"].sum()) == 11 * PER_FRAME
    assert row.sequences["input_ids"][0] == BOS
    slots = row.sequences["input_ids"][row.sequences["token_type_ids"].bool()]
    assert set(slots.tolist()) == {PAD}
    text = family.text_of(row.sequences["input_ids"].tolist())
    assert text == "012345678910Question: What? Answer:"


def rows_of(family, folder) -> list[PromptRow]:
    vision = load_half(str(folder), "vision", dtype=torch.float32).model
    clips = family.encode(vision, [clip(3, 0), clip(1, 1), clip(11, 2)], 48)
    prompts = ["What?", "Who is there?", "Y"]
    return [family.row(each, text, "chat") for each, text in zip(clips, prompts, strict=True)]


def test_a_batch_of_rows_gives_each_row_its_own_tokens(family, folder):
    rows = rows_of(family, folder)
    language = load_half(str(folder), "language", dtype=torch.float32).model

    def tokens(batch: list[PromptRow]) -> list[list[int]]:
        inputs = family.model_inputs(batch, language)
        length = inputs["input_ids"].shape[1]
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        return language.generate(**inputs, **options)[:, length:].tolist()

    single = [tokens([row])[0] for row in rows]
    assert tokens(rows) == single
    assert len({tuple(each) for each in single}) == 3


def test_padding_is_on_the_left_and_masked(family, folder):
    rows = rows_of(family, folder)
    language = load_half(str(folder), "language", dtype=torch.float32).model
    inputs = family.model_inputs(rows, language)
    assert inputs["attention_mask"].sum(-1).tolist() == [row.length for row in rows]
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1, 1]
    assert inputs["token_type_ids"].sum(-1).tolist() == [PER_FRAME * n for n in (3, 1, 11)]


def test_special_ids_come_from_the_config(family):
    assert (family.stop_ids, family.pad_id) == ((EOS,), PAD)


def test_text_leaves_special_tokens_and_outer_blanks_out(family):
    ids = [BOS, *family._encode("  a red ball  "), EOS, PAD, PAD]
    assert family.text_of(ids) == "a red ball"


def test_pixels_are_cast_after_preprocessing(family):
    frames = np.random.default_rng(0).integers(0, 256, (2, 72, 100, 3), dtype=np.uint8)

    class Frames:
        """What preparing needs of a clip."""

        def __init__(self) -> None:
            self.frames = frames

    exact, rounded = (
        family.prepare(Frames(), dtype).tensors["pixel_values_videos"]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact.shape == (2, 3, SMALL.image_size, SMALL.image_size)
    assert torch.equal(exact.to(torch.bfloat16), rounded)


def test_a_missing_tokenizer_is_named(family, folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        family.text_of([5])


def test_a_family_wants_the_vision_part_in_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="describes no vision part"):
        family_of(Checkpoint.open(str(folder)))


@pytest.mark.parametrize("name", ["CogVLMVideoForCausalLM", "CogVLM2VideoForConditionalGeneration"])
def test_the_family_is_found_by_the_published_class_and_by_our_own(folder, name):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    assert family_of(Checkpoint.open(str(folder))).name == "cogvlm2"


def test_an_unknown_family_is_named_with_those_there_are():
    with pytest.raises(UnknownFamilyError, match=r"no family 'cogvlm3'(.|\n)*cogvlm2"):
        get_family("cogvlm3")


# Identity


class Notes:
    """A memory in a dict that counts what it reads."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.read: list[str] = []

    def recall(self, name: str) -> Any:
        return self.kept.get(name)

    def remember(self, name: str, value: Any) -> None:
        self.kept[name] = dict(value)

    def digest_of(self, path: Path) -> str:
        self.read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_identity_is_remembered_until_a_file_changes(folder, family):
    notes = Notes()
    found = identify(family, "vision", notes)
    notes.read.clear()
    assert identify(family, "vision", notes) == recall(family, "vision", notes) == found
    assert not [name for name in notes.read if name.endswith(".safetensors")]
    os.utime(folder / shard_name(2), ns=(1, 1))
    assert recall(family, "vision", notes) is None


def test_the_identity_of_a_half_reads_its_own_shards_alone(family):
    notes = Notes()
    identify(family, "vision", notes)
    shards = {name for name in notes.read if name.endswith(".safetensors")}
    assert shards == {shard_name(2), shard_name(3)}


def test_the_identities_of_two_halves_add_up_to_the_whole(family):
    notes = Notes()
    vision, language = (identify(family, half, notes) for half in ("vision", "language"))
    assert vision.digest != language.digest
    dropped = 4 * SMALL.width // SMALL.heads // 2  # the second layer's rotary table
    assert vision.num_bytes + language.num_bytes + dropped == vision.whole_bytes
