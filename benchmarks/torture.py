"""Kills a stage at random moments, again and again, and checks that no finished work is lost.

    python -m benchmarks.torture extract --kills 200

The stage runs in a child that is forked from this process, so that torch is imported once, and
decodes in its own process: what is under test is what it writes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.upkeep.verify import verify
from cogcache.errors import ClipError
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import Settings, load_settings
from cogcache.store.store import FeatureStore

# By name: as attributes of the package, these names are the functions.
stage_one, stage_two = (
    import_module("cogcache.stages.extract"),
    import_module("cogcache.stages.caption"),
)
extraction = import_module("cogcache.stages.encoding.local")
NUM_CLIPS = 24
State = dict[str, object]


def decode_here(task: Callable[[Any], Any], jobs: Iterable[Any], **how: Any) -> Iterator[Any]:
    """Do what `map_unordered` does, in this process."""
    how["initializer"]()
    for job in jobs:
        if job is None:  # none just now
            yield None
            continue
        try:
            yield job, task(job)
        except ClipError as error:
            yield job, error


@dataclass
class Torture:
    """One stage over one folder of clips."""

    stage: str
    folder: Path
    settings: Settings
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    kills: int = 0
    rounds: int = 0
    whole_s: float = 0.0
    """Seconds that a whole run took of late; kills fall within."""

    @property
    def cache(self) -> Path:
        """Where features and catalog are."""
        return self.folder / "cache"

    def write_clips(self, num_clips: int) -> None:
        """Write the videos, and for stage two their features."""
        videos = self.folder / "videos"
        videos.mkdir(parents=True, exist_ok=True)
        for number in range(num_clips):
            write_clip(draw_scene(np.random.default_rng(number), 4), videos / f"{number}.mp4")
        if self.stage == "caption":
            self.in_child(self.extract, None)

    def extract(self) -> None:
        """Run stage one, decoding in this process."""
        extraction.map_unordered = decode_here
        stage_one.extract([self.folder / "videos"], self.cache, self.settings)

    def caption(self) -> None:
        """Run stage two, committing after each batch."""
        stage_two.COMMIT_EVERY_S = 0.0
        stage_two.caption(self.cache, self.settings)

    def in_child(self, work: Callable[[], None], kill_after_s: float | None) -> bool:
        """Run ``work`` in a child; return whether it was killed before its end."""
        pid = os.fork()
        if pid == 0:
            tqdm.set_lock(threading.RLock())  # its own one is shared, and may have died held
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), 2)
            status = 1
            try:
                work()
                status = 0
            except Exception:  # noqa: BLE001 - shown, and the parent ends
                traceback.print_exc(file=sys.stdout)
                sys.stdout.flush()
            finally:
                os._exit(status)
        if kill_after_s is not None:
            end_s = time.monotonic() + kill_after_s
            while time.monotonic() < end_s:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    return self.ended(status)
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
        return self.ended(os.waitpid(pid, 0)[1])

    @staticmethod
    def ended(status: int) -> bool:
        """Say whether a child was killed; end the program if it failed."""
        if os.WIFSIGNALED(status):
            return True
        if os.WEXITSTATUS(status):
            sys.exit("the stage ended with an error")
        return False

    def state(self) -> State:
        """Return what the catalog acknowledges, with what would change if it were made anew."""
        if not (self.cache / "catalog.sqlite").exists():
            return {}
        store = FeatureStore.open(self.cache)
        with Catalog(self.cache / "catalog.sqlite") as catalog:
            if self.stage == "caption":
                return {
                    row["caption_key"]: (row["id"], row["run"], row["caption"])
                    for row in catalog.captions.rows()
                }
            keys = [row["feature_key"] for row in catalog.clips.rows()]
        for key in keys:
            store.prove(key)
        return {key: store.path_of(key).stat().st_ino for key in keys}

    def files(self) -> State:
        """Return the feature files that are there, listed or not."""
        return {str(path): path.stat().st_ino for path in self.cache.glob("features/??/*.h5")}

    def litter(self) -> list[Path]:
        """Return what runs have left that should be gone."""
        patterns = (".*.partial", "features/*/.*", "claims/*", "working/*.*")
        return [path for pattern in patterns for path in self.cache.glob(pattern)]

    def run(self, kills: int) -> None:
        """Kill the stage so many times, over as many caches as that takes."""
        work = {"extract": self.extract, "caption": self.caption}[self.stage]
        self.write_clips(NUM_CLIPS)
        fresh = self.folder / "fresh"
        if self.cache.exists():
            shutil.copytree(self.cache, fresh)
        started_s = time.monotonic()
        self.in_child(work, None)
        self.whole_s = time.monotonic() - started_s
        while self.kills < kills:
            shutil.rmtree(self.cache, ignore_errors=True)
            if fresh.exists():
                shutil.copytree(fresh, self.cache)
            self.round(work, kills)
            self.rounds += 1

    def round(self, work: Callable[[], None], kills: int) -> None:
        """Kill and start again until all is done, then look at what there is."""
        before, files = self.state(), self.files()
        while self.kills < kills:
            started_s = time.monotonic()
            if not self.in_child(work, self.rng.uniform(0.0, self.whole_s)):
                self.whole_s = time.monotonic() - started_s
                break
            self.kills += 1
            after, now = self.state(), self.files()
            hold(before.items() <= after.items(), "what was acknowledged is lost or made twice")
            hold(files.items() <= now.items(), "a finished feature file is lost or made twice")
            before, files = after, now
        self.in_child(work, None)
        after = self.state()
        hold(before.items() <= after.items(), "what was acknowledged is lost or made twice")
        hold(files.items() <= self.files().items(), "a feature file was made twice")
        hold(len(after) == NUM_CLIPS, f"{len(after)} of {NUM_CLIPS} are done at the end")
        hold(verify(self.cache) == [], "the cache is not sound")
        hold(not self.litter(), f"litter is left: {self.litter()}")


def hold(holds: bool, otherwise: str) -> None:
    """End the program unless ``holds``."""
    if not holds:
        sys.exit(otherwise)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["extract", "caption"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    named = {"max_new_tokens": 2, "clips_per_batch": 1, "quantization": "none"}
    settings = load_settings(None, {**named, "frames_per_batch": 1})
    with tempfile.TemporaryDirectory() as temporary:
        # What the stages import, they import here once, and not in each child.
        first = Torture("extract", Path(temporary, "first"), settings)
        first.write_clips(2)
        first.extract()
        first.caption()
        torture = Torture(given.stage, given.folder or Path(temporary, "second"), settings)
        torture.run(given.kills)
    print(f"{given.stage}: {torture.kills} kills over {torture.rounds} caches: nothing is lost")


if __name__ == "__main__":
    main()
