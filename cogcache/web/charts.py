"""Computes the positions of lines and bars in a chart; the templates draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cogcache.units import GIB, KIB, MIB, format_bytes, format_seconds

WIDTH: Final = 720
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 76, 12, 12, 28
_KINDS: Final = {
    "anonymous_bytes": "its own",
    "file_bytes": "mapped files",
    "device_bytes": "device",
}


@dataclass(frozen=True, slots=True)
class Area:
    """What one kind of memory took, over time."""

    name: str
    points: str
    """Corners of a polygon, in the notation of SVG."""
    kind: int


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis, or a level across the picture."""

    place: float
    label: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Memory over time: host memory stacked, or a device's alone."""

    areas: list[Area]
    levels: list[Tick]
    bytes_ticks: list[Tick]
    time_ticks: list[Tick]
    summary: str
    """The same in words."""


def timeline(samples: Sequence[Mapping[str, Any]], levels: Mapping[str, int]) -> Timeline | None:
    """Return the picture of a run's memory.

    Args:
        samples: ``report.timeline`` of a run.
        levels: bytes to draw across it, by name, such as what was planned.
    """
    if len(samples) < 2:
        return None
    on_device = any(sample["device_bytes"] for sample in samples)
    kinds = ["device_bytes"] if on_device else ["anonymous_bytes", "file_bytes"]
    top_bytes = max([*levels.values(), *(sum(s[kind] for kind in kinds) for s in samples)]) * 1.05
    end_s = max(float(samples[-1]["time_s"]), 1e-3)
    scale = _Scale(top_bytes, end_s)
    peak = max(sum(sample[kind] for kind in kinds) for sample in samples)
    summary = f"Peak {format_bytes(peak)} in {format_seconds(end_s)}"
    summary += "".join(f"; {name}: {format_bytes(size)}" for name, size in levels.items())
    return Timeline(
        _areas(samples, kinds, scale),
        [Tick(scale.y(size), f"{name}: {format_bytes(size)}") for name, size in levels.items()],
        [Tick(scale.y(size), format_bytes(size)) for size in _round_steps(top_bytes)],
        [Tick(scale.x(end_s * i / 4), format_seconds(end_s * i / 4)) for i in range(5)],
        summary,
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    top_bytes: float
    end_s: float

    def x(self, time_s: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * min(time_s / self.end_s, 1), 1)

    def y(self, size_bytes: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * size_bytes / self.top_bytes, 1)


def _areas(samples: Sequence[Mapping[str, Any]], kinds: list[str], scale: _Scale) -> list[Area]:
    areas, below = [], [0.0] * len(samples)
    xs = [scale.x(sample["time_s"]) for sample in samples]
    for number, kind in enumerate(kinds):
        above = [base + sample[kind] for base, sample in zip(below, samples, strict=True)]
        upper = [f"{x},{scale.y(size)}" for x, size in zip(xs, above, strict=True)]
        lower = [f"{x},{scale.y(size)}" for x, size in zip(xs, below, strict=True)]
        areas.append(Area(_KINDS[kind], " ".join([*upper, *reversed(lower)]), number))
        below = above
    return areas


def _round_steps(top_bytes: float) -> list[float]:
    """Return some four round sizes from 0 up."""
    unit = next((unit for unit in (GIB, MIB, KIB) if top_bytes >= 2 * unit), 1)
    units = top_bytes / unit
    sizes = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    step = next((size for size in sizes if units / size <= 5), 2000)
    return [float(step * unit * i) for i in range(int(units / step) + 1)]
