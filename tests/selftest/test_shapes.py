from __future__ import annotations

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from cogcache.selftest.shapes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    DIRECTIONS,
    FPS,
    QUESTIONS,
    SHAPES,
    SIDE,
    SPEEDS,
    Scene,
    draw_scene,
    render,
    write_clip,
)

# y grows downwards.
SIGNS = {"to the left": [-1, 0], "to the right": [1, 0], "upwards": [0, -1], "downwards": [0, 1]}


def scenes(number: int) -> list[Scene]:
    rng = np.random.default_rng(11)
    return [draw_scene(rng) for _ in range(number)]


def last_moment(scene: Scene) -> float:
    return (scene.num_frames - 1) / FPS


def centre_of_mass(scene: Scene, time_s: float) -> np.ndarray:
    picture = render([scene], [time_s])[0, 0]
    weight = np.abs(picture - scene.background_rgb).sum(-1)
    grid = (np.arange(SIDE) + 0.5) / SIDE
    return np.array([weight.sum(0) @ grid, weight.sum(1) @ grid]) / weight.sum()


def num_islands(scene: Scene) -> int:
    """Count the separate shapes along the line on which they stand."""
    picture = render([scene], [0.0])[0, 0]
    covered = np.abs(picture - scene.background_rgb).sum(-1) > 1
    across = 1 if scene.velocity[0] else 0
    line = covered.any(axis=across).astype(int)
    return int((np.diff(line, prepend=0) == 1).sum())


def test_the_same_random_state_gives_the_same_scene() -> None:
    assert draw_scene(np.random.default_rng(3)) == draw_scene(np.random.default_rng(3))


def test_every_word_comes_up_about_equally_often() -> None:
    drawn = scenes(4000)
    for attribute, words in {
        "color": COLORS,
        "shape": SHAPES,
        "direction": DIRECTIONS,
        "speed": SPEEDS,
        "count": COUNTS,
        "background": BACKGROUNDS,
    }.items():
        counted = Counter(getattr(scene, attribute) for scene in drawn)
        assert set(counted) == set(words)
        assert min(counted.values()) > 0.8 * len(drawn) / len(words)


def test_shapes_stay_within_the_frame_from_first_to_last() -> None:
    for scene in scenes(500):
        for start in scene.starts:
            end = np.array(start) + np.array(scene.velocity) * last_moment(scene)
            for place in (*start, *end):
                assert scene.radius - 1e-6 <= place <= 1 - scene.radius + 1e-6


def test_shapes_of_a_scene_do_not_touch() -> None:
    for scene in scenes(60):
        assert num_islands(scene) == len(scene.starts)


def test_the_answered_direction_is_the_rendered_one() -> None:
    for scene in scenes(40):
        moved = centre_of_mass(scene, last_moment(scene)) - centre_of_mass(scene, 0.0)
        expected = np.array(scene.velocity) * last_moment(scene)
        assert moved == pytest.approx(expected, abs=0.01)
        assert np.sign(np.round(moved, 2)).tolist() == SIGNS[scene.direction]


def test_fast_and_slow_are_a_factor_apart() -> None:
    assert SPEEDS["quickly"][0] > 1.8 * SPEEDS["slowly"][1]


def test_the_answered_number_is_the_number_of_shapes() -> None:
    assert all(COUNTS.index(scene.count) + 1 == len(scene.starts) for scene in scenes(50))


def test_each_attribute_has_its_own_questions() -> None:
    queries = [query for asked in QUESTIONS.values() for query in asked]
    assert len(queries) == len(set(queries))


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("detail", "Two red crosses move slowly to the left on a black background."),
        ("summary", "Two red crosses move to the left."),
        ("color", "Red."),
        ("shape", "Cross."),
        ("direction", "To the left."),
        ("speed", "Slowly."),
        ("count", "Two."),
        ("background", "Black."),
    ],
)
def test_answers_are_sentences(attribute: str, expected: str) -> None:
    scene = Scene(
        color="red",
        shape="cross",
        direction="to the left",
        speed="slowly",
        count="two",
        background="black",
        num_frames=32,
        radius=0.14,
        velocity=(-0.04, 0.0),
        starts=((0.5, 0.3), (0.5, 0.7)),
        rgb=(220.0, 35.0, 35.0),
        background_rgb=(14.0, 14.0, 14.0),
    )
    assert scene.answer(attribute) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_looks_different_from_the_others(shape: str) -> None:
    def picture(name: str) -> np.ndarray:
        scene = scenes(1)[0]
        return render([Scene(**{**vars(scene), "shape": name})], [0.0])[0, 0]

    for other in set(SHAPES) - {shape}:
        assert (np.abs(picture(shape) - picture(other)).sum(-1) > 60).sum() > 15


def test_a_clip_is_h264_of_the_scenes_length(tmp_path: Path) -> None:
    scene = scenes(1)[0]
    write_clip(scene, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (SIDE, SIDE, FPS)
        assert sum(1 for _ in container.decode(stream)) == scene.num_frames


def test_a_clip_shows_what_was_rendered(tmp_path: Path) -> None:
    scene = scenes(1)[0]
    write_clip(scene, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for index in (0, scene.num_frames - 1):
        expected = render([scene], [index / FPS])[0, 0]
        assert np.abs(decoded[index] - expected).mean() < 3


def test_the_same_scene_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        write_clip(scenes(1)[0], tmp_path / name)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
