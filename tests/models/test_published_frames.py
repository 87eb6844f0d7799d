"""`--strategy published` takes the frames that the release took that a family was published with.

The judge is that release, run: tests/golden/families/sampling.json holds what it took of clips of
many lengths and rates, and each golden.json what it took of the golden's clips.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from published import GOLDENS, Golden

from cogcache.errors import CheckpointError, ConfigError, VideoError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.derived.sampling import RULES, first_of_part_frames, published_frames
from cogcache.models.registry import family_of
from cogcache.planning.clip import published_count
from cogcache.settings import Settings
from cogcache.settings.stage_one import Sampling
from cogcache.stages.encoding.preparation import ClipSource, prepare, start_worker
from cogcache.video.sampling import choose

RECORDED = json.loads((GOLDENS / "sampling.json").read_text())
CLIPS, FAMILIES = RECORDED["clips"], RECORDED["families"]
USUAL = Sampling(strategy="published")
EIGHT = Sampling(strategy="published", max_frames=8)
SAMPLED = {
    path.parent.name: {name: taken for name, taken in told.items() if taken}
    for path in sorted(GOLDENS.glob("*/golden.json"))
    if (told := json.loads(path.read_text()).get("release_sampling")) and any(told.values())
}


def rule_of(family, folder, sampling=None):
    counted = RULES[family].counted
    return published_frames(family, folder, sampling or (EIGHT if counted else USUAL))


def as_recorded(indices):
    if len(indices) <= 40:
        return indices
    text = ",".join(map(str, indices))
    return {"count": len(indices), "sha256": hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize("number", range(len(CLIPS)), ids=[f"{n}-{fps:.3g}" for n, fps in CLIPS])
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_of_clips_of_all_lengths_are_those_of_the_release(family, number, tmp_path):
    wanted, (num_frames, fps) = FAMILIES[family]["frames"][number], CLIPS[number]
    rule = rule_of(family, tmp_path)
    if not wanted:
        with pytest.raises(VideoError, match="of a clip of") as caught:
            rule.of_clip(num_frames, fps)
        assert caught.value.reason == "too_few_frames"
    else:
        assert as_recorded(list(rule.of_clip(num_frames, fps))) == wanted


@pytest.mark.parametrize("family", SAMPLED)
def test_frames_of_the_goldens_clips_are_those_of_the_release(family):
    facts = json.loads((GOLDENS / family / "golden.json").read_text())
    rule = rule_of(family, GOLDENS / family / "checkpoint")
    taken = {name: list(rule.of_clip(*facts["totals"][name])) for name in SAMPLED[family]}
    assert taken == SAMPLED[family]


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video", "video_llava"])
def test_families_whose_user_takes_the_frames_follow_the_examples_of_the_release(family, tmp_path):
    taken = rule_of(family, tmp_path).of_clip(175, 25.0)
    assert taken == [0, 21, 43, 65, 87, 109, 131, 153]
    assert taken == first_of_part_frames(175, 25.0, count=8)


def test_siblings_follow_the_rule_of_the_family_whose_processor_they_share():
    for one, other in [
        ("qwen2_vl", "qwen2_5_vl"),
        ("qwen2_vl", "qwen2_5_omni_thinker"),
        ("qwen3_vl", "qwen3_vl_moe"),
        ("qwen3_5", "qwen3_5_moe"),
        ("qwen3_5", "lfm3_vl"),
    ]:
        assert RULES[one] is RULES[other]


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "exaone4_5", "unheard_of"])
def test_a_release_without_a_rule_is_refused(family, tmp_path):
    with pytest.raises(ConfigError, match="takes no frames of a video by itself") as caught:
        published_frames(family, tmp_path, USUAL)
    assert "--strategy spread" in caught.value.hint


def test_a_number_of_frames_that_has_no_effect_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_frames = 12 has no effect"):
        published_frames("qwen3_vl", tmp_path, Sampling(strategy="published", max_frames=12))


def test_a_rate_that_has_no_effect_is_refused():
    with pytest.raises(ValueError, match="no effect with the strategy published"):
        Sampling(strategy="published", fps=2)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("preprocessor_config.json", {"video_sampling": {"fps": 2, "max_frames": 5}}),
        ("processor_config.json", {"video_processor": {"video_sampling": {"max_frames": 5}}}),
    ],
)
def test_numbers_of_the_checkpoints_files_count_more_than_the_releases(file, told, tmp_path):
    (tmp_path / file).write_text(json.dumps(told))
    assert len(rule_of("smolvlm", tmp_path).of_clip(175, 25.0)) == 5


@pytest.mark.parametrize("number", [0, -1, "2", True, 1e300])
def test_a_number_that_no_rule_can_follow_names_its_file(number, tmp_path):
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"fps": number}))
    with pytest.raises(CheckpointError, match=r"video_preprocessor_config\.json says fps"):
        rule_of("qwen3_vl", tmp_path)


def test_frames_of_a_part_of_a_video_are_those_of_a_video_of_that_part(tmp_path):
    times_s, rule = np.arange(1500, dtype=np.float32) / 25, rule_of("qwen3_vl", tmp_path)
    part = choose(times_s, 25.0, rule, start_s=10.0, end_s=17.0)
    assert [index - 250 for index in part] == list(rule.of_clip(175, 25.0))


@pytest.mark.filterwarnings("ignore")  # of transformers, about files of its earlier releases
def test_a_decode_worker_takes_the_frames_of_the_release(tmp_path):
    golden = Golden.read("qwen3_vl")
    start_worker(str(golden.checkpoint(tmp_path / "qwen3_vl")), None, "float32")
    prepared = prepare(ClipSource(golden.folder / "short.mp4", 0.0, None, USUAL))
    assert prepared.facts["frame_indices"] == golden.facts["release_sampling"]["short"]


def test_the_two_ways_of_cogvlm2_have_names():
    with pytest.raises(ConfigError, match="two ways to take frames") as caught:
        family_of(Checkpoint.open("tiny")).frames_of(USUAL)
    assert "--strategy per_second (`chat`) or uniform (`base`)" in caught.value.hint


def test_a_plan_counts_the_frames_of_the_release():
    checkpoint = str(GOLDENS / "qwen3_vl" / "checkpoint")
    settings = Settings(model=checkpoint, sampling=USUAL)
    assert published_count(settings, 7.0, 25.0) == 14
    assert published_count(settings, None, 25.0) == 768


def test_published_frames_have_keys_of_their_own():
    assert USUAL.fields() == {**Sampling().fields(), "strategy": "published"}
