"""What the derived family refuses, what it takes as a prompt, and what its keys depend on."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
import transformers
import zoo
import zoo_wide
from contracts import FPS, asked, clip
from transformers import Qwen2VLProcessor, Qwen2VLVideoProcessor
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from videos import write_video

from cogcache.errors import CheckpointError, ConfigError, UnknownFamilyError, VideoError
from cogcache.keys import digest
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.derived.conversation import conversation_of, template_name
from cogcache.models.derived.family import DerivedFamily
from cogcache.models.derived.features import encoder_output, joined, named, nested, num_rows
from cogcache.models.derived.processing import metadata
from cogcache.models.derived.times import FrameTimes
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of
from cogcache.settings.stage_one import Sampling
from cogcache.settings.stage_two import Language
from cogcache.video.reading import ClipFrames, read_clip
from tests.house.test_public_names import loaded_by

FRAMES = clip(4, (32, 48), 1)
VERSION = transformers.__version__


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    animals = (zoo.QWEN2_VL, zoo.INTERNVL, zoo.VIDEO_LLAMA_3, zoo.LLAVA_NEXT_VIDEO, zoo.GLM4V)
    return {a.name: a.write(tmp_path_factory.mktemp(a.name)) for a in animals}


def family(folder: Path) -> Any:
    return family_of(Checkpoint.open(str(folder)))


@pytest.fixture
def qwen(folders, tmp_path) -> Path:
    """Return a checkpoint that a test may change."""
    return shutil.copytree(folders["qwen2_vl"], tmp_path / "qwen2_vl")


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Processors that this transformers and ours do not agree on


def test_a_processor_without_an_argument_is_refused_by_its_name(folders, monkeypatch):
    class Older(TypedDict):
        video_metadata: object

    monkeypatch.setattr(Qwen2VLVideoProcessor, "valid_kwargs", Older)
    with pytest.raises(UnknownFamilyError) as caught:
        family(folders["qwen2_vl"]).prepare(FRAMES, torch.float32)
    for part in ("qwen2_vl", "do_sample_frames", f"transformers {VERSION}"):
        assert part in caught.value.problem


def test_a_processor_that_does_not_take_an_argument_is_refused_by_its_name(folders, monkeypatch):
    def older(self, images=None, text=None, videos=None, return_tensors=None):
        raise AssertionError

    monkeypatch.setattr(Qwen2VLProcessor, "__call__", older)
    with pytest.raises(UnknownFamilyError) as caught:
        family(folders["qwen2_vl"]).prepare(FRAMES, torch.float32)
    for part in ("qwen2_vl", "(argument video_metadata)", f"transformers {VERSION}"):
        assert part in caught.value.problem


def test_a_processor_that_wants_another_argument_is_refused_by_its_name(folders, monkeypatch):
    def newer(self, *, text, videos, camera, **kwargs):
        raise AssertionError

    monkeypatch.setattr(Qwen2VLProcessor, "__call__", newer)
    with pytest.raises(UnknownFamilyError, match=r"\(argument camera\)"):
        family(folders["qwen2_vl"]).prepare(FRAMES, torch.float32)


def test_a_feature_call_that_wants_more_than_pixels_is_refused(folders, monkeypatch):
    def by_prompt(self, pixel_values_videos, video_grid_thw, qformer_input_ids, **kwargs):
        raise AssertionError

    found = family(folders["qwen2_vl"])
    prepared = found.prepare(FRAMES, torch.float32)
    vision = load_half(WholeModel.of(found.checkpoint), "vision").model
    monkeypatch.setattr(Qwen2VLModel, "get_video_features", by_prompt)
    with pytest.raises(UnknownFamilyError, match="get_video_features needs qformer_input_ids"):
        found.encode(vision, [prepared], 48)


def test_a_feature_call_that_fails_on_every_video_is_refused(tmp_path):
    found = family(zoo_wide.KIMI.write(tmp_path))
    vision = load_half(WholeModel.of(found.checkpoint), "vision").model
    prepared = found.prepare(FRAMES, torch.bfloat16)
    with pytest.raises(
        UnknownFamilyError, match=rf"kimi_k25 \(transformers {VERSION}\): get_video"
    ):
        found.encode(vision, [prepared], 48)


def test_a_processor_that_cannot_take_text_alone_is_refused(folders):
    plain = DerivedFamily(Checkpoint.open(str(folders["internvl"])))
    with pytest.raises(UnknownFamilyError, match=rf"internvl.*transformers {VERSION}"):
        plain.prepare(FRAMES, torch.float32)


def test_more_features_than_room_in_the_prompt_are_refused(folders):
    plain = DerivedFamily(Checkpoint.open(str(folders["video_llama_3"])))
    still = clip(1, (32, 48), 1)
    still = ClipFrames(
        frames=still.frames.repeat(4, axis=0),
        timestamps_s=FRAMES.timestamps_s,
        frame_indices=FRAMES.frame_indices,
        fps=FPS,
        total_num_frames=1800,
        duration_s=60.0,
        decoder="pyav",
    )
    prepared = plain.prepare(still, torch.float32)
    vision = load_half(WholeModel.of(plain.checkpoint), "vision", dtype=torch.float32).model
    with pytest.raises(UnknownFamilyError, match=r"24 feature rows for a clip .* room for 9"):
        plain.encode(vision, [prepared], 48)
    own = family(folders["video_llama_3"]).encode(vision, [prepared], 48)[0]
    assert own.tensors["features.0"].shape == (9, 64)


def test_frames_that_a_processor_does_not_take_fail_the_clip_alone(folders):
    thin = clip(4, (2, 4), 1)
    thin = ClipFrames(
        frames=np.zeros((4, 4, 4000, 3), dtype=np.uint8),
        timestamps_s=thin.timestamps_s,
        frame_indices=thin.frame_indices,
        fps=FPS,
        total_num_frames=1800,
        duration_s=60.0,
        decoder="pyav",
    )
    with pytest.raises(VideoError, match="aspect ratio") as caught:
        family(folders["qwen2_vl"]).prepare(thin, torch.float32)
    assert caught.value.reason == "not_processable"


@pytest.mark.parametrize(
    ("architecture", "model_type", "problem"),
    [
        ("LlamaForCausalLM", "llama", "takes no features from outside"),
        ("MllamaForConditionalGeneration", "mllama", "takes no features from outside"),
        ("NoSuchModel", "nosuch", "is not known to transformers"),
    ],
)
def test_an_architecture_that_cannot_be_split_is_refused(
    tmp_path, architecture, model_type, problem
):
    config = {"architectures": [architecture], "model_type": model_type, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = family(tmp_path)
    with pytest.raises(UnknownFamilyError, match=problem):
        WholeModel.of(found.checkpoint)


def test_a_checkpoint_without_its_processors_files_is_refused(qwen):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (qwen / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"has no processor_config\.json"):
        family(qwen).preprocessing()


def test_beams_are_refused_where_transformers_cannot(folders):
    with pytest.raises(ConfigError, match="cannot run glm4v on videos with beams"):
        family(folders["glm4v"]).rows_together(8, 2)
    assert family(folders["glm4v"]).rows_together(8, 1) == 8


def test_beams_take_one_row_at_a_time(folders):
    assert family(folders["qwen2_vl"]).rows_together(8, 4) == 1


# Prompts


def test_a_question_is_about_the_video_before_it():
    assert conversation_of("What?") == asked("What?")


def test_a_json_list_of_messages_is_a_conversation():
    messages = [{"role": "system", "content": "Be terse."}, *asked("What?")]
    assert conversation_of(json.dumps(messages)) == messages


@pytest.mark.parametrize("text", ["[sic] What?", "[1, 2]", "[]", '[{"a": 1}]'])
def test_other_text_in_brackets_is_a_question(text):
    assert conversation_of(text) == asked(text)


@pytest.mark.parametrize("parts", [[], [{"type": "video"}] * 2])
def test_a_conversation_about_no_video_or_two_is_refused(parts):
    with pytest.raises(ConfigError, match=f"has {len(parts)} parts of the type video"):
        conversation_of(json.dumps([{"role": "user", "content": parts}]))


def test_a_question_that_holds_a_placeholder_is_refused(folders):
    found = family(folders["qwen2_vl"])
    with pytest.raises(ConfigError, match="stands 2 times"):
        found.processor.text(conversation_of("Is <|video_pad|> a token?"), 1)


@pytest.mark.parametrize("written_by", ["template", "tokenizer"])
def test_the_first_token_stands_once(qwen, written_by):
    ours = json.loads((qwen / "tokenizer.json").read_text())
    first, rest = (
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    ours["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, rest],
        "pair": [first, rest, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    (qwen / "tokenizer.json").write_text(json.dumps(ours))
    if written_by == "template":
        template = qwen / "chat_template.jinja"
        template.write_text("<s>" + template.read_text())
    found = family(qwen)
    prepared = found.prepare(FRAMES, torch.float32)
    replacements = json.loads(prepared.texts["replacements"])
    ids = found.processor.sequences(asked("What?"), replacements)["input_ids"].tolist()
    assert ids[0] == 0
    assert ids.count(0) == 1


def test_small_files_of_the_older_layout_are_read(qwen):
    settings = json.loads((qwen / "processor_config.json").read_text())
    older = settings["image_processor"] | {"processor_class": "Qwen2VLProcessor"}
    (qwen / "preprocessor_config.json").write_text(json.dumps(older))
    (qwen / "processor_config.json").unlink()
    template = (qwen / "chat_template.jinja").read_text()
    (qwen / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (qwen / "chat_template.jinja").unlink()
    found = family(qwen)
    assert found.layout(Language()).startswith("chat template ")
    assert found.prepare(FRAMES, torch.float32).texts["replacements"]


def test_the_name_of_the_layout_changes_with_the_chat_template(qwen):
    before = family(qwen).layout(Language())
    template = qwen / "chat_template.jinja"
    template.write_text(template.read_text() + "!")
    assert family(qwen).layout(Language()) != before


@pytest.mark.parametrize("layout", ["base", "vqa"])
def test_layouts_of_cogvlm2_are_refused(qwen, layout):
    with pytest.raises(ConfigError, match="qwen2_vl has no layout"):
        family(qwen).layout(Language(layout=layout))


def test_without_a_chat_template_the_usual_form_of_the_family_is_taken(folders, tmp_path):
    folder = shutil.copytree(folders["llava_next_video"], tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    found = family(folder)
    assert found.layout(Language()) == "usual form of llava_next_video"
    text = found.processor.text(conversation_of("What is it?"), 1)
    assert text == "USER: <video>\nWhat is it? ASSISTANT:"


def test_without_a_chat_template_a_family_without_a_usual_form_is_refused(qwen):
    (qwen / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="qwen2_vl has no chat template"):
        template_name(Checkpoint.open(str(qwen)), "qwen2_vl")
    with pytest.raises(ConfigError, match="qwen2_vl has no chat template"):
        family(qwen).processor.text(conversation_of("What?"), 1)


# Keys and times


def test_preprocessing_changes_with_the_processor_and_not_with_the_chat_template(qwen):
    before = digest(family(qwen).preprocessing())
    (qwen / "chat_template.jinja").write_text("other")
    assert digest(family(qwen).preprocessing()) == before
    change_json(qwen / "processor_config.json", patch_size=99)
    assert digest(family(qwen).preprocessing()) != before


def test_keys_need_no_torch(folders):
    code = (
        "from cogcache.models import Checkpoint; from cogcache.settings import Language\n"
        "from cogcache.models.registry import family_of\n"
        f"family = family_of(Checkpoint.open({str(folders['qwen2_vl'])!r}))\n"
        "family.preprocessing(), family.layout(Language())"
    )
    assert not {"torch", "transformers"} & loaded_by(code)


def test_processors_are_told_the_true_times_and_the_true_rate():
    part = clip(5, (32, 48), 1, start_s=20)
    told = metadata(part)
    assert told.timestamps == [20, 21, 22, 23, 24]
    assert told.sampled_fps == 1.0


def test_models_are_told_the_times_that_a_player_shows():
    late = replace(clip(5, (32, 48), 1, start_s=20), offset_s=1.48)
    told = metadata(late)
    np.testing.assert_allclose(told.timestamps, np.arange(21.48, 26, 1.0), atol=0.001)
    assert told.sampled_fps == pytest.approx(1.0, rel=0.01)
    stored = FrameTimes.of_facts({**asdict(FrameTimes.of_clip(late)), "decoder": "pyav"})
    assert stored is not None
    np.testing.assert_allclose(stored.seconds, told.timestamps)


def test_times_of_a_video_of_uneven_rate_are_kept():
    times = np.array([0.0, 1.11, 1.93, 3.24])
    told = metadata(
        ClipFrames(
            frames=FRAMES.frames,
            timestamps_s=times,
            frame_indices=np.array([0, 3, 50, 51]),
            fps=FPS,
            total_num_frames=60,
            duration_s=4.0,
            decoder="pyav",
        )
    )
    assert np.abs(np.array(told.timestamps) - times).max() <= 0.001
    assert told.sampled_fps == pytest.approx(3 / 3.24, rel=0.01)


def test_prompts_tell_the_videos_own_times_of_a_late_segment_of_uneven_rate(folders, tmp_path):
    steps_s = np.resize([0.5, 1.25, 3.0], 60)
    times_s = [0.0, *np.cumsum(steps_s)]
    video = write_video(tmp_path / "uneven.mkv", times_s=times_s, fps=1)
    start_s, end_s = times_s[40], times_s[44]
    segment = read_clip(video, Sampling(), start_s, end_s)
    prepared = family(folders["video_llama_3"]).prepare(segment, torch.float32)
    told = re.findall(r"Time ([\d.]+)s:", prepared.texts["replacements"])
    assert told == [f"{time:.1f}" for time in segment.timestamps_s]
    assert start_s > 60
    assert {*told} <= {f"{time:.1f}" for time in times_s[40:44]}


# Named tensors


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 3),
        [torch.ones(1, 3), torch.zeros(2, 3)],
        [[torch.ones(1, 3)], [torch.zeros(1, 3)]],
        [torch.full((1, 1), float(index)) for index in range(12)],
    ],
)
def test_names_say_how_tensors_were_nested(value):
    tensors = named("features", value)
    again = nested("features", tensors)
    assert named("features", again).keys() == tensors.keys()
    assert num_rows(again) == num_rows(value)
    for name, tensor in named("features", again).items():
        assert torch.equal(tensor, tensors[name])


def test_clips_of_unequal_length_are_joined_row_after_row():
    first, second = torch.ones(1, 3, 2), torch.zeros(1, 5, 2)
    assert torch.equal(joined([first, second]), torch.cat([first, second], dim=1))


def test_each_call_of_generate_gets_an_object_of_its_own():
    clips = [{"features": torch.ones(1, 3, 2)}]
    first, second = (encoder_output(clips, "cpu", torch.float32) for _ in range(2))
    assert first is not second


def test_frames_are_images_to_a_family_without_videos(tmp_path):
    found = family(zoo_wide.GEMMA3.write(tmp_path))
    prepared = found.prepare(FRAMES, torch.float32)
    assert len(json.loads(prepared.texts["replacements"])) == len(FRAMES.frames)
