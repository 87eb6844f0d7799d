from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from cogcache.errors import ConfigError, VideoError
from cogcache.settings.stage_one import Sampling
from cogcache.video.sampling import choose, per_second, spread, uniform

PER_SECOND = Sampling(strategy="per_second")
UNIFORM = Sampling(strategy="uniform")
RATES = [0.2, 0.5, 1, 3, 5, 8, 10, 12.5, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60, 120]
COUNTS = [1, 2, 3, 7, 24, 25, 48, 120, 131, 250, 719, 1800, 5000]


def constant(num_frames: int, fps: float) -> np.ndarray:
    return (np.arange(num_frames) / fps).astype(np.float32)


def varying(num_frames: int, seed: int) -> np.ndarray:
    steps_s = np.random.default_rng(seed).exponential(0.2, num_frames)
    return (np.cumsum(steps_s) - steps_s[0]).astype(np.float32)


def published_chat(timestamps_s, max_frames=24):
    """The published rule 'chat', as a plain loop over the frames' times."""
    timestamps = list(timestamps_s)
    frame_ids = []
    for second in range(round(max(timestamps)) + 1):
        closest = min(timestamps, key=lambda time: abs(time - second))
        frame_ids.append(timestamps.index(closest))
        if len(frame_ids) >= max_frames:
            break
    return frame_ids


def published_base(num_frames, fps, max_frames=24):
    """The published rule 'base'."""
    start, end = int(0 * fps), min(num_frames, int(60 * fps)) - 1
    return list(np.linspace(start, end, max_frames, dtype=int))


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("num_frames", COUNTS)
def test_per_second_is_the_published_loop(fps, num_frames):
    times_s = constant(num_frames, fps)
    assert per_second(times_s) == published_chat(times_s)


@pytest.mark.parametrize("seed", range(20))
def test_per_second_is_the_published_loop_for_variable_rates(seed):
    times_s = varying(200, seed)
    assert per_second(times_s) == published_chat(times_s)


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("num_frames", COUNTS)
def test_uniform_is_the_published_formula(fps, num_frames):
    assert uniform(num_frames, fps) == published_base(num_frames, fps)


def test_six_seconds_give_seven_frames():
    assert per_second(constant(48, 8)) == [0, 8, 16, 24, 32, 40, 47]


def test_of_two_frames_equally_near_the_earlier_is_taken():
    times_s = np.array([0, 0.75, 1.25, 2], np.float32)
    assert per_second(times_s) == [0, 1, 3]


def test_a_half_is_rounded_to_the_even_second():
    assert per_second(np.array([0, 0.5], np.float32)) == [0]
    assert per_second(np.array([0, 1.5], np.float32)) == [0, 1, 1]


@pytest.mark.parametrize("rule", [PER_SECOND, UNIFORM])
@pytest.mark.parametrize("fps", RATES)
def test_a_clip_of_the_whole_video_is_the_published_choice(rule, fps):
    times_s = constant(300, fps)
    published = {
        "per_second": published_chat(times_s),
        "uniform": published_base(300, fps),
    }
    assert choose(times_s, fps, rule) == published[rule.strategy]


@pytest.mark.parametrize("rule", [PER_SECOND, UNIFORM])
def test_a_clip_is_sampled_like_a_video_of_its_own(rule):
    times_s = constant(1000, 8)
    alone = choose(constant(160, 8), 8, rule)
    assert choose(times_s, 8, rule, 10.0, 30.0) == [80 + index for index in alone]


@pytest.mark.parametrize("fps", [10, 24, 25, Fraction(30000, 1001), 60])
@pytest.mark.parametrize("segment_s", [0.7, 1.1, 3.0, 7.3])
def test_each_frame_is_in_one_clip(fps, segment_s):
    times_s = constant(400, float(fps))
    every = Sampling(strategy="uniform", max_frames=5000, window_s=1e6)
    bounds = [index * segment_s for index in range(int(times_s[-1] / segment_s) + 1)]
    found = [
        set(choose(times_s, float(fps), every, start_s, end_s))
        for start_s, end_s in zip(bounds, [*bounds[1:], None], strict=True)
    ]
    assert sorted(index for clip in found for index in clip) == list(range(400))


def test_a_clip_begins_with_the_frame_at_its_start():
    times_s = constant(100, 10)
    for tenth in range(99):
        assert choose(times_s, 10, PER_SECOND, tenth / 10, (tenth + 1) / 10) == [tenth]


def test_a_clip_in_which_nothing_moves_shows_the_frame_before_it():
    times_s = np.array([0, 1, 90, 91], np.float32)
    assert choose(times_s, 1, PER_SECOND, 30.0, 60.0) == [1]
    assert set(choose(times_s, 1, UNIFORM, 30.0, 60.0)) == {1}


def test_a_clip_after_the_end_is_refused():
    with pytest.raises(VideoError, match=r"begins at 11 s, the video ends at 10.00 s") as raised:
        choose(constant(100, 10), 10, PER_SECOND, 11.0)
    assert raised.value.reason == "clip_outside"


def test_max_frames_is_kept():
    times_s = constant(1000, 10)
    assert len(choose(times_s, 10, Sampling(max_frames=5))) == 5
    assert len(choose(times_s, 10, Sampling(strategy="uniform", max_frames=48))) == 48


def test_uniform_looks_at_its_window_alone():
    chosen = choose(constant(1000, 10), 10, Sampling(strategy="uniform", window_s=30.0))
    assert (chosen[0], chosen[-1]) == (0, 299)


def test_an_unknown_strategy_is_named():
    class Rule:
        strategy, max_frames, window_s = "each", 24, 60.0

    with pytest.raises(ConfigError, match="'each'"):
        choose(constant(10, 10), 10, Rule())


class TestSpread:
    def test_is_per_second_where_the_clip_has_no_more_seconds_than_frames(self):
        times = np.arange(0, 10, 0.1)
        assert spread(times, 24) == per_second(times, 24)

    def test_reaches_from_the_first_frame_to_the_last_of_a_long_clip(self):
        times = np.arange(0, 100, 0.5)
        chosen = spread(times, 5)
        assert (chosen[0], chosen[-1], len(chosen)) == (0, len(times) - 1, 5)

    def test_leaves_no_gap_wider_than_the_others(self):
        times = np.arange(0, 600, 0.04)
        gaps = np.diff(times[spread(times, 24)])
        assert gaps.max() - gaps.min() < 0.1

    def test_goes_by_time_and_not_by_frames(self):
        times = np.concatenate([np.arange(0, 10, 0.01), np.arange(10, 100, 1.0)])
        assert np.diff(times[spread(times, 10)]).min() > 9


@pytest.mark.parametrize("strategy", ["per_second", "spread"])
def test_at_a_rate_frames_lie_that_far_apart(strategy):
    times_s = constant(120, 30)  # four seconds
    rule = Sampling(strategy=strategy, fps=2.0, max_frames=32)
    chosen = choose(times_s, 30.0, rule)
    steps = [step / 2 for step in range(9)]
    assert [times_s[index] for index in chosen] == pytest.approx(steps, abs=0.04)


def test_the_most_frames_hold_at_any_rate_and_spread_keeps_the_end():
    times_s = constant(3000, 30)
    until = choose(times_s, 30.0, Sampling(fps=2.0, max_frames=8))
    over = choose(times_s, 30.0, Sampling(strategy="spread", fps=2.0, max_frames=8))
    assert len(until) == len(over) == 8
    assert times_s[until[-1]] == pytest.approx(3.5, abs=0.02)
    assert over[-1] == 2999


def test_a_rate_of_one_takes_what_no_rate_takes():
    times_s = varying(400, 3)
    for strategy in ("per_second", "spread"):
        with_rate, without = Sampling(strategy=strategy, fps=1.0), Sampling(strategy=strategy)
        assert choose(times_s, 5.0, with_rate) == choose(times_s, 5.0, without)


def test_a_rate_that_a_strategy_would_ignore_is_refused():
    with pytest.raises(ValueError, match="no effect with the strategy uniform"):
        Sampling(strategy="uniform", fps=2.0)


def test_a_key_holds_what_it_always_did_until_something_newer_is_set():
    """Caches that were made before rates and limits of pixels stay valid."""
    old = {"strategy": "per_second", "max_frames": 24, "window_s": 60.0}
    assert Sampling().fields() == old
    assert Sampling(fps=2.0, max_pixels=100_352).fields() == old | {
        "fps": 2.0,
        "max_pixels": 100_352,
    }
