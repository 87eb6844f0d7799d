"""Measures the scheduler's time for each clip, and the speed of two workers against one.

    python -m benchmarks.worker_speed --clips 400

Stage one with `tiny` on the CPU, where decoding is nearly all of the work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture import hold
from benchmarks.workers import Bench, bench_of, cluster_of
from cogcache.stages.distributed.jobs import JobQueue, Result
from cogcache.stages.distributed.process_workers import ProcessEngine
from cogcache.stages.distributed.ray_workers import RayEngine
from cogcache.stages.distributed.scheduler import Engine, Scheduler, WorkerSpec
from cogcache.system.signals import Stop

PARCEL_BYTES = 24 * 3 * 224 * 224 * 2
"""Of 24 frames for CogVLM2-Video, in bfloat16."""


@dataclass(frozen=True)
class Preparing:
    """A role that prepares nothing, and hands on a payload of the size of a clip's frames."""

    needs_process = True

    def start(self) -> Preparing:
        """Be ready."""
        return self

    def work(self, queue: JobQueue) -> Iterator[Result]:
        """Answer with a payload."""
        payload = bytes(PARCEL_BYTES)
        while item := queue.next(wait=True):
            yield Result(item.job_id, None, payload)

    def stats(self) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Do nothing."""


class Taking(Preparing):
    """A role that takes a payload, and answers at once."""

    def work(self, queue: JobQueue) -> Iterator[Result]:
        """Answer with the payload's size."""
        while item := queue.next(wait=True):
            yield Result(item.job_id, len(item.payload))


def overhead_s(engine: Engine, jobs: int = 300) -> float:
    """Return the seconds a clip takes on its way through two workers that do nothing."""
    with Scheduler(
        engine, [[WorkerSpec(Preparing())], [WorkerSpec(Taking(), room=4)]], Stop()
    ) as scheduler:
        hold(len([*scheduler.map(iter(range(10)))]) > 0, "nothing was done")
        began_s = time.perf_counter()
        done = sum(map(len, scheduler.map(iter(range(jobs)))))
        hold(done == jobs, "some jobs were lost")
        return (time.perf_counter() - began_s) / jobs


def rate_of(cache: Path) -> float:
    """Return clips a second, from when a fifth was sealed to the last: the start does not count."""
    times = sorted(path.stat().st_mtime for path in cache.glob("features/??/*.h5"))
    first = len(times) // 5
    return (len(times) - 1 - first) / (times[-1] - times[first])


def speed(bench: Bench) -> None:
    """Measure stage one by one and two workers, and what an engine takes for a clip."""
    rates: dict[str, float] = {}

    def measure(name: str, *options: str) -> None:
        cache = bench.folder / name.replace(" ", "-")
        took_s = bench.run("extract", cache, *options)
        rates[name] = rate_of(cache)
        print(f"{name}: {rates[name]:.1f} clips/s, {took_s:.1f} s in all", flush=True)

    measure("one process")
    measure("one device", "--devices=cpu")
    measure("two devices", "--devices=cpu,cpu")
    print(f"processes: {1e3 * overhead_s(ProcessEngine()):.1f} ms a clip", flush=True)
    with cluster_of(2) as cluster:
        ray = ("--engine=ray", f"--address={cluster.address}")
        measure("one worker on ray", *ray, "--workers=1")
        measure("two workers on ray", *ray, "--workers=2", "--decode-workers=1")
        print(f"ray: {1e3 * overhead_s(RayEngine(cluster.address)):.1f} ms a clip", flush=True)


if __name__ == "__main__":
    with bench_of(__doc__) as bench:
        speed(bench)
