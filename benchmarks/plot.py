"""Plots the rows that `table --add` kept: ratios with their targets, and times by prompts.

python -m benchmarks.plot TABLE.json PICTURE.png
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

MET, MISSED, BAR = "#2f6f4f", "#b5542b", "#222222"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
CURVE = re.compile(r"(\d+) prompts a clip, (\d+) tokens each")
Row = dict[str, Any]


def main() -> None:
    """Draw."""
    rows = json.loads(Path(sys.argv[1]).read_text())
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 5), width_ratios=(3, 2), layout="constrained"
    )
    ratios(left, [row for row in rows if row["bar"]])
    curve(right, rows)
    figure.savefig(sys.argv[2], dpi=90)


def ratios(axes: Axes, rows: list[Row]) -> None:
    """Draw each ratio with its extremes, and a mark where its bar is."""
    for place, row in enumerate(reversed(rows)):
        sign, bar = row["bar"].split()
        middle = median(row["ratios"])
        met = middle >= float(bar) if sign == "≥" else middle <= float(bar)
        color = MET if met else MISSED
        axes.plot([min(row["ratios"]), max(row["ratios"])], [place, place], color=color, lw=3)
        axes.plot(middle, place, "o", color=color, ms=8)
        axes.plot(float(bar), place, "|", color=BAR, ms=16, mew=2)
        axes.annotate(
            f"{sign} {bar}", (float(bar), place), (4, 5), textcoords="offset points", size=7
        )
    axes.set_yticks(range(len(rows)), [short(row["name"]) for row in reversed(rows)], size=7)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xlim(TICKS[0], TICKS[-1])
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("ratio (median and extremes), and the bar it is held to", size=10)


def short(name: str) -> str:
    """Break a name in two lines."""
    middle = name.find(" ", len(name) // 2)
    return name if len(name) < 45 or middle < 0 else f"{name[:middle]}\n{name[middle + 1 :]}"


def curve(axes: Axes, rows: list[Row]) -> None:
    """Draw what sharing a prefill gains over the prompts of a clip, a line a length of answer."""
    points: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        if found := CURVE.match(row["name"]):
            points.setdefault(int(found[2]), {})[int(found[1])] = row["ratios"]
    for length, by_count in sorted(points.items()):
        counts = sorted(by_count)
        middles = [median(by_count[count]) for count in counts]
        axes.plot(counts, middles, marker="o", label=f"{length} tokens an answer")
        lows, highs = ([of(by_count[count]) for count in counts] for of in (min, max))
        axes.fill_between(counts, lows, highs, alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts_of(points), [str(count) for count in counts_of(points)])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("prompts a clip")
    axes.set_ylabel("times faster")
    axes.set_title("one prefill a clip, against one a prompt", size=10)
    axes.legend()


def counts_of(points: dict[int, dict[int, list[float]]]) -> list[int]:
    """Return the numbers of prompts that were measured."""
    return sorted({count for by_count in points.values() for count in by_count})


if __name__ == "__main__":
    main()
