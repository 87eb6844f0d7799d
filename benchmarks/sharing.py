"""Runs several extractors on one cache: each clip is encoded once, also if one of them dies.

    python -m benchmarks.sharing --clips 200

The extractors are forked from this process and decode in their own, as in `benchmarks.torture`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.torture import Torture, decode_here, extraction, hold, stage_one, stage_two
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.upkeep.verify import verify
from cogcache.settings.settings import load_settings
from cogcache.stages.runs.report import RunReport
from cogcache.store.claims import remove_dead_claims
from cogcache.store.store import FeatureStore

DECODE_S = 0.02
"""Added to each clip, so that the extractors take turns as with real videos."""


def slowly(task: Any, jobs: Any, **how: Any) -> Iterator[Any]:
    """Do what `map_unordered` does, in this process, and take some time for it."""
    for each in decode_here(task, jobs, **how):
        time.sleep(DECODE_S)
        yield each


def start(torture: Torture, number: int) -> int:
    """Fork a run of the stage that writes its counts to a file; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        report = work(torture)
        counts = torture.folder / f"counts-{number}.json"
        counts.write_text(json.dumps(asdict(report.counts)))
        status = 0
    finally:
        os._exit(status)


def work(torture: Torture) -> RunReport:
    """Do the stage once."""
    if torture.stage == "caption":
        stage_two.COMMIT_EVERY_S = 0.0
        return stage_two.caption(torture.cache, torture.settings)
    extraction.map_unordered = slowly
    return stage_one.extract([torture.folder / "videos"], torture.cache, torture.settings)


def made(torture: Torture) -> int:
    """Return how many clips or captions there are."""
    if torture.stage == "extract":
        return len(torture.files())
    with Catalog(torture.cache / "catalog.sqlite") as catalog:
        return len(catalog.captions.rows())


def share(torture: Torture, runs: int, clips: int, *, kill: bool) -> list[dict[str, int]]:
    """Run a stage several times at once, and kill one midway if so wished; return the counts."""
    shutil.rmtree(torture.cache, ignore_errors=True)
    if torture.stage == "caption":
        shutil.copytree(torture.folder / "fresh", torture.cache)
    pids = [start(torture, number) for number in range(runs)]
    if kill:
        while made(torture) < clips // 4:
            time.sleep(0.005)
        os.kill(pids[0], signal.SIGKILL)
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    hold(not any(ends[1:]) and bool(ends[0]) == kill, f"a run failed: {ends}")
    left = range(1 if kill else 0, runs)
    counts = [json.loads((torture.folder / f"counts-{n}.json").read_text()) for n in left]
    hold(made(torture) == clips, f"{made(torture)} of {clips} are made")
    hold(verify(torture.cache) == [], "the cache is not sound")
    FeatureStore.open(torture.cache).remove_unfinished()  # both as the next start does
    remove_dead_claims(torture.cache)
    hold(not torture.litter(), f"litter is left: {torture.litter()}")
    for each in counts:
        hold(each["done"] + each["cached"] == clips, f"one counts otherwise: {each}")
    if not kill:
        hold(sum(each["done"] for each in counts) == clips, f"some were made twice: {counts}")
    return counts


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--stage", choices=["extract", "caption"], default="extract")
    given = parser.parse_args()
    named = {"max_new_tokens": 2, "clips_per_batch": 4, "quantization": "none", "retry": False}
    settings = load_settings(None, {"frames_per_batch": 4, "max_frames": 2, **named})
    with tempfile.TemporaryDirectory() as temporary:
        first = Torture("extract", Path(temporary, "first"), settings)
        first.write_clips(2)
        first.extract()
        first.caption()
        torture = Torture(given.stage, Path(temporary, "second"), settings)
        torture.write_clips(given.clips)
        if given.stage == "caption":
            torture.cache.rename(torture.folder / "fresh")
        for runs, kill in ((2, False), (4, False), (2, True), (4, True)):
            began_s = time.monotonic()
            counts = share(torture, runs, given.clips, kill=kill)
            done = [each["done"] for each in counts]
            how = f"{runs} runs of {given.stage}{', one killed' if kill else ''}"
            print(f"{how}: made {done} in {time.monotonic() - began_s:.1f} s", flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
