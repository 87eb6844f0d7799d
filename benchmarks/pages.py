"""Measures how fast the web pages are with a generated catalog.

    python -m benchmarks.pages [--clips 100000] [--folder DIR]

Half as many videos as clips, two captions a clip of 30 to 90 words out of 57, one in a hundred
flagged, half of one prompt's accepted and one in a hundred of them edited, five scores a clip; 300
failures and 200 runs of 600 samples of memory. The words are few, so that most fit most captions:
the worst case of a search. A catalog that is in the folder already is used as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.rows import RunEnd
from cogcache.review.reviews import Reviews
from cogcache.store.store import FeatureStore
from cogcache.web.app import create_app
from cogcache.web.browse import Browser
from cogcache.web.editing import Editing

BATCH = 10_000
ROUNDS, CHANGES = 15, 5
TOKEN = "for the benchmark alone"
MODEL = "THUDM/cogvlm2-llama3-caption"
TEXT = """a red circle slowly crosses the white field man walks dog beach sun sky blue car street
rain people dance stage light green tree house river boat wind snow mountain camera pans left right
upward child plays ball garden flower kitchen cook plate table woman reads book window night city
over under while near behind"""
WORDS = TEXT.split()


def key(text: str) -> str:
    """Return 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def fill(path: Path, num_clips: int) -> None:
    """Generate a catalog."""
    rng = random.Random(0)
    with Catalog(path) as catalog:
        for first in range(0, num_clips, BATCH):
            numbers = range(first, min(num_clips, first + BATCH))
            catalog.files.add_videos([video(number // 2) for number in numbers if number % 2 == 0])
            catalog.clips.add([clip(number) for number in numbers])
            catalog.captions.add(
                [caption(n, name, rng) for n in numbers for name in ("default", "short")]
            )
        for number in range(300):
            reason = rng.choice(["no_video_stream", "decode_failed", "timeout"])
            catalog.failures.add(failure(number, reason))
        for number in range(200):
            add_run(catalog, ("extract", "caption")[number % 2], rng)
        reviews = Reviews(catalog, author="benchmark")
        keys = [key(f"caption {number} default") for number in range(0, num_clips, 2)]
        reviews.accept([*reviews.of_keys(keys).values()])
        edited = [*reviews.of_keys(keys[: num_clips // 100]).values()]
        reviews.rewrite({each.key: f"Edited: {each.text}" for each in edited}, edited)
        for first in range(0, num_clips, BATCH):
            numbers = range(first, min(num_clips, first + BATCH))
            catalog.scores.add([score for number in numbers for score in scores(number, rng)])


def video(number: int) -> Any:
    """Return a video of two clips."""
    return {
        "digest": key(f"video {number}"),
        "path": f"/films/{number % 50:02}/film-{number:06}.mp4",
        "duration_s": 48.0,
        "fps": 25.0,
        "width": 640,
        "height": 360,
        "total_num_frames": 1200,
        "codec": "h264",
        "size_bytes": 5_000_000,
    }


def place(number: int) -> dict[str, Any]:
    """Return which part of which video a clip is."""
    start_s, end_s = ((0.0, 24.0), (24.0, None))[number % 2]
    return {"video": video(number // 2)["path"], "start_s": start_s, "end_s": end_s}


def clip(number: int) -> Any:
    """Return a clip with settings as long as real ones."""
    return {
        **place(number),
        "feature_key": key(f"clip {number}"),
        "video_digest": key(f"video {number // 2}"),
        "family": "cogvlm2",
        "model": MODEL,
        "num_frames": 24,
        "size_bytes": 9_000_000,
        "decoder": "decord",
        "settings": {"text": "x" * 500},
    }


def caption(number: int, name: str, rng: random.Random) -> Any:
    """Return a caption."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(30, 90)))
    return {
        **place(number),
        "caption_key": key(f"caption {number} {name}"),
        "feature_key": key(f"clip {number}"),
        "prompt_name": name,
        "prompt": "Please describe this video in detail.",
        "caption": text,
        "model": MODEL,
        "quantization": "nf4",
        "flags": ["no_end"] if rng.random() < 0.01 else [],
        "num_tokens": len(text) // 4,
        "seconds": 2.0,
        "settings": {"text": "x" * 700},
    }


def scores(number: int, rng: random.Random) -> list[Any]:
    """Return scores of a clip and of one of its captions: 1 of 50 static, 1 of 20 a duplicate."""
    of_clip = {"feature_key": key(f"clip {number}"), "caption_key": ""}
    of_caption = {"feature_key": "", "caption_key": key(f"caption {number} default")}
    made = {"model": "", "prompt": "", "epoch": 1, "details": {}}
    is_twin = number % 20 == 19
    twin = {"details": {"of": key(f"clip {number // 100 * 100}")}} if is_twin else {}
    return [
        {**made, **of_clip, "name": "motion", "score": rng.random()},
        {**made, **of_clip, "name": "static", "score": float(number % 50 == 0)},
        {**made, **of_clip, "name": "black", "score": 0.0},
        {**made, **of_clip, "name": "duplicate", "score": 0.999 * is_twin, **twin},
        {**made, **of_caption, "name": "grounding", "score": rng.random(),
         "details": {"gain": 1.0, "least": [["red", -0.5, 0]]}},
    ]  # fmt: skip


def failure(number: int, reason: str) -> Any:
    """Return a failure."""
    return {
        "video": f"/films/bad-{number}.mp4",
        "start_s": 0.0,
        "end_s": None,
        "stage": "extract",
        "feature_key": None,
        "reason": reason,
        "message": "the file holds no picture",
    }


def add_run(catalog: Catalog, command: str, rng: random.Random) -> None:
    """Add a run with a full timeline."""
    sizes = {"file_bytes": 10**9, "device_bytes": 0, "reserved_bytes": 0}
    samples = [
        {"time_s": i / 2, "anonymous_bytes": rng.randrange(4 * 10**9, 5 * 10**9), **sizes}
        for i in range(600)
    ]
    report = {"timeline": samples, "total_s": 300.0, "bytes_by_shard": {"a": 10**9}}
    run = catalog.runs.start(command, MODEL, {})
    split = {"load": 3.0, "encode": 9.0}
    counts = {"done": 10, "failed": 0}
    catalog.runs.finish(run, RunEnd("done", split=split, counts=counts, report=report))


def measure(cache: Path, num_clips: int) -> None:
    """Print the time of each page and of its slowest query."""
    slowest: list[float] = []
    watch(Browser, "rows", slowest)
    watch(CatalogFile, "query", slowest)
    sets = [f"{name} · {MODEL} · nf4" for name in ("default", "short")]
    pages: dict[str, dict[str, Any]] = {
        "clips, first page": {"url": "/"},
        "clips, last page": {"url": "/", "params": {"page": 10**6}},
        "a prompt, in the middle": {"url": "/", "params": {"prompt": "default", "page": 1000}},
        "a prompt, last page": {"url": "/", "params": {"prompt": "short", "page": 10**6}},
        "a flag": {"url": "/", "params": {"flag": "no_end", "page": 30}},
        "search: a common word": {"url": "/", "params": {"q": "red", "part": "1"}},
        "search: three words": {"url": "/", "params": {"q": "red boat nig", "part": "1"}},
        "search: a phrase": {"url": "/", "params": {"q": '"red boat"', "part": "1"}},
        "search within a prompt": {"url": "/", "params": {"q": "red", "prompt": "short"}},
        "a clip": {"url": f"/clip/{key(f'clip {num_clips // 2}')}"},
        "differences": {"url": "/differences", "params": {"a": sets[0], "b": sets[1]}},
        "failures": {"url": "/failures"},
        "runs": {"url": "/runs"},
        "a run": {"url": "/runs/100"},
        "figures": {"url": "/figures"},
        "review, first": {"url": "/review"},
        "review, in the middle": {"url": "/review", "params": {"at": num_clips}},
        "review, not reviewed yet": {"url": "/review", "params": {"state": "unreviewed"}},
        "review, by words": {"url": "/review", "params": {"q": "red boat"}},
        "review, the lowest grounding": {"url": "/review", "params": {"sort": "grounding"}},
        "review, a least score": {"url": "/review", "params": {"min_score": "grounding=0.9"}},
        "odd clips: static": {"url": "/odd"},
        "odd clips: duplicates": {"url": "/odd", "params": {"kind": "duplicate", "page": 3}},
        "review, a prompt": {"url": "/review", "params": {"prompt": "short", "at": num_clips}},
    }
    print(
        "| page | first answer, ms | after a change, median ms | later, median ms"
        " | of the processor | slowest query, CPU ms | worst | counted after, s |"
    )
    print("| --- " * 8 + "|")
    app = create_app(cache, TOKEN, Editing(TOKEN, "benchmark"))
    admitted = {"authorization": f"Bearer {TOKEN}"}
    table: list[list[float]] = []
    with (
        TestClient(app, base_url="http://localhost", headers=admitted) as client,
        Catalog(cache / "catalog.sqlite") as catalog,
    ):
        changes = changed(catalog, num_clips)
        for name, request in pages.items():
            first_ms, counted_s = once(client, request), counted(client, request)
            changed_ms = [once(client, request) for _ in range(CHANGES) if next(changes)]
            counted(client, request)
            whole, used, queries = [], [], []
            for _ in range(ROUNDS):
                slowest.clear()
                began = time.process_time()
                whole.append(once(client, request))
                used.append((time.process_time() - began) * 1e3)
                queries.append(max(slowest) * 1e3)
            table.append([first_ms, *map(statistics.median, (changed_ms, whole, used, queries))])
            figures = " | ".join(f"{ms:.1f}" for ms in (*table[-1], max(queries), counted_s))
            print(f"| {name} | {figures} |", flush=True)
    for place, name in enumerate(("first", "after a change", "later")):
        values = [row[place] for row in table]
        print(f"{name}: median of pages {statistics.median(values):.1f}, most {max(values):.1f} ms")


def once(client: TestClient, request: Mapping[str, Any]) -> float:
    """Return the milliseconds of one answer."""
    started = time.perf_counter()
    answer = client.get(**request)
    took_ms = (time.perf_counter() - started) * 1e3
    assert answer.status_code == 200, answer.text
    return took_ms


def counted(client: TestClient, request: Mapping[str, Any]) -> float:
    """Return the seconds until a page no longer says that something is being counted."""
    started = time.perf_counter()
    while "being counted" in client.get(**request).text:
        time.sleep(0.05)
    return time.perf_counter() - started


def changed(catalog: Catalog, num_clips: int) -> Iterator[bool]:
    """Accept one caption after another; yield True after each."""
    reviews = Reviews(catalog, author="benchmark")
    for number in range(1, num_clips, 2):
        reviews.accept([*reviews.of_keys([key(f"caption {number} default")]).values()])
        yield True


def watch(kind: type, name: str, times: list[float]) -> None:
    """Note how long each call of a method keeps its core: others may be at work beside it."""
    method = getattr(kind, name)

    def timed(*args: Any, **given: Any) -> Any:
        started = time.thread_time()
        try:
            return method(*args, **given)
        finally:
            times.append(time.thread_time() - started)

    setattr(kind, name, timed)


def main() -> None:
    """Generate a catalog unless there is one, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.folder or Path(temporary) / "cache"
        FeatureStore.create_or_open(cache)
        if not (cache / "catalog.sqlite").exists():
            fill(cache / "catalog.sqlite", given.clips)
        measure(cache, given.clips)


if __name__ == "__main__":
    main()
