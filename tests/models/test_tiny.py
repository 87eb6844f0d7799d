"""The checkpoint in the package: its layout, its tokenizer, and that it really answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import load_half
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import family_of
from cogcache.selftest.shapes import QUESTIONS, draw_scene, write_clip
from cogcache.settings.stage_one import Sampling
from cogcache.video.reading import read_clip

TINY = Path(__file__).parents[2] / "cogcache" / "tiny"
GOLDEN = Path(__file__).parents[1] / "golden" / "cogvlm2-mini"


def shards() -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for path in sorted(TINY.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found[path.name] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def test_the_folder_has_at_most_4_megabytes() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 4_000_000


def test_the_config_has_the_published_keys_and_no_model_type() -> None:
    ours = json.loads((TINY / "config.json").read_text())
    published = json.loads((GOLDEN / "config.json").read_text())
    assert set(ours) == set(published) - {"auto_map"}
    assert set(ours["vision_config"]) == set(published["vision_config"])
    assert ours["template_version"] == "chat"


def test_tensors_have_the_published_names_and_types() -> None:
    with safe_open(GOLDEN / "model.safetensors", "pt") as file:
        published = set(file.keys())
    tensors = {name: tensor for shard in shards().values() for name, tensor in shard.items()}
    # Both checkpoints have three layers in each half.
    assert set(tensors) == published
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_the_index_says_where_each_tensor_lies() -> None:
    index = json.loads((TINY / "model.safetensors.index.json").read_text())
    there = {name: shard for shard, tensors in shards().items() for name in tensors}
    assert index["weight_map"] == there
    size = sum(tensor.nbytes for tensors in shards().values() for tensor in tensors.values())
    assert index["metadata"]["total_size"] == size


def test_shards_are_of_one_half_or_mixed() -> None:
    halves = [
        {"vision" if name.startswith("model.vision.") else "language" for name in tensors}
        for tensors in shards().values()
    ]
    assert halves == [{"language"}, {"vision", "language"}, {"vision"}, {"language"}]


def test_decoder_sizes_suit_4_bits_on_the_cpu() -> None:
    for tensors in shards().values():
        for name, tensor in tensors.items():
            if "language_expert" in name or "language_mlp" in name:
                assert tensor.shape[1] % 64 == 0
                assert tensor.shape[0] % 32 == 0


@pytest.mark.parametrize(
    "text", ["", "Where is the cat?", "a\n\tb  c", "naïve 中文 🙂", "\x00\x7f", "12345 <|pad|"]
)
def test_any_text_is_encoded_and_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


def test_frame_indices_are_single_tokens(tokenizer: Tokenizer) -> None:
    for index in range(64):
        assert len(tokenizer.encode(str(index), add_special_tokens=False).ids) == 1


def test_special_tokens_are_the_configs(tokenizer: Tokenizer) -> None:
    config = json.loads((TINY / "config.json").read_text())
    names = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "<|pad|>"}
    for name, token in names.items():
        assert tokenizer.token_to_id(token) == config[f"{name}_token_id"]
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    assert config["vocab_size"] % 64 == 0


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_tiny_answers_every_question_about_real_files(kind: str, tmp_path: Path) -> None:
    scenes = [draw_scene(np.random.default_rng((77, seed))) for seed in range(12)]
    family = family_of(Checkpoint.open("tiny"))
    vision = load_half("tiny", "vision").model
    language = load_half("tiny", "language", quantization=Quantization(kind=kind)).model
    features = []
    for number, scene in enumerate(scenes):
        write_clip(scene, tmp_path / f"{number}.mp4")
        clip = read_clip(tmp_path / f"{number}.mp4", Sampling(), 0.0, None)
        features += family.encode(vision, [family.prepare(clip, vision.dtype)], 48)
    wrong = []
    for attribute, queries in QUESTIONS.items():
        rows = [family.row(clip, queries[0], "chat") for clip in features]
        inputs = family.model_inputs(rows, language)
        tokens = language.generate(**inputs, max_new_tokens=32, do_sample=False)
        for scene, row in zip(scenes, tokens[:, inputs["input_ids"].shape[1] :], strict=True):
            said = family.text_of(row.tolist())
            if said != scene.answer(attribute):
                wrong.append((said, scene.answer(attribute)))
    assert len(wrong) <= 0.05 * len(scenes) * len(QUESTIONS), wrong
