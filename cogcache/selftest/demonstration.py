"""The demonstration: runs both stages on made-up clips whose true captions are known.

Each stage and, for comparison, the whole model run in their own processes, so that each peak of
memory is measured alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogcache.catalog import Catalog, RunRow
from cogcache.errors import CogcacheError
from cogcache.selftest.shapes import QUESTIONS, Scene, draw_scene, write_clip
from cogcache.stages import run_stage
from cogcache.system import CachePaths

NUM_CLIPS = 12
SEED = 2_000_000
"""Start of the scenes' seeds; training draws from others."""
MIN_SHARE = 0.75
"""Least share of exact answers to each question over a dozen clips. The model's measured share
is above 0.9 in NF4 over 500 clips; three misses of twelve are then a case in a thousand."""
ASKED = ("detail", "color", "shape", "direction", "speed", "count", "background")


@dataclass(frozen=True, slots=True)
class Answer:
    """One caption and the true answer."""

    video: str
    question: str
    said: str
    truth: str

    @property
    def right(self) -> bool:
        """Whether the two are the same text."""
        return self.said == self.truth


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The results of the demonstration."""

    answers: tuple[Answer, ...]
    runs: tuple[RunRow, ...]
    """The rows of the two stages' runs in the catalog."""
    whole: Mapping[str, float]
    """What the whole model in one piece took: peak `host_bytes`, of them `base_bytes` before any
    weight, `weights_bytes` on the disk, `total_s`."""

    def memory(self) -> list[dict[str, str | int]]:
        """Return a row for each process: peak memory, memory before any weight, and weights."""
        rows: list[dict[str, str | int]] = []
        for name, run in zip(("vision half", "language half"), self.runs, strict=True):
            report: dict[str, Any] = dict(run["report"])
            rows.append(
                {
                    "process": name,
                    "peak_bytes": run["measured_peak_bytes"] or 0,
                    "base_bytes": report["base_bytes"],
                    "weights_bytes": sum(report["bytes_by_shard"].values()),
                }
            )
        whole: dict[str, str | int] = {"process": "whole model"}
        whole["peak_bytes"] = int(self.whole["host_bytes"])
        return [*rows, whole | {k: int(self.whole[k]) for k in ("base_bytes", "weights_bytes")}]

    def shares(self) -> dict[str, float]:
        """Return the share of exact answers by question."""
        return {
            question: sum(a.right for a in self.answers if a.question == question)
            / sum(a.question == question for a in self.answers)
            for question in ASKED
        }

    @property
    def passed(self) -> bool:
        """Whether each question was answered as well as it must be."""
        return all(share >= MIN_SHARE for share in self.shares().values())


def demonstrate(folder: Path) -> Demonstration:
    """Make clips in `folder`, caption them in two stages and with the whole model.

    Raises:
        CogcacheError: a stage could not do its work; its own message was printed before.
    """
    # As the catalog names them: `..` taken out, links left as they are.
    folder = Path(os.path.abspath(folder))  # noqa: PTH100
    scenes = make_clips(folder / "clips")
    cache = folder / "cache"
    prompts = [f"--prompt={name}={QUESTIONS[name][0]}" for name in ASKED]
    # All of it takes a few MiB: the room that is kept for others need not be there.
    on = (f"--cache={cache}", "--model=tiny", "--min-free=0")
    _stage("extract", str(folder / "clips"), *on)
    _stage("caption", *on, "--max-new-tokens=64", *prompts)
    with Catalog(CachePaths(cache).catalog) as catalog:
        captions = {
            (Path(r["video"]), r["prompt_name"]): r["caption"] for r in catalog.captions.rows()
        }
        runs = tuple(catalog.runs.rows()[-2:])
    answers = tuple(
        Answer(path.name, name, captions.get((path, name), ""), scene.answer(name))
        for path, scene in scenes.items()
        for name in ASKED
    )
    return Demonstration(answers, runs, _whole(list(scenes)))


def make_clips(folder: Path) -> dict[Path, Scene]:
    """Write the demonstration's clips as H.264 and return what each shows."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    scenes = {}
    for number in range(NUM_CLIPS):
        scene = draw_scene(np.random.default_rng(SEED + number))
        path = folder / f"clip-{number:02}.mp4"
        write_clip(scene, path)
        scenes[path] = scene
    return scenes


def _stage(*arguments: str) -> None:
    if status := run_stage(arguments):
        raise CogcacheError(f"`cogcache {arguments[0]}` ended with exit status {status}")


def _whole(videos: list[Path]) -> dict[str, float]:
    """Caption the same clips with the whole model in one piece, in a process of its own."""
    arguments = ["-m", "cogcache.selftest.whole_model", "tiny", *map(str, videos)]
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured
