"""Plans of clips of a size: what they say is what stage one makes."""

from __future__ import annotations

import json

import pytest
from checkpoints import write_published_headers
from click.testing import CliRunner, Result
from scenes import settings, write_scene
from zoo import LLAVA_ONEVISION, QWEN2_VL, QWEN3_VL

from cogcache.cli import main
from cogcache.cli.plan import frames_of
from cogcache.models.describe import describe
from cogcache.planning.plan import Job, make_plan
from cogcache.selftest.measure import measure
from cogcache.settings.stage_one import Sampling


def here(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def flagship(tmp_path_factory):
    return write_published_headers(tmp_path_factory.mktemp("flagship") / "model")


@pytest.mark.parametrize("animal", [QWEN2_VL, QWEN3_VL, LLAVA_ONEVISION], ids=lambda a: a.name)
def test_every_family_is_planned_as_large_as_its_features_are(animal, tmp_path):
    model = str(animal.write(tmp_path / "model"))
    for size in ((64, 64), (160, 96)):
        planned = make_plan(settings(model=model), Job(frames=4, clips=1000, size=size))
        made = describe(model, num_frames=4, size=(size[1], size[0]))
        assert planned.disk[0].clip_features_bytes == made.cached_bytes
        assert planned.disk[0].features_bytes == 1000 * made.cached_bytes


def test_larger_frames_take_more_tokens_and_more_memory(tmp_path):
    model = str(QWEN2_VL.write(tmp_path / "model"))
    plans = [
        make_plan(settings(model=model, memory="4GiB"), Job(frames=4, size=size))
        for size in ((64, 64), (256, 256))
    ]
    small, large = (plan.clip.row_tokens for plan in plans)
    assert large > 4 * small
    few, many = (plan.memories[0].vision.plan.activations_bytes for plan in plans)
    assert many > few
    assert "4 frames of 256x256" in plans[1].clip.reason


def test_limits_of_pixels_are_planned_with(tmp_path):
    model = str(QWEN2_VL.write(tmp_path / "model"))
    job = Job(frames=4, size=(256, 256))
    free = make_plan(settings(model=model), job).clip.row_tokens
    held = make_plan(settings(model=model, max_pixels=64 * 64), job).clip.row_tokens
    assert held < free


@pytest.mark.parametrize(
    ("duration_s", "rule", "frames"),
    [
        (10.0, {}, 11),
        (10.0, {"fps": 2.0}, 21),
        (100.0, {}, 24),
        (10.0, {"strategy": "uniform"}, 24),
        (None, {"max_frames": 7}, 7),
    ],
)
def test_frames_follow_from_the_length_and_the_sampling(duration_s, rule, frames):
    assert frames_of(duration_s, Sampling(**rule)) == frames


def test_the_flagship_says_hours_of_both_stages_and_what_they_rest_on(flagship):
    planned = make_plan(settings(model=str(flagship)), Job(frames=24, clips=10_000))
    hours = planned.hours
    assert 250 < hours.vision_s_a_clip < 350  # measured: 300 s on two cores
    assert 80 < hours.language_s_a_clip < 130  # 90 s to read the prompt, and 120 tokens
    assert hours.hours("vision") == pytest.approx(hours.vision_s_a_clip * 10_000 / 3600)
    assert "GFLOP/s" in hours.unit_costs


def test_a_plan_is_made_for_the_videos_that_are_named(tmp_path):
    for seed in (0, 1, 2):
        write_scene(tmp_path / f"{seed}.mp4", seed, num_frames=24)
    (tmp_path / "bad.mp4").write_text("no video")
    done = here("plan", tmp_path, "--model=tiny", "--segment=1", "--memory=4GiB", "--json")
    found = json.loads(done.stdout)
    assert "3 of 4 videos looked at: most are 112x112" in found["videos"]
    assert found["disk"][0]["clips"] == 12


def test_a_size_that_is_none_is_told():
    assert "write it like 1280x720" in here("plan", "--model=tiny", "--size=720p").output


@pytest.mark.slow
def test_what_a_clip_costs_is_measured_through_both_stages():
    found = measure(settings(model="tiny", max_new_tokens=4, retry=False), (64, 64), 2.0)
    assert {*found} == {"extract", "caption"}
    assert all(0 < seconds < 60 for seconds in found.values())
