"""Damages valid files and requests at random; each must give an error message or the same data.

Feature files, the bytes and the rows of catalogs, lines of an import, headers of checkpoints, and
requests to `cogcache serve`. Each round of changes runs in a process of bounded memory and time; a
crash, a hang, a traceback or other data ends the program with 1 and the seed of the round.

    python -m benchmarks.fuzz --minutes 10
    python -m benchmarks.fuzz --kinds requests --seed 17 --rounds 1
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from benchmarks.fuzz_requests import requests

MEMORY_BYTES = 2**30
ROUND_S = 300
KEY = "ab" * 32
ROW: dict[str, Any] = {
    "prompt_name": "p", "prompt": "?", "model": "m", "quantization": "none", "flags": [],
    "feature_key": KEY, "video": "/a.mp4", "start_s": 0.0, "end_s": None, "settings": {},
    "num_tokens": 3, "seconds": 0.1,
}  # fmt: skip
_MADE = "2026-01-01T00:00:00"
NEWER: dict[str, dict[str, Any]] = {
    "edits": {
        "uid": "e#", "caption_key": "#", "edited_key": KEY, "set_name": "reviewed",
        "action": "edit", "text": "a", "was": "b", "state": "accepted", "tags": "[]",
        "author": "me", "created_at": _MADE, "batch": "b#", "undoes": "",
    },
    "scores": {
        "name": "motion", "feature_key": KEY, "caption_key": "#", "score": 0.5, "model": "m",
        "prompt": "", "epoch": 1, "details": "{}", "created_at": _MADE,
    },
    "forgotten": {
        **ROW, "flags": "[]", "settings": "{}", "caption_key": "f#", "forgotten_at": _MADE,
        "caption": "a", "created_at": _MADE,
    },
    "cuts": {"feature_key": KEY[:-1] + "#", "cut": "whole"},
}  # fmt: skip
"""Rows of tables that the commands fill one by one; # is the number of the row."""
CHANGED = ("captions", "captions", "runs", "memory", *NEWER)
"""Tables whose cells are changed."""
ODD_VALUES = (
    None, "", b"", b"\xff\xfe", "\0", "x" * 2**17, -1, 2**63 - 1, -(2**63), 1.5, 9e999, -9e999,
    "{", "[]", "{}", '{"a": NaN}', "[" * 5000 + "]" * 5000, '["a", 7]', "../../etc/passwd", "1e400",
    "\u7403" * 2**17, '{"a": "\\ud800"}', "0000-00-00", "<script>", b"[]",
)  # fmt: skip


def changed(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with a few of them flipped, cut out, doubled or put in."""
    content = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not content:
            break
        at = chance.randrange(len(content))
        match chance.randrange(5):
            case 0 | 1:
                content[at : at + 1] = bytes([content[at] ^ 1 << chance.randrange(8)])
            case 2:
                content[at : at + 8] = chance.choice(
                    (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7)
                )
            case 3:
                del content[at : at + chance.randrange(64)]
            case _:
                content[at:at] = content[at : at + chance.randrange(64)]
    return bytes(content)


def features(folder: Path, chance: random.Random, changes: int) -> int:
    """Read changed feature files: what is read is what was written."""
    import torch

    from cogcache.errors import CogcacheError
    from cogcache.store import FeatureStore

    store = FeatureStore.create_or_open(folder / "cache")
    tensors = {"x": torch.arange(300_000).remainder(251), "y": torch.ones(3, 4)}
    packing = chance.choice(("none", "zstd", "blosc2"))
    store.write(KEY, tensors, {"family": "tiny", "more": {"a": [1]}}, b"jpeg", compression=packing)
    path = store.path_of(KEY)
    sound = path.read_bytes()
    for _ in range(changes):
        path.write_bytes(changed(sound, chance))
        with suppress(CogcacheError):
            store.prove(KEY)
            read = store.read(KEY)
            assert read.attributes == {"family": "tiny", "more": {"a": [1]}}
            assert all(torch.equal(read.tensors[name], tensors[name]) for name in tensors)
    return changes


def catalogs(folder: Path, chance: random.Random, changes: int) -> int:
    """Open changed catalogs where they lie, and as a merge takes them in: rows are as they were."""
    from cogcache.catalog import Catalog
    from cogcache.catalog.merge_rows import snapshot
    from cogcache.errors import CogcacheError

    path = folder / "catalog.sqlite"
    with Catalog(path) as catalog:
        catalog.captions.add(
            {**ROW, "caption_key": f"{n}", "caption": f"a ball {n}"} for n in range(40)
        )
    sound = path.read_bytes()
    for number in range(count := max(1, changes // 4)):
        copy = folder / f"copy-{number}.sqlite"
        copy.write_bytes(changed(sound, chance))
        with suppress(CogcacheError), snapshot(copy, Counter()) as taken:
            check_rows(taken)
        with suppress(CogcacheError):
            check_rows(copy)
        for part in folder.glob(f"{copy.name}*"):
            part.unlink()
    return count


def check_rows(path: Path) -> None:
    """List all that a catalog holds; captions are those that were written."""
    from cogcache.catalog import CaptionSearch, Catalog
    from cogcache.errors import CogcacheError

    with Catalog(path) as catalog:
        for row in catalog.captions.rows():
            assert row["caption"] == f"a ball {row['caption_key']}"
        for rows in (catalog.clips, catalog.runs, catalog.failures):
            rows.rows()
        catalog.captions.prompt_names()
        catalog.captions.made_in("m")
    with suppress(CogcacheError), CaptionSearch(path) as search:
        search.search("ball")


def rows(folder: Path, chance: random.Random, changes: int) -> int:
    """Write odd values to cells, with checksums that fit: what is shown is in order."""
    import sqlite3
    from contextlib import closing

    from cogcache.catalog import Catalog, CatalogFile
    from cogcache.catalog.values import COLUMNS
    from cogcache.errors import CogcacheError

    path = folder / "catalog.sqlite"
    with Catalog(path) as catalog:
        catalog.captions.add(
            {**ROW, "caption_key": f"{n}", "caption": f"a ball {n}"} for n in range(9)
        )
        catalog.runs.start("extract", "tiny", {})
        catalog.files.remember("reading a", {"a": 1})
    with closing(CatalogFile(path)) as file, file.transaction() as conn:
        for table, row in NEWER.items():
            names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
            for number in range(3):
                conn.execute(
                    f"INSERT INTO {table} ({names}) VALUES ({places})",
                    {name: value.replace("#", str(number)) if isinstance(value, str) else value
                     for name, value in row.items()},
                )  # fmt: skip
    sound = path.read_bytes()
    for number in range(count := max(1, changes // 4)):
        copy = folder / f"copy-{number}.sqlite"
        copy.write_bytes(sound)
        with closing(CatalogFile(copy)) as file, suppress(CogcacheError, sqlite3.Error):
            for _ in range(chance.choice((1, 1, 2, 5))):
                table = chance.choice(CHANGED)
                name = chance.choice([*COLUMNS[table]])
                sql = f"UPDATE {table} SET {name} = ? WHERE rowid = ?"
                with file.transaction() as conn:
                    conn.execute(sql, [chance.choice(ODD_VALUES), chance.randrange(1, 4)])
        # Elsewhere it is a stranger's: of one that this process wrote itself it knows all.
        check_shown(copy.rename(folder / f"moved-{number}.sqlite"))
        for part in folder.glob(f"*-{number}.sqlite*"):
            part.unlink()
    return count


def check_shown(path: Path) -> None:
    """List all that a catalog holds, as the commands do; odd rows are not among it."""
    from cogcache.catalog import CaptionSearch, Catalog, Selection, kept_captions
    from cogcache.catalog.earlier_versions import outdated
    from cogcache.errors import CogcacheError
    from cogcache.web.browse import Browser

    with suppress(CogcacheError), Catalog(path) as catalog:
        for row in catalog.captions.rows():
            assert isinstance(row["caption"], str)
            assert isinstance(row["settings"], dict)
            assert row["start_s"] >= 0
        for run in catalog.runs.rows():
            assert isinstance(run["report"], dict)
        catalog.captions.prompt_names()
        catalog.captions.made_in("m")
        catalog.files.recall("reading a")
        for edit in [*catalog.edits.all(), *catalog.edits.reviewed().values()]:
            assert isinstance(edit["tags"], list)
        for score in catalog.scores.rows():
            assert isinstance(score["score"], float)
        catalog.cuts.of([KEY])
    with suppress(CogcacheError):
        for kept in kept_captions(path, Selection()).captions:
            assert isinstance(kept["caption"], str)
    with suppress(CogcacheError):
        outdated(path)
    with suppress(CogcacheError), CaptionSearch(path) as search:
        search.search("ball")
    with suppress(CogcacheError), Browser(path) as browser:
        browser.clips()
        browser.sets()


def imports(folder: Path, chance: random.Random, changes: int) -> int:
    """Import changed lines."""
    from cogcache.errors import CogcacheError
    from cogcache.export.importing import import_captions

    line = b'{"caption": "a", "start_s": 0.5, "end_s": null, "video": "/a.mp4", "prompt": "?"}\n'
    file = folder / "lines.jsonl"
    for _ in range(changes):
        file.write_bytes(changed(line * 3, chance))
        with suppress(CogcacheError):
            import_captions(file, folder / "catalog.sqlite", "edited")
    return changes


def headers(folder: Path, chance: random.Random, changes: int) -> int:
    """Read changed configs, indexes and headers of the bundled checkpoint."""
    from cogcache.errors import CogcacheError
    from cogcache.models.checkpoints.checkpoint import Checkpoint

    model = folder / "model"
    shutil.copytree(Path(__file__).parents[1] / "cogcache" / "tiny", model)
    files = [path for path in sorted(model.iterdir()) if path.suffix in (".json", ".safetensors")]
    for _ in range(changes):
        path = chance.choice(files)
        sound = path.read_bytes()
        path.write_bytes(changed(sound[:4096], chance) + sound[4096:])
        with suppress(CogcacheError):
            checkpoint = Checkpoint.open(str(model))
            checkpoint.check_layers()
            checkpoint.tensors(checkpoint.weight_map.keys())
        path.write_bytes(sound)
    return changes


KINDS: dict[str, Callable[[Path, random.Random, int], int]] = {
    "features": features,
    "catalogs": catalogs,
    "rows": rows,
    "imports": imports,
    "headers": headers,
    "requests": requests,
}


def round_of(kind: str, seed: int, changes: int, counts: SimpleQueue[int]) -> None:
    """Do one round in this process, which is bounded first; put how many changes were tried."""
    import h5py
    import hdf5plugin
    import torch

    assert h5py
    assert hdf5plugin
    assert torch
    logging.disable(logging.CRITICAL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        counts.put(KINDS[kind](Path(folder), random.Random(f"{kind} {seed}"), changes))


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no round after them")
    parser.add_argument("--rounds", type=int, help="do so many instead")
    parser.add_argument("--changes", type=int, default=200, help="in a round")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    return parser.parse_args(arguments)


def main() -> int:
    """Do rounds until the time is over; return how the program ends."""
    options = options_of()
    ends_s, seed = time.monotonic() + 60 * options.minutes, options.seed
    context = multiprocessing.get_context("spawn")
    counts: SimpleQueue[int] = context.SimpleQueue()
    tried: Counter[str] = Counter()

    def is_over() -> bool:
        rounds = seed - options.seed
        return rounds >= options.rounds if options.rounds else time.monotonic() > ends_s

    while not is_over():
        for kind in options.kinds:
            worker = context.Process(target=round_of, args=(kind, seed, options.changes, counts))
            worker.start()
            worker.join(ROUND_S)
            if worker.is_alive():
                worker.kill()
                worker.join()
            if worker.exitcode != 0:
                print(f"{kind}, seed {seed}: ended with {worker.exitcode}", file=sys.stderr)
                return 1
            tried[kind] += counts.get()
        seed += 1
    told = ", ".join(f"{count} {kind}" for kind, count in tried.items())
    print(f"{seed - options.seed} rounds: changed {told}: nothing found")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
