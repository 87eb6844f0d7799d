"""Checks that several workers make the same bytes as one process, even if some are killed.

    python -m benchmarks.workers --clips 200

Ray runs as a local cluster of several nodes of one CPU each; all is done with `tiny` on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.torture import hold
from cogcache.catalog.catalog import Catalog
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.store.store import FeatureStore

ROOT = Path(__file__).parent.parent
SMALL = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 << 20}
NODES = 3
KILLS = 10
LOADED_BYTES = 700 << 20
"""A worker that holds a half takes more than this, and a decoder less."""
STAGES = ("extract", "caption")


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """Start a Ray cluster on this machine, and end it with the block."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**SMALL)
        yield cluster
    finally:
        cluster.shutdown()


@dataclass
class Bench:
    """Clips, and what one process makes of them."""

    folder: Path
    num_clips: int
    plain: Path = field(init=False)
    message: str = ""
    """By the last run."""

    def __post_init__(self) -> None:
        self.plain = self.folder / "plain"
        (self.folder / "videos").mkdir()
        for number in range(self.num_clips):
            scene = draw_scene(np.random.default_rng(number))
            write_clip(scene, self.folder / "videos" / f"{number:04}.mp4")

    def command(self, stage: str, cache: Path, *options: str) -> list[str]:
        """Return how to run a stage over all clips."""
        videos = [str(self.folder / "videos")] if stage == "extract" else []
        workers = ["--decode-workers", "1"] if stage == "extract" else []
        command = [sys.executable, "-m", "cogcache", stage, *videos, f"--cache={cache}"]
        return [*command, *workers, *options]

    def run(self, stage: str, cache: Path, *options: str, harm: Harm | None = None) -> float:
        """Run a stage, with harm done to it meanwhile; return how long it took in seconds."""
        began_s = time.monotonic()
        command = self.command(stage, cache, *options)
        with (self.folder / "said").open("w+") as message:
            process = subprocess.Popen(command, stdout=message, stderr=subprocess.STDOUT, cwd=ROOT)
            while process.poll() is None:
                if harm is not None:
                    harm(process.pid, self.made(stage, cache))
                time.sleep(0.1)
            message.seek(0)
            self.message = message.read()
        hold(process.returncode == 0, f"{stage} ended with {process.returncode}:\n{self.message}")
        return time.monotonic() - began_s

    def made(self, stage: str, cache: Path) -> int:
        """Return how much of a stage is done."""
        if stage == "extract":
            return sum(1 for _ in cache.glob("features/??/*.h5"))
        with Catalog(cache / "catalog.sqlite") as catalog:
            return len(catalog.captions.rows())

    def hold_same(self, cache: Path) -> None:
        """Hold that a cache has what one process made, nothing less and nothing twice."""
        hold(features(cache) == features(self.plain), "feature files differ")
        hold(rows(cache) == rows(self.plain), "clips or captions differ")
        with Catalog(cache / "catalog.sqlite") as catalog:
            hold(not catalog.failures.rows(), "something failed")
            keys = [row["feature_key"] for row in catalog.clips.rows()]
        hold(len(keys) == len(set(keys)) == self.num_clips, f"{len(keys)} clips are listed")
        for folder in ("claims", "working"):
            hold(not [*(cache / folder).glob("*")], f"{folder} are left")
        FeatureStore.open(
            cache
        ).remove_unfinished()  # as the next start does: a killed worker leaves its last
        hold(not [*cache.rglob("*.partial")], "unfinished files are left")

    def num_requeued(self) -> int:
        """Return how many clips the last run gave out again."""
        found = re.search(r"given out again, for lost workers: (\d+)", self.message)
        return int(found[1]) if found else 0


def features(cache: Path) -> dict[str, str]:
    """Return the digest of each feature file, by its name."""
    files = cache.glob("features/??/*.h5")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(cache: Path) -> list[tuple[object, ...]]:
    """Return what the catalog says of each clip and caption, the times of making left out."""
    with Catalog(cache / "catalog.sqlite") as catalog:
        clips, captions = catalog.clips.rows(), catalog.captions.rows()
    of_clips = [(row["feature_key"], row["video"], row["num_frames"]) for row in clips]
    of_captions = [
        (row["caption_key"], row["video"], row["caption"], str(row["flags"]), row["num_tokens"])
        for row in captions
    ]
    return [*sorted(of_clips), *sorted(of_captions)]


Harm = Callable[[int, int], None]
"""Is told the process and how much is done, many times a second."""


@dataclass
class Kills:
    """Kills workers that hold a half, one after another as the work goes on."""

    workers: Callable[[int], list[psutil.Process]]
    every: int
    """How much has to be done between two."""
    most: int = KILLS
    done: int = 0
    due: int = 0

    def __call__(self, process_id: int, made: int) -> None:
        """Kill one if it is time to."""
        if self.done == self.most or made < self.due:
            return
        if found := self.workers(process_id):
            random.choice(found).kill()
            self.done += 1
            self.due = made + self.every


def loaded(processes: list[psutil.Process], name: str) -> list[psutil.Process]:
    """Return the processes of that name that hold a half."""
    found = []
    for each in processes:
        try:
            is_one = name in " ".join(each.cmdline())
            if is_one and each.memory_info().rss > LOADED_BYTES:
                found.append(each)
        except psutil.Error:
            continue
    return found


def actors(_process_id: int) -> list[psutil.Process]:
    """Return the actors of the Ray cluster that hold a half."""
    return loaded(psutil.Process().children(recursive=True), "ray::RayPost")


def children(process_id: int) -> list[psutil.Process]:
    """Return the worker processes of a run that hold a half."""
    try:
        return loaded(psutil.Process(process_id).children(recursive=True), "spawn_main")
    except psutil.Error:
        return []


@dataclass
class NodeLoss:
    """Takes a node away, without a word, when a third is done."""

    cluster: Any
    when: int
    done: int = 0

    def __call__(self, _process_id: int, made: int) -> None:
        """Take it away if it is time to, if possible one that holds a worker."""
        if self.done or made < self.when:
            return
        nodes = [each for each in self.cluster.list_all_nodes() if each != self.cluster.head_node]
        self.cluster.remove_node(max(nodes, key=_held_bytes), allow_graceful=False)
        self.done = 1


def _held_bytes(node: Any) -> int:
    raylets = [info.process.pid for info in node.all_processes["raylet"]]
    below = [each for pid in raylets for each in psutil.Process(pid).children(recursive=True)]
    return sum(each.memory_info().rss for each in below)


def faults(bench: Bench) -> None:
    """Run both stages by both engines with harm done to them, and hold the results together."""
    for stage in STAGES:
        bench.run(stage, bench.plain)
    every = max(1, bench.num_clips // (2 * KILLS))
    with cluster_of(NODES) as cluster:
        ray = ["--engine=ray", f"--address={cluster.address}", "--workers=2"]
        both(bench, "ray, workers killed", ray, lambda _: Kills(actors, every))

        def node_loss(stage: str) -> NodeLoss:
            if stage == "caption":  # the one that is gone since stage one
                cluster.add_node(**SMALL)
            return NodeLoss(cluster, bench.num_clips // 3)

        both(bench, "ray, a node lost", ray, node_loss)
    devices = ["--devices=cpu,cpu"]
    both(bench, "devices, workers killed", devices, lambda _: Kills(children, every))


def both(bench: Bench, name: str, options: list[str], harms: Callable[[str], Any]) -> None:
    """Run both stages, and hold that they made what one process makes."""
    cache = bench.folder / name
    for stage in STAGES:
        harm = harms(stage)
        tell(bench, name, stage, harm, bench.run(stage, cache, *options, harm=harm))
    bench.hold_same(cache)
    shutil.rmtree(cache)


def tell(bench: Bench, name: str, stage: str, harm: Any, seconds: float) -> None:
    """Print a line about a run."""
    done = harm.done if harm else 0
    again = bench.num_requeued()
    print(f"{name}: {stage}: {seconds:.0f} s, harm done {done} times, given out again {again}")
    sys.stdout.flush()


@contextmanager
def bench_of(about: str | None) -> Iterator[Bench]:
    """Parse what was given, and make the clips; what is started imports what lies here."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--clips", type=int, default=200)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the cluster ends, too
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        yield Bench(Path(temporary), given.clips)


if __name__ == "__main__":
    with bench_of(__doc__) as bench:
        faults(bench)
