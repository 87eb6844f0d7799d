"""Kill each command that writes, type it again, and hold that the outcome is that of one run.

    python -m benchmarks.torture_commands --kills 50
    python -m benchmarks.torture_commands gc merge --kills 10

Half of the kills fall at random moments, the other half, where there is strace, at the first,
second, … call that writes. A command joins by a line in `COMMANDS`. The stages `extract` and
`caption` have `benchmarks.torture`, which forks them: it starts no interpreter for each kill.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.recovery import rows_of
from cogcache.catalog.rows import path_to_text
from cogcache.keys import FeatureKey
from cogcache.store.store import FeatureStore
from cogcache.video.file_state import file_digest

NUM_CLIPS = 6
WRITES = "write,pwrite64,rename,renameat,renameat2,unlink,unlinkat,mkdir,fsync,fdatasync"
_MADE_OF_OTHERS = {"catalog.sqlite", "catalog.sqlite-state", "catalog.backup.sqlite"}
"""Files whose bytes hold times; the catalog is compared by its rows."""
_ROWS = {
    "captions": "SELECT caption_key, video, caption, model FROM captions ORDER BY 1",
    "clips": "SELECT feature_key, video, size_bytes FROM clips ORDER BY 1",
    "failures": "SELECT video, reason FROM failures ORDER BY 1, 2",
}


@dataclass(frozen=True)
class Command:
    """A command that writes."""

    arguments: Callable[[Path], Sequence[str]]
    """What is typed, given the folder that it works in."""
    prepare: Callable[[Path], None] = lambda folder: None
    """Brings the folder into the state in which it is typed."""
    again: Sequence[str] = ()
    """What is typed besides, the second time: the target may be there."""


def _lose_videos(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.mp4").unlink()


def _edit_captions(folder: Path) -> None:
    lines = [f'{{"video": "{folder / f"{n}.mp4"}", "caption": "edited {n}"}}' for n in range(3)]
    (folder / "edited.jsonl").write_text("\n".join(lines))


def _damage_a_file(folder: Path) -> None:
    path = next((folder / "cache" / "features").glob("*/*.h5"))
    path.write_bytes(path.read_bytes()[:-10])


def _on(folder: Path) -> str:
    return f"--cache={folder / 'cache'}"


COMMANDS: dict[str, Command] = {
    "gc": Command(lambda f: ["gc", "--yes", _on(f)], _lose_videos),
    "merge": Command(lambda f: ["merge", f"{f / 'cache'}", f"--into={f / 'merged'}"]),
    "rebuild": Command(lambda f: ["rebuild", _on(f)]),
    "verify": Command(lambda f: ["verify", "--fix", _on(f)], _damage_a_file),
    "import": Command(
        lambda f: ["import", f"{f / 'edited.jsonl'}", _on(f), "--set=edited"], _edit_captions
    ),
    "export": Command(lambda f: ["export", f"{f / 'out.jsonl'}", _on(f), "--overwrite"]),
    "export a folder": Command(
        lambda f: ["export", f"{f / 'out'}", "--format=txt", _on(f), "--overwrite"]
    ),
    "export --features": Command(
        lambda f: ["export", f"{f / 'out.h5'}", "--features", _on(f), "--overwrite"]
    ),
    "convert": Command(lambda f: ["convert", _on(f), "--compression=blosc2"]),
    "gallery": Command(lambda f: ["gallery", f"{f / 'out.html'}", _on(f), "--force"]),
}
"""Every command that writes to a cache or makes files; later ones are added here."""


def write_cache(folder: Path) -> None:
    """Write a cache of made-up features, whose videos are a few bytes each."""
    store = FeatureStore.create_or_open(folder / "cache")
    with Catalog(folder / "cache" / "catalog.sqlite") as catalog:
        for number in range(NUM_CLIPS):
            video = folder / f"{number}.mp4"
            video.write_bytes(b"a video, for all that a catalog knows" * (number + 1))
            digest = file_digest(video)
            catalog.files.remember_digest(video, video.stat(), digest)
            key = _key(digest)
            tensor = torch.full((2, 4), float(number))
            facts = {"timestamps_s": [0.0, 1.0], "frame_indices": [0, 10], "fps": 10.0}
            facts |= {"duration_s": 2.0, "total_num_frames": 20, "decoder": "pyav"}
            facts |= {"suspect": None, "video": path_to_text(video), "model": "made-up"}
            store.write(key.digest, {"video": tensor}, {**key.fields(), **facts, "texts": {}})
            video_row, clip = rows_of(store, key.digest, video.stat().st_size)
            catalog.files.add_videos([video_row])
            catalog.clips.add([clip])
            catalog.captions.add([_caption(number, clip)])


def _key(video_digest: str) -> FeatureKey:
    return FeatureKey(
        video_digest=video_digest, start_s=0.0, end_s=None, sampling={}, preprocessing={},
        family="made-up", vision_digest="0" * 64, cache_point="projected", dtype="float32",
        epoch=1,
    )  # fmt: skip


def _caption(number: int, clip: object) -> dict[str, object]:
    names = ("feature_key", "video", "video_digest", "start_s", "end_s", "model")
    return {
        **{name: clip[name] for name in names},  # type: ignore[index]
        "caption_key": f"{number:064x}", "prompt_name": "default", "prompt": "What is it?",
        "caption": f"It is number {number}.", "quantization": "none", "flags": [],
        "num_tokens": 7, "seconds": 0.5, "settings": {},
    }  # fmt: skip


def tree(folder: Path) -> dict[str, str]:
    """Return what lies in a folder: the digests of files, and the rows of catalogs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in _MADE_OF_OTHERS - {"catalog.sqlite"}:
            continue
        if path.name == "catalog.sqlite":
            with closing(sqlite3.connect(path)) as conn:
                for table, sql in _ROWS.items():
                    rows = repr(conn.execute(sql).fetchall()).replace(str(folder), "")
                    found[f"{name}: {table}"] = rows
        elif "quarantine" in path.parts:  # each attempt keeps what it replaced
            found["quarantine"] = "something"
        elif path.suffix == ".sqlite-wal" or path.name.endswith(("-wal", "-shm")):
            continue  # SQLite's own; an idle one is empty
        else:
            content = path.read_bytes().replace(os.fsencode(folder), b"")
            found[name] = hashlib.sha256(content).hexdigest()
    return found


@dataclass
class Torture:
    """One command over copies of one folder."""

    name: str
    folder: Path
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    kills: int = 0

    def fresh(self) -> Path:
        """Return the folder that the command works in, as it is before it is typed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        write_cache(self.folder)
        COMMANDS[self.name].prepare(self.folder)
        return self.folder

    def typed(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start the command, with all its temporary files within reach."""
        arguments = [sys.executable, "-m", "cogcache", *COMMANDS[self.name].arguments(self.folder)]
        return subprocess.Popen(
            [*prefix, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, kills: int) -> None:
        """Kill the command so many times, each from the same beginning.

        Raises:
            AssertionError: what is there after the second time is not what one run leaves.
        """
        self.fresh()
        began_s = time.monotonic()
        status = self.typed().wait()
        whole_s = time.monotonic() - began_s
        expected = tree(self.folder)
        strace = shutil.which("strace")
        nth = 0
        while self.kills < kills:
            self.fresh()
            if strace and self.kills % 2:
                nth += 1
                how = f"signal=KILL:when={nth}"
                trace = (strace, "-f", "-qq", "-o", os.devnull, "-P", str(self.folder))
                inject = ("-e", f"trace={WRITES}", "-e", f"inject={WRITES}:{how}")
                self.typed(*trace[:-2], *inject).wait()
            else:
                process = self.typed()
                try:
                    process.wait(self.rng.uniform(0.2, 1.0) * whole_s)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
            self.kills += 1
            again = self.typed().wait()
            found = tree(self.folder)
            differing = sorted(found.items() ^ expected.items())
            assert not differing, f"{self.name}, kill {self.kills}: {differing[:4]}"
            assert again in (0, status), f"{self.name}: typed again it ends with {again}"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", default=[*COMMANDS])
    parser.add_argument("--kills", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.commands:
            torture = Torture(name, Path(temporary, "work"))
            torture.run(given.kills)
            print(f"{name}: {torture.kills} kills, nothing lost, nothing left", flush=True)


if __name__ == "__main__":
    main()
