"""Simulates a thousand workers whose machines fail, as discrete events.

    python -m benchmarks.simulation
    python -m benchmarks.simulation --workers 2000 --mtbf-h 100 --hours 12

What is simulated is what the program does: a worker takes clips up to a batch under claims, seals
each feature file, and hands the rows on. Rows go to one catalog (one writer, as of an engine's
driver, that commits all that wait at once) or to a catalog on each machine, of which a copy is left
every few minutes. There is always more to do. A machine that fails loses the clips that its workers
have in hand, which somebody makes again, and with a catalog of its own the captions since the last
copy, which are made again from their features. Seconds of work a clip vary
by a log-normal distribution. All parameters are options; `docs/scale.md` says where their values
come from.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import simpy


@dataclass(frozen=True)
class Parameters:
    """What is assumed."""

    workers: int = 1000
    workers_per_node: int = 8
    hours: float = 6.0
    clips_per_batch: int = 8
    seconds_per_clip: float = 1.5
    """Mean, of both stages together."""
    spread: float = 0.5
    """Standard deviation of its logarithm."""
    caption_share: float = 0.5
    """Part of that which stage two takes: lost captions are made again from their features."""
    mtbf_h: float = 500.0
    """Mean hours between failures of one node."""
    repair_min: float = 20.0
    """Mean minutes until a node, or one in its place, works again, loading of weights included."""
    publish_s: float = 300.0
    commit_ms: float = 20.0
    """Time of a commit, however few rows."""
    row_us: float = 1150.0
    """Time of the rows of one clip within a commit: video, clip and caption."""
    own_catalogs: bool = False
    seed: int = 0


@dataclass
class Tally:
    """What happened."""

    made: int = 0
    lost_in_hand: int = 0
    lost_captions: int = 0
    failures: int = 0
    worked_s: float = 0.0
    wasted_s: float = 0.0
    away_s: float = 0.0
    busy_s: float = 0.0
    commits: int = 0
    waits: list[float] = field(default_factory=list)
    longest_queue: int = 0


class CatalogWriter:
    """One process that commits all that waits, again and again."""

    def __init__(self, env: simpy.Environment, given: Parameters, tally: Tally) -> None:
        self.env, self.given, self.tally = env, given, tally
        self.queue: deque[tuple[float, int]] = deque()
        self.waiting = 0
        self.wake = env.event()
        env.process(self.run())

    def add(self, clips: int) -> None:
        """Hand on the rows of some clips."""
        self.queue.append((self.env.now, clips))
        self.waiting += clips
        self.tally.longest_queue = max(self.tally.longest_queue, self.waiting)
        if not self.wake.triggered:
            self.wake.succeed()

    def run(self) -> Iterator[simpy.Event]:
        """Commit for ever."""
        while True:
            if not self.queue:
                self.wake = self.env.event()
                yield self.wake
            some = [*self.queue]
            self.queue.clear()
            clips, self.waiting = self.waiting, 0
            took_s = self.given.commit_ms / 1e3 + clips * self.given.row_us / 1e6
            yield self.env.timeout(took_s)
            self.tally.busy_s += took_s
            self.tally.commits += 1
            self.tally.waits += [self.env.now - at_s for at_s, _ in some]


class Node:
    """A machine with some workers, which fails as a whole."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.env, self.given = cluster, cluster.env, cluster.given
        self.rng = random.Random(cluster.rng.random())
        self.unpublished = 0
        self.workers: list[simpy.Process] = []
        self.env.process(self.live())
        if self.given.own_catalogs:
            self.env.process(self.publish())

    def live(self) -> Iterator[simpy.Event]:
        """Work, fail, be mended, for ever."""
        tally = self.cluster.tally
        while True:
            self.workers = [
                self.env.process(self.work()) for _ in range(self.given.workers_per_node)
            ]
            yield self.env.timeout(self.rng.expovariate(1 / (self.given.mtbf_h * 3600)))
            for worker in self.workers:
                worker.interrupt()
            tally.failures += 1
            tally.lost_captions += self.unpublished
            again_s = self.given.seconds_per_clip * self.given.caption_share
            tally.wasted_s += self.unpublished * again_s
            self.unpublished = 0
            away_s = self.rng.expovariate(1 / (self.given.repair_min * 60))
            within_s = min(away_s, self.given.hours * 3600 - self.env.now)
            tally.away_s += within_s * self.given.workers_per_node
            yield self.env.timeout(away_s)

    def publish(self) -> Iterator[simpy.Event]:
        """Leave copies of the node's own catalog."""
        yield self.env.timeout(self.rng.uniform(0, self.given.publish_s))
        while True:
            self.unpublished = 0
            yield self.env.timeout(self.given.publish_s)

    def work(self) -> Iterator[simpy.Event]:
        """Make batch after batch."""
        given, tally = self.given, self.cluster.tally
        mean = math.log(given.seconds_per_clip) - given.spread**2 / 2
        while True:
            took_s = sum(
                self.rng.lognormvariate(mean, given.spread) for _ in range(given.clips_per_batch)
            )
            began_s = self.env.now
            try:
                yield self.env.timeout(took_s)
            except simpy.Interrupt:
                tally.lost_in_hand += given.clips_per_batch
                tally.wasted_s += self.env.now - began_s
                return
            tally.worked_s += took_s
            tally.made += given.clips_per_batch
            if given.own_catalogs:
                self.unpublished += given.clips_per_batch
            else:
                self.cluster.catalog.add(given.clips_per_batch)


class Cluster:
    """All of it."""

    def __init__(self, given: Parameters) -> None:
        self.given, self.tally = given, Tally()
        self.env, self.rng = simpy.Environment(), random.Random(given.seed)
        self.catalog = CatalogWriter(self.env, given, self.tally)
        self.nodes = [Node(self) for _ in range(given.workers // given.workers_per_node)]

    def run(self) -> dict[str, Any]:
        """Simulate, and return what came of it."""
        given, tally = self.given, self.tally
        self.env.run(until=given.hours * 3600)
        capacity_s = len(self.nodes) * given.workers_per_node * given.hours * 3600
        once = tally.made - tally.lost_captions
        waits = sorted(tally.waits) or [0.0]
        ideal = capacity_s / given.seconds_per_clip
        return {
            "clips made and kept": once,
            "clips a second": round(once / given.hours / 3600, 1),
            "of what no failure would give": f"{once / ideal:.2%}",
            "failures of nodes": tally.failures,
            "clips lost in hand": tally.lost_in_hand,
            "captions lost since a copy": tally.lost_captions,
            "work lost": f"{tally.wasted_s / capacity_s:.3%}",
            "workers away": f"{tally.away_s / capacity_s:.2%}",
            "catalog at work": f"{tally.busy_s / given.hours / 3600:.1%}",
            "clips a commit": round(tally.made / tally.commits, 1) if tally.commits else None,
            "rows wait, median s": round(waits[len(waits) // 2], 3),
            "rows wait, p99 s": round(waits[int(len(waits) * 0.99) - 1], 3),
            "clips waiting at most": tally.longest_queue,
        }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, value in vars(Parameters()).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(value), default=value)
    given = Parameters(**vars(parser.parse_args()))
    print(given)
    for name, value in Cluster(given).run().items():
        print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
