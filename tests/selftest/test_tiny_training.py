"""Training `tiny`: what a batch shows the model, and that a training can be taken up again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from cogcache.models.cogvlm2.layout import build, question_text
from cogcache.models.cogvlm2.modeling import CogVLM2VideoForConditionalGeneration
from cogcache.selftest.shapes import FPS, NUM_FRAMES, QUESTIONS, draw_scene
from cogcache.video.sampling import per_second
from tiny_training.batches import FRAME_CLASSES, Batch, make_batch, make_frames, sample_times
from tiny_training.export import export
from tiny_training.fake_quant import remove_rounding
from tiny_training.model import IMAGE_SIZE, build_config, build_model
from tiny_training.tokenizer import build_tokenizer
from tiny_training.train_tiny import PACKAGED, Recipe, Trainer, train

RECIPE = Recipe(frame_steps=2, answer_steps=4, frame_batch_size=2, batch_size=2, rounding_from=0.5)


def batch_of(size: int) -> Batch:
    tokenizer = build_tokenizer()
    slots = build_config(tokenizer).tokens_per_frame
    return make_batch(tokenizer, np.random.default_rng(5), size, IMAGE_SIZE, slots)


def weights_after(trainer: Trainer, steps: int) -> dict[str, Tensor]:
    while trainer.step < steps:
        trainer.advance()
    return {name: tensor.detach().clone() for name, tensor in trainer.weights.items()}


@pytest.mark.parametrize("num_frames", NUM_FRAMES)
def test_training_shows_the_frames_that_sampling_takes(num_frames: int) -> None:
    timestamps = np.arange(num_frames) / FPS
    taken = timestamps[per_second(timestamps, max_frames=24)]
    assert sample_times(num_frames) == taken.tolist()


def test_a_question_among_others_is_answered_as_if_asked_alone() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(build_config(tokenizer)).eval()
    batch = batch_of(1)
    with torch.no_grad():
        features = model.get_video_features(batch.frames.pixel_values)
    number = list(QUESTIONS).index("background")
    among = _logits(
        model,
        batch.input_ids,
        batch.token_type_ids,
        features,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
    )[batch.attributes == number]
    own = (batch.attributes < 0) | (batch.attributes == number)
    alone = _logits(model, batch.input_ids[own][None], batch.token_type_ids[own][None], features)
    torch.testing.assert_close(alone[0, -len(among) :], among, atol=1e-5, rtol=1e-4)


def _logits(
    model: CogVLM2VideoForConditionalGeneration,
    ids: Tensor,
    types: Tensor,
    features: Tensor,
    **more,
) -> Tensor:
    with torch.no_grad():
        return model(
            input_ids=ids, token_type_ids=types, mm_encoder_outputs={"video": features}, **more
        ).logits


def test_frames_are_labelled_with_what_they_show() -> None:
    scenes_rng, batch_rng = (np.random.default_rng(8) for _ in range(2))
    frames = make_frames(batch_rng, 3, IMAGE_SIZE)
    num_frames = int(scenes_rng.choice(NUM_FRAMES))
    scenes = [draw_scene(scenes_rng, num_frames) for _ in range(3)]
    for attribute, words in FRAME_CLASSES.items():
        shown = [words[int(index)] for index in frames.classes[attribute]]
        # Two frames of each clip, one after the other.
        assert shown == [getattr(scene, attribute) for scene in scenes for _ in range(2)]


def test_only_answers_and_their_ends_are_learnt() -> None:
    batch, tokenizer = batch_of(1), build_tokenizer()
    number = list(QUESTIONS).index("count")
    labels = batch.labels[(batch.labels >= 0) & (batch.attributes == number)].tolist()
    assert tokenizer.decode(labels).strip() in {"One.", "Two.", "Three."}
    assert labels[-1] == tokenizer.token_to_id("<|end_of_text|>")


def test_a_batch_asks_in_the_published_layout() -> None:
    batch, tokenizer = batch_of(1), build_tokenizer()
    config = build_config(tokenizer)
    number = list(QUESTIONS).index("detail")
    own = (batch.attributes < 0) | ((batch.attributes == number) & (batch.labels < 0))
    texts = {question_text(query, "chat") for query in QUESTIONS["detail"]}
    num_frames = len(batch.frames.pixel_values)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    special = (config.bos_token_id, config.pad_token_id)
    possible = [
        build(encode, text, "chat", num_frames, config.tokens_per_frame, special).input_ids
        for text in texts
    ]
    # The last token of the question is a label's place already: it predicts the answer.
    assert any(row[:-1] == batch.input_ids[own].tolist()[: len(row) - 1] for row in possible)


def test_the_shipped_tokenizer_is_the_one_that_training_makes() -> None:
    shipped = Tokenizer.from_file(str(PACKAGED / "tokenizer.json"))
    assert shipped.to_str() == build_tokenizer().to_str()


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two = (weights_after(Trainer(RECIPE), 4) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("stopped_at", [1, 3])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path, stopped_at: int) -> None:
    trainer = Trainer(RECIPE)
    weights_after(trainer, stopped_at)
    trainer.save(tmp_path / "state.safetensors")
    straight = weights_after(trainer, 5)
    resumed = Trainer(RECIPE)
    resumed.resume(tmp_path / "state.safetensors")
    assert resumed.step == stopped_at
    taken_up = weights_after(resumed, 5)
    assert all(torch.equal(straight[name], taken_up[name]) for name in straight)


def test_the_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    Trainer(RECIPE).save(tmp_path / "state.safetensors")
    other = Trainer(replace(RECIPE, seed=1))
    with pytest.raises(ValueError, match="another recipe; delete it"):
        other.resume(tmp_path / "state.safetensors")


def test_training_leaves_a_checkpoint_and_no_state(tmp_path: Path) -> None:
    train(replace(RECIPE, frame_steps=1, answer_steps=1), tmp_path / "state", tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert (tmp_path / "tiny" / "model.safetensors.index.json").is_file()


def test_an_exported_model_is_read_back_as_it_was(tmp_path: Path) -> None:
    trainer = Trainer(RECIPE)
    remove_rounding(trainer.model.model.language_model)
    export(trainer.model, trainer.tokenizer, tmp_path)
    read = CogVLM2VideoForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    expected = {name: tensor.bfloat16() for name, tensor in trainer.model.state_dict().items()}
    found = {name: tensor.bfloat16() for name, tensor in read.state_dict().items()}
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_export_replaces_the_shards_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00009.safetensors").touch()
    tokenizer = build_tokenizer()
    export(build_model(build_config(tokenizer)), tokenizer, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert load_file(tmp_path / "model-00004-of-00004.safetensors").keys() == {"lm_head.weight"}
