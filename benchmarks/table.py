"""Measures everything that re-captioning costs, as a table with one row for each function.

    python -m benchmarks.table [FIGURE ...] [--repeats 5] [--threads 2] [--wall] [--add FILE]

Each figure is a ratio of two ways measured in turn in one run, on a random model of 50 M
parameters with the flagship's proportions (`small`). Printed are the median and the extremes.
What computes is timed in processor seconds of one thread, so that a shared machine can measure it;
`--wall --threads 2` takes the clock on the wall instead, on a machine of one's own. Files,
processes and what overlaps are always timed by the wall. `--add` keeps the rows for `plot`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.files import codecs, sealing, size
from benchmarks.overlap import overlap
from benchmarks.recaption import (
    batching,
    keeping,
    keeping_large,
    limit,
    monolith,
    nothing_to_do,
    sharing,
    waste,
)
from benchmarks.small import Bench
from benchmarks.timing import HEAD, Clock, Line

FIGURES = (
    monolith, limit, sharing, batching, waste, keeping, keeping_large,
    overlap, sealing, size, codecs, nothing_to_do,
)  # fmt: skip


def main() -> None:
    """Measure what is asked for and print the table."""
    names = [figure.__name__ for figure in FIGURES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", choices=[*names, []], metavar="FIGURE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="time computing by the wall, too")
    parser.add_argument("--add", type=Path, metavar="FILE", help="add the rows to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.wall:
        Clock.now = staticmethod(time.perf_counter)
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.repeats)
        for figure in FIGURES:
            if not options.figures or figure.__name__ in options.figures:
                for line in figure(bench):
                    print(line, flush=True)
                    if options.add:
                        add(options.add, figure.__name__, line)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


def add(path: Path, figure: str, line: Line) -> None:
    """Add a row to those of earlier goes; one of the same name is replaced."""
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in rows if row["name"] != line.name]
    rows.append({"figure": figure, "name": line.name, "bar": line.bar, "ratios": line.ratios})
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
