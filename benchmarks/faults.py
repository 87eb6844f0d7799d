"""Makes the Nth system call of finishing a clip or caption fail, for every N, with strace.

    python -m benchmarks.faults
    python -m benchmarks.faults --every 10 --errors ENOSPC

A child opens a cache, seals features, puts their rows and captions into the catalog, and notes in
shared memory what it was told is done. `strace` is attached to it and lets one call fail, which is
then not carried out. Afterwards all that was said to be done has to be there and sound, and the
same work done again has to succeed and to leave no litter. Needs Linux, strace, and leave to trace.
"""

from __future__ import annotations

import argparse
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.recovery import rows_of
from cogcache.catalog.rows import CaptionRow, path_to_text
from cogcache.catalog.upkeep.verify import verify
from cogcache.errors import CogcacheError
from cogcache.keys import FeatureKey
from cogcache.store.store import FeatureStore

CALLS = (
    "openat", "close", "read", "pread64", "write", "pwrite64", "writev", "lseek", "fsync",
    "fdatasync", "ftruncate", "fallocate", "rename", "unlink", "mkdir", "newfstatat", "fstat",
    "statx", "getdents64", "fcntl", "flock", "readlink", "access", "fchmod", "fchown", "mmap",
)  # fmt: skip
"""What stands between a program and its files, as Linux names it on 64 bits."""
ERRORS = ("ENOSPC", "EIO", "EMFILE")
VIDEO = Path("/videos/a.mp4")
NUM_CLIPS = 2
STEPS = ("features", "clip", "captions")
BUG, GO = 9, 4095


def key_of(number: int) -> FeatureKey:
    """Return the key of a made-up clip."""
    return FeatureKey(
        video_digest=f"{number:064x}", start_s=0.0, end_s=None, sampling={}, preprocessing={},
        family="made-up", vision_digest="0" * 64, cache_point="projected", dtype="float32", epoch=1,
    )  # fmt: skip


def caption_row(key: str, number: int) -> CaptionRow:
    """Return a made-up caption of a clip."""
    return {
        "caption_key": f"{number}{key[1:]}", "feature_key": key, "video": path_to_text(VIDEO),
        "start_s": 0.0, "end_s": None, "prompt_name": "default", "prompt": "What is it?",
        "caption": "A fault.", "model": "made-up", "quantization": "none", "flags": [],
        "num_tokens": 3, "seconds": 0.5, "settings": {},
    }  # fmt: skip


def work(cache: Path, said: mmap.mmap) -> None:
    """Finish clips and captions as the stages do, and note each step that was done."""
    store = FeatureStore.create_or_open(cache)
    store.remove_unfinished()
    with Catalog(cache / "catalog.sqlite") as catalog:
        for number in range(NUM_CLIPS):
            key = key_of(number)
            facts = {
                "timestamps_s": [0.0], "frame_indices": [0], "fps": 1.0, "duration_s": 1.0,
                "total_num_frames": 1, "decoder": "pyav", "suspect": None,
                "video": path_to_text(VIDEO), "model": "made-up", "texts": {},
            }  # fmt: skip
            tensor = torch.full((2, 4), float(number))
            store.write(key.digest, {"features": tensor}, {**key.fields(), **facts})
            said[3 * number] = 1
            video, clip = rows_of(store, key.digest, 1000)
            catalog.files.add_videos([video])
            catalog.clips.add([clip])
            said[3 * number + 1] = 1
            catalog.captions.add([caption_row(key.digest, each) for each in range(2)])
            said[3 * number + 2] = 1


@dataclass
class Ran:
    """How a child ended."""

    said: list[str]
    """Steps that it was told are done."""
    status: int
    message: str


def run(cache: Path, trace: Path, *options: str) -> Ran:
    """Do the work in a child under strace."""
    said, told = mmap.mmap(-1, 4096), mmap.mmap(-1, 65536)
    pid = os.fork()
    if pid == 0:
        while not said[GO]:  # not a pipe: its reading would be a call like others
            time.sleep(0.001)
        os._exit(_child(cache, said, told))
    command = ["strace", "-f", "-qq", "-o", str(trace), "-p", str(pid), *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while f"TracerPid:\t{tracer.pid}" not in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None:
            os.kill(pid, 9)
            sys.exit(f"strace cannot be used: {tracer.communicate()[1]}")
        time.sleep(0.002)
    said[GO] = 1
    _, ended = os.waitpid(pid, 0)
    tracer.communicate()
    steps = [f"{STEPS[i % 3]} {i // 3}" for i in range(3 * NUM_CLIPS) if said[i]]
    text = told.read().rstrip(b"\0").decode(errors="replace")
    return Ran(steps, os.waitstatus_to_exitcode(ended), text)


def _child(cache: Path, said: mmap.mmap, told: mmap.mmap) -> int:
    try:
        work(cache, said)
    except CogcacheError as error:
        told.write(str(error).encode(errors="replace")[:60_000])
        return 2
    except OSError as error:
        told.write(f"{type(error).__name__}: {error}".encode(errors="replace")[:60_000])
        return 3
    except BaseException:  # noqa: BLE001 - told, and counted as a bug
        told.write(traceback.format_exc().encode(errors="replace")[:60_000])
        return BUG
    return 0


def calls_of(folder: Path) -> Counter[str]:
    """Return how often each call is made when none fails."""
    trace = folder / "calls"
    ran = run(folder / "cache", trace, "-e", f"trace={','.join(CALLS)}")
    hold(ran.status == 0, f"the work fails without a fault: {ran.message}")
    shutil.rmtree(folder / "cache")
    return Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))


def faults(calls: Counter[str], errors: list[str], every: int) -> Iterator[tuple[str, str, int]]:
    """Yield each fault: the call, its error, and the how-manieth of its kind."""
    each = [(c, error, n) for c in calls for n in range(1, calls[c] + 1) for error in errors]
    yield from each[::every]


def look(cache: Path, ran: Ran, fault: str) -> None:
    """Hold what a child was told is done against what is there."""
    for step in ran.said:
        kind, number = step.split()
        key = key_of(int(number)).digest
        if kind == "features":
            FeatureStore.open(cache).prove(key)
            continue
        with Catalog(cache / "catalog.sqlite") as catalog:
            there = catalog.clips.rows() if kind == "clip" else catalog.captions.rows()
        hold(any(row["feature_key"] == key for row in there), f"{fault}: {step} is lost")


def again(cache: Path, fault: str) -> None:
    """Do the work once more without a fault, and hold that all is there and nothing else."""
    work(cache, mmap.mmap(-1, 4096))
    hold(verify(cache) == [], f"{fault}: the cache is not sound: {verify(cache)}")
    with Catalog(cache / "catalog.sqlite") as catalog:
        counts = (
            len(FeatureStore.open(cache)),
            len(catalog.clips.rows()),
            len(catalog.captions.rows()),
        )
    hold(counts == (NUM_CLIPS, NUM_CLIPS, 2 * NUM_CLIPS), f"{fault}: there are {counts}")
    litter = [path for path in cache.rglob("*") if path.name.endswith(".partial")]
    hold(not litter, f"{fault}: litter is left: {litter}")


def hold(holds: bool, otherwise: str) -> None:
    """End the program unless ``holds``."""
    if not holds:
        sys.exit(otherwise)


def main() -> None:
    """Parse, go through all faults, print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--errors", nargs="*", default=list(ERRORS))
    parser.add_argument("--every", type=int, default=1, help="try only each so-manieth fault")
    parser.add_argument("--calls", nargs="*", default=list(CALLS), help="only these calls")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ends: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        work(folder / "warm", mmap.mmap(-1, 4096))  # what is imported on the way is so by now
        calls = calls_of(folder)
        calls = Counter({call: n for call, n in calls.items() if call in given.calls})
        todo = [*faults(calls, given.errors, given.every)]
        for call, error, number in tqdm(todo, unit="fault", disable=None):
            cache, fault = folder / "cache", f"{call} {number} {error}"
            shutil.rmtree(cache, ignore_errors=True)
            inject = f"inject={call}:error={error}:when={number}"
            ran = run(cache, folder / "trace", "-e", f"trace={call}", "-e", inject)
            hold(ran.status in (0, 2, 3), f"{fault}: ended with {ran.status}: {ran.message}")
            hold(ran.status == 0 or bool(ran.message), f"{fault}: ended without a word")
            look(cache, ran, fault)
            again(cache, fault)
            ends[ran.status] += 1
            if ran.status == 3:
                tqdm.write(f"{fault}: {ran.message}", file=sys.stderr)
    made = ", ".join(f"{call} {n}" for call, n in calls.most_common())
    print(f"{calls.total()} calls: {made}")
    print(
        f"{len(todo)} faults: nothing is lost; {ends[0]} passed unnoticed,"
        f" {ends[2]} ended with a message of ours, {ends[3]} with one of the system"
    )


if __name__ == "__main__":
    main()
