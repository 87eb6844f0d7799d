from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from checkpoints import (
    GOLDEN,
    MINI,
    SMALL,
    names_in,
    published_tensors,
    read_checkpoint,
    write_checkpoint,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import initialization
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cogcache.models.cogvlm2 import preprocessing
from cogcache.models.cogvlm2.configuration import CogVLM2VideoConfig
from cogcache.models.cogvlm2.modeling import CogVLM2VideoForConditionalGeneration
from cogcache.models.cogvlm2.positions import shared_position_ids
from cogcache.models.cogvlm2.preprocessing import preprocess, short_side_size
from cogcache.models.cogvlm2.slots import merge_features
from cogcache.models.halves.partition import on_meta

Model = CogVLM2VideoForConditionalGeneration
KINDS = {
    "float32": (torch.float32, "float32"),
    "bf16_rope": (torch.float32, "bfloat16"),
    "bfloat16": (torch.bfloat16, "bfloat16"),
}
BOUNDS = {"float32": 1e-5, "bf16_rope": 1e-4, "bfloat16": 2.5e-2}
SLOT = 3
PER_FRAME = 6
PUBLISHED = json.loads((GOLDEN / "published-config.json").read_text())
"""The published config.json; it has no model_type."""


@cache
def golden() -> dict[str, Tensor]:
    return load_file(MINI / "golden.safetensors")


@cache
def model_of(kind: str) -> Model:
    dtype, rotary_dtype = KINDS[kind]
    config = CogVLM2VideoConfig.from_pretrained(MINI)
    config.rotary_dtype = rotary_dtype
    return Model.from_pretrained(MINI, config=config, dtype=dtype).eval().requires_grad_(False)


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def golden_prompt() -> dict[str, Tensor]:
    return {name: golden()[name] for name in ("input_ids", "token_type_ids")}


def video(features: Tensor | list[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    return {"video": BaseModelOutputWithPooling(pooler_output=features)}


def prompt(num_frames: int, text: list[int]) -> dict[str, Tensor]:
    """Return the row of a clip in the chat layout."""
    ids, types = [1], [0]
    for frame in range(num_frames):
        ids += [SLOT] * PER_FRAME + [20 + frame]
        types += [1] * PER_FRAME + [0]
    types += [0] * len(text)
    return {"input_ids": torch.tensor([ids + text]), "token_type_ids": torch.tensor([types])}


def left_padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack rows; padding bears the slots' id."""
    length = max(row["input_ids"].shape[1] for row in rows)

    def stacked(tensors: list[Tensor], fill: int) -> Tensor:
        pads = [(length - tensor.shape[1], 0) for tensor in tensors]
        padded = zip(tensors, pads, strict=True)
        return torch.cat([torch.nn.functional.pad(each, pad, value=fill) for each, pad in padded])

    return {
        "input_ids": stacked([row["input_ids"] for row in rows], SLOT),
        "token_type_ids": stacked([row["token_type_ids"] for row in rows], 0),
        "attention_mask": stacked([torch.ones_like(row["input_ids"]) for row in rows], 0),
    }


def tokens(model: Model, inputs: dict[str, Tensor], count: int = 12, **options) -> list[list[int]]:
    """Return the new tokens of each row; no end token stops them."""
    length = inputs["input_ids"].shape[1]
    made = model.generate(
        **inputs, max_new_tokens=count, do_sample=False, eos_token_id=None, **options
    )
    return made[:, length:].tolist()


# Against the published code


def test_preprocessing_gives_the_published_pixels():
    pixels = preprocess(golden()["frames"], 56)
    assert pixels.dtype == torch.float32
    assert (pixels - golden()["pixel_values"]).abs().max() <= 2e-6


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 24])
@pytest.mark.parametrize(("height", "width"), [(72, 100), (97, 49), (56, 56)])
def test_preprocessing_frame_by_frame_moves_no_bit(num_frames, height, width):
    shape = (num_frames, height, width, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))
    assert torch.equal(preprocess(frames, 56), preprocessing._together(frames, 56))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(72, 100, (56, 77)), (100, 72, (77, 56)), (80, 80, (56, 56)), (1080, 1920, (56, 99))],
)
def test_the_short_side_is_scaled_and_the_long_one_floored(height, width, size):
    assert short_side_size(height, width, 56) == size


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_features_are_the_published_ones(kind):
    features = model_of(kind).get_video_features(golden()["pixel_values"]).pooler_output
    assert features.shape == (6, PER_FRAME, 64)
    assert difference(features, golden()[f"{kind}.features"]) <= BOUNDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_the_prompt_are_the_published_ones(kind):
    pixels = golden()["pixel_values"]
    logits = model_of(kind)(**golden_prompt(), pixel_values_videos=pixels).logits
    assert difference(logits, golden()[f"{kind}.logits"]) <= BOUNDS[kind]


def test_repeated_positions_are_not_taken_for_packed_sequences():
    """Without a cache or a mask transformers would cut attention at each of them."""
    pixels = golden()["pixel_values"]
    found = model_of("float32")(**golden_prompt(), pixel_values_videos=pixels, use_cache=False)
    assert difference(found.logits, golden()["float32.logits"]) <= BOUNDS["float32"]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_at_far_positions_are_the_published_ones(kind):
    logits = model_of(kind)(golden()["long_input_ids"], logits_to_keep=50).logits
    assert difference(logits, golden()[f"{kind}.long_logits"]) <= BOUNDS[kind]


def test_the_two_kinds_of_rotary_table_are_told_apart_by_the_bounds():
    logits = model_of("float32")(golden()["long_input_ids"], logits_to_keep=50).logits
    assert difference(logits, golden()["bf16_rope.long_logits"]) > 10 * BOUNDS["bf16_rope"]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_generated_tokens_are_the_published_ones(kind):
    pixels = golden()["pixel_values"]
    found = tokens(model_of(kind), golden_prompt(), 24, pixel_values_videos=pixels)
    assert found == [golden()[f"{kind}.generated"].tolist()]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_logits_over_the_kv_cache_are_the_published_ones(kind):
    model, last = model_of(kind), int(golden()["position_ids"].max())
    pixels = golden()["pixel_values"]
    state = model(**golden_prompt(), pixel_values_videos=pixels, use_cache=True).past_key_values
    found = []
    for step, token in enumerate(golden()["continuation"][0]):
        position = torch.tensor([[last + 1 + step]])
        output = model(token.view(1, 1), position_ids=position, past_key_values=state)
        found.append(output.logits)
    wanted = golden()[f"{kind}.continuation_logits"]
    assert difference(torch.cat(found, dim=1), wanted) <= BOUNDS[kind]


def test_generating_takes_the_positions_that_follow_the_shared_ones(monkeypatch):
    model, seen = model_of("float32"), []
    forward = model.model.language_model.forward

    def recorded(*args, **kwargs):
        seen.append(kwargs["position_ids"][0, -1].item())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", recorded)
    tokens(model, golden_prompt(), 4, pixel_values_videos=golden()["pixel_values"])
    last = int(golden()["position_ids"].max())
    assert seen == [last, last + 1, last + 2, last + 3]


# Positions


def test_position_ids_are_the_published_ones():
    found = shared_position_ids(golden()["token_type_ids"])
    assert torch.equal(found, golden()["position_ids"])


@pytest.mark.parametrize("num_frames", [1, 3, 24])
def test_positions_of_the_chat_layout(num_frames):
    types = [0] + ([1] * 66 + [0]) * num_frames + [0] * 11
    wanted = [0]
    for start in range(0, 4 * num_frames, 4):
        wanted += [start + 1, *[start + 2] * 64, start + 3, start + 4]
    wanted += [4 * num_frames + 1 + index for index in range(11)]
    found = shared_position_ids(torch.tensor([types]))[0].tolist()
    assert found == wanted
    assert len(found) == 1 + 67 * num_frames + 11
    assert found[-1] == 4 * num_frames + 11


def test_an_index_of_two_tokens_takes_two_positions():
    types = torch.tensor([[0, *[1] * 66, 0, 0, *[1] * 66, 0]])
    assert shared_position_ids(types)[0, [67, 68, 69, 70, -2, -1]].tolist() == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("num_frames", [1, 24])
def test_positions_of_the_base_layout_are_those_of_one_run_of_slots(num_frames):
    types = [0, *[1] * 66 * num_frames, 0, 0]
    wanted = [0, 1, *[2] * (66 * num_frames - 2), 3, 4, 5]
    assert shared_position_ids(torch.tensor([types]))[0].tolist() == wanted


def test_padding_on_the_left_takes_no_position():
    types = torch.tensor([[0, *[1] * 66, 0, 0]])
    padded = torch.nn.functional.pad(types, (5, 0))
    mask = torch.nn.functional.pad(torch.ones_like(types), (5, 0))
    assert torch.equal(shared_position_ids(padded, mask)[:, 5:], shared_position_ids(types))


def test_going_on_from_a_kv_cache_without_positions_is_refused():
    model = model_of("float32")
    state = model(torch.tensor([[1, 30, 31]]), use_cache=True).past_key_values
    step = {"input_ids": torch.tensor([[32]]), "token_type_ids": torch.tensor([[0]])}
    with pytest.raises(ValueError, match="position_ids must be given"):
        model(**step, past_key_values=state)


# Cached features in place of frames


def test_frames_in_any_grouping_give_the_same_features():
    model, pixels = model_of("float32"), golden()["pixel_values"]
    whole = model.get_video_features(pixels).pooler_output
    for size in (1, 2, 4):
        parts = [model.get_video_features(part).pooler_output for part in pixels.split(size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_generating_from_features_equals_generating_from_frames(kind):
    model, pixels = model_of(kind), golden()["pixel_values"]
    features = model.get_video_features(pixels).pooler_output
    from_frames = tokens(model, golden_prompt(), pixel_values_videos=pixels)
    assert tokens(model, golden_prompt(), mm_encoder_outputs=video(features)) == from_frames
    assert tokens(model, golden_prompt(), mm_encoder_outputs=video([features])) == from_frames


def test_generating_from_features_never_calls_the_vision_half():
    model, seen = model_of("float32"), []
    features = golden()["float32.features"]
    hook = model.model.vision.register_forward_pre_hook(lambda *_: seen.append("called"))
    try:
        found = tokens(model, golden_prompt(), 24, mm_encoder_outputs=video(features))
    finally:
        hook.remove()
    assert found == [golden()["float32.generated"].tolist()]
    assert not seen


def clips() -> list[tuple[dict[str, Tensor], Tensor]]:
    """Return prompts of unequal length, each with its frames."""
    pixels = golden()["pixel_values"]
    return [
        (prompt(3, [50, 51, 52]), pixels[:3]),
        (prompt(1, [60, 61]), pixels[3:4]),
        (prompt(2, [70, 71, 72, 73, 74]), pixels[4:]),
    ]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_left_padded_batch_gives_each_clip_its_own_tokens(num_beams):
    model = model_of("float32")
    features = [model.get_video_features(pixels).pooler_output for _, pixels in clips()]
    single = [
        tokens(model, row, mm_encoder_outputs=video(each), num_beams=num_beams)[0]
        for (row, _), each in zip(clips(), features, strict=True)
    ]
    batch = left_padded([row for row, _ in clips()])
    together = tokens(model, batch, mm_encoder_outputs=video(features), num_beams=num_beams)
    assert len({tuple(row) for row in single}) == 3
    assert together == single


def test_beams_leave_the_features_given_as_they_are():
    given = video(golden()["float32.features"])
    tokens(model_of("float32"), golden_prompt(), mm_encoder_outputs=given, num_beams=3)
    assert given["video"].pooler_output is golden()["float32.features"]


def test_several_sequences_of_one_clip_can_be_sampled():
    features = golden()["float32.features"]
    made = model_of("float32").generate(
        **golden_prompt(),
        mm_encoder_outputs=video(features),
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=4,
        eos_token_id=None,
    )
    assert made.shape == (3, golden()["input_ids"].shape[1] + 4)


def test_the_output_head_sees_the_last_position_only():
    model, seen = model_of("float32"), []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    try:
        tokens(model, golden_prompt(), 3, pixel_values_videos=golden()["pixel_values"])
    finally:
        hook.remove()
    assert seen == [(1, 1, 64)] * 3


def test_slots_that_bear_the_padding_id_are_not_masked():
    model, pixels = model_of("float32"), golden()["pixel_values"]
    assert model.config.pad_token_id == SLOT
    unmasked = tokens(model, golden_prompt(), pixel_values_videos=pixels)
    ones = torch.ones_like(golden()["input_ids"])
    assert unmasked == tokens(
        model, {**golden_prompt(), "attention_mask": ones}, pixel_values_videos=pixels
    )
    hidden = {**golden_prompt(), "attention_mask": 1 - golden()["token_type_ids"]}
    assert unmasked != tokens(model, hidden, pixel_values_videos=pixels)


def test_as_many_feature_rows_as_slots_are_wanted():
    embeds, types = torch.zeros(1, 9, 4), torch.tensor([[0] + [1] * 6 + [0] * 2])
    with pytest.raises(ValueError, match="6 slots in the prompt, 12 feature rows"):
        merge_features(embeds, torch.zeros(2, 6, 4), types)


def test_features_without_token_types_are_refused():
    with pytest.raises(ValueError, match="token_type_ids"):
        merge_features(torch.zeros(1, 9, 4), torch.zeros(1, 6, 4), None)


def test_features_go_into_their_slots_in_order():
    types = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]])
    merged = merge_features(torch.zeros(2, 4, 1), torch.arange(1.0, 5.0).view(2, 2, 1), types)
    assert merged[..., 0].tolist() == [[0, 1, 2, 0], [0, 0, 3, 4]]


def test_frames_and_features_together_are_refused():
    with pytest.raises(ValueError, match="not both"):
        model_of("float32")(
            **golden_prompt(),
            pixel_values_videos=golden()["pixel_values"],
            mm_encoder_outputs=video(golden()["float32.features"]),
        )


# Config and checkpoint


@pytest.fixture
def published_config(tmp_path) -> CogVLM2VideoConfig:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    return CogVLM2VideoConfig.from_pretrained(tmp_path)


def test_the_published_config_is_read_as_it_is(published_config):
    flat = {k: v for k, v in PUBLISHED.items() if k not in ("vision_config", "torch_dtype")}
    assert {key: getattr(published_config, key) for key in flat} == flat
    vision = PUBLISHED["vision_config"]
    assert {key: getattr(published_config.vision_config, key) for key in vision} == vision
    assert published_config.dtype == torch.bfloat16
    assert published_config.tokens_per_frame == 66


def test_the_decoder_is_the_published_llama(published_config):
    text = published_config.text_config
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 500_000.0}
    assert (text.head_dim, text.num_key_value_heads, text.rms_norm_eps) == (128, 8, 1e-5)
    assert not text.attention_bias
    assert not text.mlp_bias


def test_the_default_sizes_are_the_published_ones(published_config):
    default = CogVLM2VideoConfig()
    described = {"architectures", "auto_map", "transformers_version", "torch_dtype"}
    # Where the key is absent the published code takes 1e-6.
    others = {"rms_norm_eps", "template_version", "vision_config"}
    for key in set(PUBLISHED) - described - others:
        assert getattr(default, key) == PUBLISHED[key], key
    for key, value in PUBLISHED["vision_config"].items():
        assert getattr(default.vision_config, key) == value, key
    assert default.rms_norm_eps == 1e-6
    assert default.rotary_dtype == "bfloat16"


def test_the_full_size_model_has_the_published_names_and_shapes(published_config):
    with initialization.no_init_weights():
        model = on_meta(Model, published_config)
    found = revert_weight_conversion(model, model.state_dict())
    published = published_tensors()
    copies = {name for name in published if name.endswith("inv_freq")} - found.keys()
    assert len(copies) == 31
    wanted = {name: shape for name, (_, shape) in published.items() if name not in copies}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == wanted


def test_a_checkpoint_without_rotary_tables_gets_the_computed_ones(tmp_path):
    tensors = read_checkpoint(write_checkpoint(tmp_path / "with", dtype=torch.float32))
    kept = {name: tensor for name, tensor in tensors.items() if "inv_freq" not in name}
    folder = write_checkpoint(tmp_path / "without", tensors=kept, dtype=torch.float32)
    found, wanted = (
        Model.from_pretrained(path).model.language_model.rotary_emb.inv_freq
        for path in (folder, tmp_path / "with")
    )
    torch.testing.assert_close(found, wanted)


def test_bfloat16_tables_are_made_from_the_stored_values(tmp_path):
    tensors = read_checkpoint(write_checkpoint(tmp_path / "plain"))
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    changed = {**tensors, name: tensors[name] * 2}
    stored, plain = (
        Model.from_pretrained(folder).model.language_model.rotary_emb
        for folder in (write_checkpoint(tmp_path / "changed", tensors=changed), tmp_path / "plain")
    )
    position = torch.tensor([[7]])
    doubled, _ = plain(torch.zeros(1), 2 * position)
    assert torch.equal(stored(torch.zeros(1), position)[0], doubled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_is_read_into_its_place(tmp_path, dtype):
    tensors = read_checkpoint(write_checkpoint(tmp_path, dtype=dtype))
    model, info = Model.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info.values())
    found = dict(model.state_dict())
    layer = "model.language_model.layers.1.self_attn."
    projections = [found[f"{layer}{name}_proj.weight"] for name in "qkv"]
    assert [each.shape[0] for each in projections] == [64, 32, 32]
    fused = tensors["model.layers.1.self_attn.language_expert_query_key_value.weight"]
    assert torch.equal(torch.cat(projections), fused)
    assert torch.equal(found["model.vision.boi"], tensors["model.vision.boi"])
    assert torch.equal(found["lm_head.weight"], tensors["lm_head.weight"])
    assert {tensor.dtype for name, tensor in found.items() if "inv_freq" not in name} == {dtype}


def test_saving_writes_the_published_names_and_weights(tmp_path):
    given = read_checkpoint(write_checkpoint(tmp_path / "given"))
    Model.from_pretrained(tmp_path / "given").save_pretrained(tmp_path / "saved")
    saved = read_checkpoint(tmp_path / "saved")
    # All layers' rotary tables are the same; one is kept.
    assert given.keys() - saved.keys() == {"model.layers.1.self_attn.rotary_emb.inv_freq"}
    assert names_in(tmp_path / "saved" / "model.safetensors") <= given.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor.to(torch.bfloat16), given[name]), name


def test_a_saved_model_speaks_as_the_one_it_was_saved_from(tmp_path):
    model = Model.from_pretrained(write_checkpoint(tmp_path / "given"), dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "saved")
    again, info = Model.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    pixels = torch.randn(2, 3, SMALL.image_size, SMALL.image_size)
    found, wanted = (
        tokens(each.eval(), prompt(2, [50, 51]), pixel_values_videos=pixels)
        for each in (again, model)
    )
    assert found == wanted


def test_an_untrained_model_is_filled_everywhere(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL.config()))
    torch.manual_seed(0)
    model = Model(CogVLM2VideoConfig.from_pretrained(tmp_path))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert model.model.vision.boi.abs().sum() > 0
    assert model.model.vision.patch_embedding.cls_embedding.abs().sum() > 0
