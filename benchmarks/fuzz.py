"""Changes sound files at random and reads them: a message or the same data, and nothing else.

Feature files, catalogs, lines of an import, headers of checkpoints. Each round of changes runs in a
process of bounded memory and time; a crash, a hang, a traceback or other data ends the program with
1 and the seed of the round.

    python -m benchmarks.fuzz --minutes 10
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MEMORY_BYTES = 2**30
ROUND_S = 120
CHANGES = 200
KEY = "ab" * 32


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


def features(folder: Path, chance: random.Random) -> None:
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
    for _ in range(CHANGES):
        path.write_bytes(changed(sound, chance))
        with suppress(CogcacheError):
            store.prove(KEY)
            read = store.read(KEY)
            assert read.attributes == {"family": "tiny", "more": {"a": [1]}}
            assert all(torch.equal(read.tensors[name], tensors[name]) for name in tensors)


def catalogs(folder: Path, chance: random.Random) -> None:
    """Take changed catalogs in: all that comes through can be listed."""
    from cogcache.catalog import Catalog
    from cogcache.catalog.foreign import cleansed
    from cogcache.errors import CogcacheError

    path = folder / "catalog.sqlite"
    row = {"prompt_name": "p", "prompt": "?", "model": "m", "quantization": "none", "flags": []}
    row |= {"feature_key": KEY, "video": "/a.mp4", "start_s": 0.0, "end_s": None, "settings": {}}
    row |= {"num_tokens": 3, "seconds": 0.1}
    with Catalog(path) as catalog:
        catalog.captions.add(
            {**row, "caption_key": f"{n}", "caption": f"a ball {n}"} for n in range(40)
        )
    sound = path.read_bytes()
    for number in range(CHANGES // 4):
        copy = folder / f"copy-{number}.sqlite"
        copy.write_bytes(changed(sound, chance))
        with suppress(CogcacheError):
            cleansed(copy)
            with Catalog(copy) as catalog:
                catalog.captions.rows()
        copy.unlink(missing_ok=True)


def imports(folder: Path, chance: random.Random) -> None:
    """Import changed lines."""
    from cogcache.errors import CogcacheError
    from cogcache.export.importing import import_captions

    line = b'{"caption": "a", "start_s": 0.5, "end_s": null, "video": "/a.mp4", "prompt": "?"}\n'
    file = folder / "lines.jsonl"
    for _ in range(CHANGES):
        file.write_bytes(changed(line * 3, chance))
        with suppress(CogcacheError):
            import_captions(file, folder / "catalog.sqlite", "edited")


def headers(folder: Path, chance: random.Random) -> None:
    """Read changed configs, indexes and headers of the bundled checkpoint."""
    from cogcache.errors import CogcacheError
    from cogcache.models.checkpoints.checkpoint import Checkpoint

    model = folder / "model"
    shutil.copytree(Path(__file__).parents[1] / "cogcache" / "tiny", model)
    files = [path for path in sorted(model.iterdir()) if path.suffix in (".json", ".safetensors")]
    for _ in range(CHANGES):
        path = chance.choice(files)
        sound = path.read_bytes()
        path.write_bytes(changed(sound[:4096], chance) + sound[4096:])
        with suppress(CogcacheError):
            checkpoint = Checkpoint.open(str(model))
            checkpoint.check_layers()
            checkpoint.tensors(checkpoint.weight_map.keys())
        path.write_bytes(sound)


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "features": features,
    "catalogs": catalogs,
    "imports": imports,
    "headers": headers,
}


def round_of(kind: str, seed: int) -> None:
    """Do one round in this process, which is bounded first."""
    import h5py
    import hdf5plugin
    import torch

    assert h5py
    assert hdf5plugin
    assert torch
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        KINDS[kind](Path(folder), random.Random(seed))


def main() -> int:
    """Do rounds until the time is over; return how the program ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ends_s, seed = time.monotonic() + 60 * options.minutes, options.seed
    context = multiprocessing.get_context("spawn")
    while time.monotonic() < ends_s or seed == options.seed:
        for kind in KINDS:
            worker = context.Process(target=round_of, args=(kind, seed))
            worker.start()
            worker.join(ROUND_S)
            if worker.is_alive():
                worker.kill()
            if worker.exitcode != 0:
                print(f"{kind}, seed {seed}: ended with {worker.exitcode}", file=sys.stderr)
                return 1
        seed += 1
    print(f"{(seed - options.seed) * len(KINDS)} rounds of {CHANGES} changes: nothing found")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
