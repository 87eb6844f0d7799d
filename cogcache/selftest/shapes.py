"""Short clips of moving coloured shapes, with questions whose true answers are known.

The bundled model ``tiny`` is trained on such scenes, and `cogcache demo` asks it about new ones.
A scene is one to three equal shapes that move together in a straight line over a plain background.
Positions and lengths are in units of the frame's side, y grows downwards, speeds are per second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt

FPS: Final = 8
SIDE: Final = 112

COLORS: Final = {
    "red": (220, 35, 35),
    "green": (40, 165, 60),
    "blue": (45, 75, 225),
    "yellow": (240, 220, 45),
    "orange": (245, 140, 25),
    "purple": (140, 45, 185),
    "pink": (250, 140, 190),
    "cyan": (55, 205, 220),
}
BACKGROUNDS: Final = {
    "black": (14, 14, 14),
    "white": (240, 240, 240),
    "gray": (126, 126, 126),
    "brown": (98, 62, 34),
}
SHAPES: Final = ("circle", "square", "triangle", "cross", "ring")
DIRECTIONS: Final = {
    "to the left": (-1, 0),
    "to the right": (1, 0),
    "upwards": (0, -1),
    "downwards": (0, 1),
}
SPEEDS: Final = {"slowly": (0.025, 0.040), "quickly": (0.080, 0.095)}
RADIUS: Final = (0.135, 0.145)
COUNTS: Final = ("one", "two", "three")
NUM_FRAMES: Final = range(32, 57, 4)

QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "detail": (
        "Please describe this video in detail.",
        "Describe this video in detail.",
        "Describe the video.",
        "What happens in this video?",
    ),
    "summary": (
        "Describe this video briefly.",
        "Please describe the video in a few words.",
        "Describe the video in short.",
    ),
    "color": (
        "What color is the shape?",
        "What is the color of the shapes?",
        "What color are the shapes?",
        "What colour is the shape?",
        "What colour are the shapes?",
    ),
    "shape": (
        "What shape is it?",
        "Which shape do you see?",
        "What shape is in the video?",
    ),
    "direction": (
        "In which direction does it move?",
        "Which direction do the shapes move in?",
        "What direction does the shape move in?",
        "Where does it move?",
    ),
    "speed": (
        "How fast does it move?",
        "How fast do the shapes move?",
        "What is the speed of the shape?",
        "Does it move slowly or quickly?",
    ),
    "count": (
        "How many shapes are there?",
        "How many shapes do you see?",
        "How many shapes are in the video?",
    ),
    "background": (
        "What color is the background?",
        "What is the color of the background?",
        "What colour is the background?",
    ),
}
"""The questions for each attribute; the first is the one used to measure `tiny`."""

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scene:
    """What one clip shows, in words and in numbers.

    Args:
        color: one of ``COLORS``.
        shape: one of ``SHAPES``.
        direction: one of ``DIRECTIONS``.
        speed: one of ``SPEEDS``.
        count: one of ``COUNTS``.
        background: one of ``BACKGROUNDS``.
        num_frames: length of the clip in frames of 1 / ``FPS`` seconds.
        radius: half a shape's extent.
        velocity: (x, y) of every shape.
        starts: (x, y) of each shape's centre in the first frame.
        rgb: colour of the shapes, 0 to 255.
        background_rgb: colour of the background, 0 to 255.
    """

    color: str
    shape: str
    direction: str
    speed: str
    count: str
    background: str
    num_frames: int
    radius: float = field(repr=False)
    velocity: tuple[float, float] = field(repr=False)
    starts: tuple[tuple[float, float], ...] = field(repr=False)
    rgb: tuple[float, ...] = field(repr=False)
    background_rgb: tuple[float, ...] = field(repr=False)

    @property
    def middle(self) -> tuple[float, float]:
        """Where the middle of all shapes is in the first frame: (x, y)."""
        x, y = np.mean(self.starts, axis=0)
        return float(x), float(y)

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds."""
        return self.num_frames / FPS

    def answer(self, attribute: str) -> str:
        """Return the true answer to the questions about one of the attributes in ``QUESTIONS``."""
        if attribute == "detail":
            place = f" on a {self.background} background"
            return self._sentence(f"{self.speed} ", place)
        if attribute == "summary":
            return self._sentence("", "")
        return f"{getattr(self, attribute)}.".capitalize()

    def _sentence(self, speed: str, place: str) -> str:
        several = self.count != "one"
        plural = "es" if self.shape == "cross" else "s"
        noun, verb = (self.shape + plural, "move") if several else (self.shape, "moves")
        start = f"{self.count.capitalize()} {self.color} {noun}"
        return f"{start} {verb} {speed}{self.direction}{place}."


def draw_scene(rng: np.random.Generator, num_frames: int | None = None) -> Scene:
    """Return a random scene whose shapes stay within the frame from its first frame to its last.

    Args:
        rng: where all of its randomness comes from; the same state gives the same scene.
        num_frames: length of the clip; any of ``NUM_FRAMES`` when left out.
    """
    frames = int(rng.choice(NUM_FRAMES)) if num_frames is None else num_frames
    color, background = _pick(rng, COLORS), _pick(rng, BACKGROUNDS)
    direction, speed, count = _pick(rng, DIRECTIONS), _pick(rng, SPEEDS), _pick(rng, COUNTS)
    radius = rng.uniform(*RADIUS)
    travel = np.array(DIRECTIONS[direction]) * rng.uniform(*SPEEDS[speed])
    starts = _starts(rng, COUNTS.index(count) + 1, radius, travel, (frames - 1) / FPS)
    return Scene(
        color=color,
        shape=_pick(rng, SHAPES),
        direction=direction,
        speed=speed,
        count=count,
        background=background,
        num_frames=frames,
        radius=float(radius),
        velocity=(float(travel[0]), float(travel[1])),
        starts=starts,
        rgb=_near(rng, COLORS[color]),
        background_rgb=_near(rng, BACKGROUNDS[background]),
    )


def _pick(rng: np.random.Generator, words: Collection[str]) -> str:
    return list(words)[int(rng.integers(len(words)))]


def _near(rng: np.random.Generator, rgb: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.clip(rgb + rng.uniform(-10, 10, 3), 0, 255))


def _starts(
    rng: np.random.Generator, count: int, radius: float, velocity: Floats, seconds: float
) -> tuple[tuple[float, float], ...]:
    """Line the shapes up at a right angle to their way, which lies within the frame."""
    along, across = (0, 1) if velocity[0] else (1, 0)
    room = 1 - 2 * radius
    length = abs(float(velocity[along])) * seconds
    first = radius + rng.uniform(0, room - length)
    start = first if velocity[along] > 0 else first + length
    widest = room / max(count - 1, 1) - 2 * radius
    gap = 2 * radius + rng.uniform(0.04, max(0.04, min(0.10, widest)))
    top = radius + rng.uniform(0, room - gap * (count - 1))
    centres = np.empty((count, 2))
    centres[:, along], centres[:, across] = start, top + gap * np.arange(count)
    return tuple((float(x), float(y)) for x, y in centres)


def render(scenes: Sequence[Scene], times_s: Sequence[float], side: int = SIDE) -> Floats:
    """Return pictures of many scenes at the same times.

    Args:
        scenes: N of them.
        times_s: T times since the start of the clip.
        side: width and height S in pixels.

    Returns:
        float32 [N, T, S, S, 3], RGB from 0 to 255.
    """
    cover = np.empty((len(scenes), len(times_s), side, side), np.float32)
    for shape in SHAPES:
        rows = [row for row, scene in enumerate(scenes) if scene.shape == shape]
        if rows:
            cover[rows] = _coverage(shape, [scenes[row] for row in rows], times_s, side)
    shapes = np.array([scene.rgb for scene in scenes], np.float32)[:, None, None, None]
    ground = np.array([scene.background_rgb for scene in scenes], np.float32)[:, None, None, None]
    picture: Floats = ground + cover[..., None] * (shapes - ground)
    return picture


def _coverage(shape: str, scenes: Sequence[Scene], times_s: Sequence[float], side: int) -> Floats:
    """Return how much of each pixel a scene's shapes cover: float32 [N, T, S, S], 0 to 1."""
    times = np.asarray(times_s, np.float32)[None, :, None]
    velocity = np.array([scene.velocity for scene in scenes], np.float32)[:, None]
    radius = np.array([scene.radius for scene in scenes], np.float32)[:, None, None, None]
    grid = (np.arange(side, dtype=np.float32) + 0.5) / side
    nearest = np.full((len(scenes), times.size, side, side), np.inf, np.float32)
    for number in range(max(len(scene.starts) for scene in scenes)):
        rows = [row for row, scene in enumerate(scenes) if number < len(scene.starts)]
        start = np.array([scenes[row].starts[number] for row in rows], np.float32)[:, None]
        centre = start + velocity[rows] * times
        x = (grid - centre[..., :1])[:, :, None, :]
        y = (grid - centre[..., 1:])[:, :, :, None]
        nearest[rows] = np.minimum(nearest[rows], _distance(shape, x, y, radius[rows]))
    cover: Floats = np.clip(0.5 - nearest * side, 0, 1)
    return cover


def _distance(shape: str, x: Floats, y: Floats, radius: Floats) -> Floats:
    """Return the signed distance to a shape's outline, negative inside."""
    across: Floats = np.abs(x)
    distance: Floats
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - radius
    elif shape == "ring":
        distance = np.abs(np.sqrt(x * x + y * y) - 0.8 * radius) - 0.2 * radius
    elif shape == "square":
        distance = np.maximum(across, np.abs(y)) - radius
    elif shape == "triangle":
        distance = np.maximum(y - 0.9 * radius, 0.89 * across - 0.45 * y - 0.45 * radius)
    else:
        up: Floats = np.abs(y)
        lying = np.maximum(across - radius, up - radius / 4)
        distance = np.minimum(lying, np.maximum(across - radius / 4, up - radius))
    return distance


def write_clip(scene: Scene, path: Path) -> None:
    """Write a scene as an H.264 video (4:2:0, ``FPS`` frames a second, ``SIDE`` pixels square)."""
    write_pictures(pictures_of(scene), path)


def pictures_of(scene: Scene) -> npt.NDArray[np.uint8]:
    """Return the frames of a scene: uint8 [T, SIDE, SIDE, 3]."""
    times = [index / FPS for index in range(scene.num_frames)]
    pictures: npt.NDArray[np.uint8] = np.rint(render([scene], times)[0]).astype(np.uint8)
    return pictures


def write_pictures(pictures: npt.NDArray[np.uint8], path: Path, crf: int = 18) -> None:
    """Write frames, uint8 [T, SIDE, SIDE, 3], as `write_clip` does; a higher ``crf`` loses more."""
    with av.open(str(path), "w") as container:
        options = {"crf": str(crf), "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
