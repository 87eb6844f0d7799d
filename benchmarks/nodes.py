"""Runs an array of jobs on machines with local disks and one shared folder; one machine dies.

    python -m benchmarks.nodes --clips 200 --tasks 4
    python -m benchmarks.nodes --clips 200 --claims

A machine is a set of name spaces of the kernel (mounts, processes, host name, network): it has a
host name, process numbers and a disk (tmpfs) of its own, no network, and shares one folder with
the others. The tasks are handed out as Slurm does it: the next one to the first machine that is
free, and that of a machine that died once more to another. Needs Linux, and root or user name
spaces.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.upkeep.merge import merge
from cogcache.catalog.upkeep.verify import verify
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.store.store import FeatureStore

SPACES = ["unshare", "--mount", "--uts", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
STAGE_ONE = ["--model=tiny", "--max-frames=2", "--frames-per-batch=8", "--decode-workers=1"]
# In bfloat16 a caption may round otherwise beside other clips than in one run over all of them.
STAGE_TWO = ["--quantization=none", "--max-new-tokens=8", "--compute-dtype=float32"]
TIMES = {"id", "run", "created_at", "seconds", "first_at", "last_at"}


def unshare() -> list[str]:
    """Return the command that makes a machine, or an empty list where the system allows none."""
    for extra in ([], ["--user", "--map-root-user"]):
        command = [SPACES[0], *extra, *SPACES[1:]]
        if shutil.which("unshare") and not subprocess.run(
            [*command, "sh", "-c", "hostname x && mount -t tmpfs none /mnt"],
            capture_output=True, check=False,
        ).returncode:  # fmt: skip
            return command
    return []


@dataclass
class Machine:
    """One machine; its disk is gone when it is."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    task: int = 0

    def start(self, task: int, command: list[str]) -> None:
        """Run a task; the disk is at ``folder/disk`` and empty."""
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        script = f'hostname {self.name} && mount -t tmpfs none {disk} && exec "$@"'
        log = (self.folder / f"{self.name}-{task}.log").open("wb")
        self.task = task
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*unshare(), "sh", "-c", script, "sh", sys.executable, "-m", "cogcache", *command],
            stdout=log, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip

    def pull_the_plug(self) -> None:
        """End all that runs on it at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass
class Cluster:
    """Machines that work through the tasks of one array."""

    folder: Path
    tasks: int
    num_clips: int
    claims: bool
    log: list[str] = field(default_factory=list)

    @property
    def shared(self) -> Path:
        """The cache that all machines see."""
        return self.folder / "shared"

    def command(self, task: int) -> list[str]:
        """Return what a task runs."""
        both = [str(self.folder / "videos"), f"--cache={self.shared}"]
        both += [f"--catalog={self.folder}/disk/catalog.sqlite", *STAGE_ONE]
        if self.claims:
            return ["extract", *both]
        return ["run", *both, *STAGE_TWO, f"--shard={task}/{self.tasks}"]

    def run(self) -> None:
        """Work through the array with two machines, one of which dies and is replaced."""
        waiting = list(range(1, self.tasks + 1))
        machines = [Machine(f"node{number}", self.folder) for number in (1, 2)]
        to_kill: Machine | None = machines[1]
        done: set[int] = set()
        while len(done) < self.tasks:
            for machine in machines:
                if machine.process is None and waiting:
                    machine.start(waiting[0], self.command(waiting.pop(0)))
                elif machine.process is not None and machine.process.poll() is not None:
                    said = (self.folder / f"{machine.name}-{machine.task}.log").read_text()
                    hold(machine.process.returncode == 0, said)
                    self.log.append(f"{machine.name}: task {machine.task}: {said.splitlines()[0]}")
                    done.add(machine.task)
                    machine.process = None
            if to_kill in machines and to_kill.process and self.num_made() >= self.num_clips // 4:
                to_kill.pull_the_plug()
                self.log.append(f"{to_kill.name} lost at {self.num_made()} clips")
                # With claims the other one takes its clips over; a share is to be given out again.
                waiting += [] if self.claims else [to_kill.task]
                done |= {to_kill.task} if self.claims else set()
                machines[1] = Machine("node3", self.folder)
                to_kill = None
            time.sleep(0.05)

    def num_made(self) -> int:
        """Return how many feature files there are."""
        return sum(1 for _ in self.shared.glob("features/??/*.h5"))


def hold(holds: bool, otherwise: str) -> None:
    """End the program unless ``holds``."""
    if not holds:
        sys.exit(otherwise)


def content(cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all rows, less what says when and by which run they were made."""
    with Catalog(cache / "catalog.sqlite") as catalog:
        tables = {"videos": catalog.files.videos(), "clips": catalog.clips.rows()}
        tables |= {"captions": catalog.captions.rows(), "failures": catalog.failures.rows()}
    return {
        name: sorted(({k: v for k, v in row.items() if k not in TIMES} for row in rows), key=repr)
        for name, rows in tables.items()
    }


def alone(folder: Path, stages: str) -> None:
    """Do all of the work in one run on one disk."""
    options = [*STAGE_ONE, *(STAGE_TWO if stages == "run" else ())]
    command = [stages, str(folder / "videos"), f"--cache={folder}/alone", *options]
    subprocess.run(
        [sys.executable, "-m", "cogcache", *command], check=True, stdout=subprocess.DEVNULL
    )


def main() -> None:
    """Parse, run, merge, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--claims", action="store_true", help="two extractors share by claims")
    given = parser.parse_args()
    hold(bool(unshare()), "the system allows no name spaces")
    with tempfile.TemporaryDirectory(prefix="cogcache-nodes-") as temporary:
        folder = Path(temporary)
        (folder / "videos").mkdir()
        for number in range(given.clips):
            clip = draw_scene(np.random.default_rng(number), 4)
            write_clip(clip, folder / f"videos/{number}.mp4")
        alone(folder, "extract" if given.claims else "run")
        began_s = time.monotonic()
        cluster = Cluster(folder, 2 if given.claims else given.tasks, given.clips, given.claims)
        cluster.run()
        for line in cluster.log:
            print(line)
        merged = merge([], cluster.shared)
        print(*merged.lines(), sep="\n")
        report(cluster, time.monotonic() - began_s)


def report(cluster: Cluster, seconds: float) -> None:
    """Compare with what one run made, and print the counts."""
    ours, theirs = content(cluster.shared), content(cluster.folder / "alone")
    for name, rows in theirs.items():
        hold(ours[name] == rows, f"the {name} differ from those of one run")
    stores = [FeatureStore.open(cluster.shared), FeatureStore.open(cluster.folder / "alone")]
    hold(stores[0].present() == stores[1].present(), "the feature files differ")
    different = [k for k in stores[0] if not same(*(store.path_of(k) for store in stores))]
    hold(not different, f"{len(different)} feature files differ")
    stores[0].remove_unfinished()
    hold(verify(cluster.shared) == [], "the cache is not sound")
    with Catalog(cluster.shared / "catalog.sqlite") as catalog:
        runs, clips = catalog.runs.rows(), catalog.clips.rows()
    made = Counter(row["run"] for row in clips)
    print(f"{len(runs)} runs; clips by the run that made them: {sorted(made.values())}")
    print(f"{len(ours['clips'])} clips and {len(ours['captions'])} captions in {seconds:.0f} s:")
    print("the same rows and, byte for byte, the same features as one run; verified")


def same(one: Path, other: Path) -> bool:
    """Say whether two files hold the same bytes."""
    return one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    main()
