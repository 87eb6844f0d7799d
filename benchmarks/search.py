"""Measures the speed of search in 10^4 to 10^6 generated captions.

    python -m benchmarks.search [--most 1000000] [--folder DIR]
    python -m benchmarks.search --vectors 1000000

Captions have 15 to 60 words drawn by Zipf's law from 30,000 made-up words. The queries are, in
equal parts: one word of any frequency, two and three words drawn as the captions' are (so that
most are common), phrases out of captions, beginnings of words, and a word within one folder.

With `--vectors` the vector index alone is timed, over random vectors of 384 dimensions.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.full_text import CaptionSearch
from cogcache.catalog.search.selection import Selection
from cogcache.catalog.search.semantic import NEAREST

NUM_WORDS = 30_000
BATCH = 10_000


class Language:
    """Made-up words, drawn by Zipf's law."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        spelling = np.random.default_rng(7)
        syllables = [
            c + v for c in "bdfghklmnprstvwz" for v in ("a", "e", "i", "o", "u", "an", "er")
        ]
        words: dict[str, None] = {}
        while len(words) < NUM_WORDS:
            length = 1 + int(spelling.integers(0, 2 + len(words) // 2000))
            words["".join(spelling.choice(syllables, min(length, 5)))] = None
        self.words = np.array([*words])
        shares = 1 / np.arange(3, NUM_WORDS + 3)
        self.shares = shares / shares.sum()

    def draw(self, count: int) -> list[str]:
        """Return words as they follow each other in captions."""
        return [str(word) for word in self.words[self.rng.choice(NUM_WORDS, count, p=self.shares)]]

    def captions(self, count: int) -> list[str]:
        """Return captions of 15 to 60 words."""
        lengths = self.rng.integers(15, 61, count)
        words = self.draw(int(lengths.sum()))
        ends = np.cumsum(lengths)
        return [" ".join(words[e - n : e]) for e, n in zip(ends, lengths, strict=True)]


def build_index(path: Path) -> None:
    """Index all captions at once, as the triggers would have done one by one."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO captions_fts (captions_fts) VALUES ('rebuild')")
        connection.execute("DELETE FROM captions_unspaced")
        connection.execute(
            "INSERT INTO captions_unspaced (rowid, caption)"
            " SELECT id, caption FROM captions_separated"
        )


def rows(captions: list[str], first: int) -> Iterator[dict[str, object]]:
    """Yield catalog rows for captions."""
    for number, caption in enumerate(captions, first):
        yield {
            "caption_key": f"{number:064x}",
            "feature_key": f"{number:064x}",
            "video": f"/films/{number // 1000:04}/{number:07}.mp4",
            "start_s": 0.0,
            "end_s": 10.0,
            "prompt_name": "default",
            "prompt": "Describe.",
            "caption": caption,
            "model": "made-up",
            "quantization": "nf4",
            "flags": [],
            "num_tokens": 50,
            "seconds": 1.0,
            "settings": {},
        }


def queries(
    language: Language, sample: list[str], each: int
) -> dict[str, list[tuple[str, Selection]]]:
    """Return queries by kind."""
    everything, rng = Selection(), language.rng
    texts = {
        "any word": [str(word) for word in rng.choice(language.words, each)],
        "two words": [" ".join(language.draw(2)) for _ in range(each)],
        "three words": [" ".join(language.draw(3)) for _ in range(each)],
        "phrase": ['"' + " ".join(str(rng.choice(sample)).split()[3:6]) + '"' for _ in range(each)],
        "beginning": [word[:4] + "*" for word in language.draw(4 * each) if len(word) > 4][:each],
    }
    found = {kind: [(text, everything) for text in some] for kind, some in texts.items()}
    found["in a folder"] = [
        (word, Selection(folders=(Path(f"/films/{int(rng.integers(0, 10)):04}"),)))
        for word in language.draw(each)
    ]
    return found


def measure(count: int, folder: Path, each: int) -> None:
    """Fill a catalog, build its index, search it, and print a line."""
    path, language = folder / f"{count}.sqlite", Language(1)
    with Catalog(path) as catalog:
        for first in range(0, count, BATCH):
            captions = language.captions(BATCH)
            began = time.perf_counter()
            catalog.captions.add(rows(captions, first))  # type: ignore[arg-type]
            if first == 0:
                added_s = time.perf_counter() - began
                # The index of the others is built at once.
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute("DROP TRIGGER captions_ai")
    began = time.perf_counter()
    build_index(path)
    built_s = time.perf_counter() - began
    times = search_all(path, queries(language, captions, each))
    line = [f"{count:,}", f"{path.stat().st_size / 2**20:,.0f}", f"{BATCH / added_s:,.0f}"]
    line += [f"{count / built_s:,.0f}"]
    everything = np.concatenate([*times.values()])
    line += [f"{np.quantile(everything, q) * 1e3:.1f}" for q in (0.5, 0.99, 1)]
    line += [f"{np.median(some) * 1e3:.1f}" for some in times.values()]
    print("| " + " | ".join(line) + " |", flush=True)
    path.unlink()


def search_all(path: Path, asked: dict[str, list[tuple[str, Selection]]]) -> dict[str, list[float]]:
    """Return the seconds of each query by kind, after one round to warm up."""
    times: dict[str, list[float]] = {kind: [] for kind in asked}
    with CaptionSearch(path) as search:
        for warm in (False, True):
            for kind, some in asked.items():
                for text, selection in some:
                    began = time.perf_counter()
                    search.search(text, selection)
                    if warm:
                        times[kind].append(time.perf_counter() - began)
    return times


def measure_vectors(count: int, each: int) -> None:
    """Fill a vector index as search by meaning does, and time its queries."""
    from usearch.index import Index

    rng, index = np.random.default_rng(0), Index(ndim=384, metric="cos", dtype="f16")
    began = time.perf_counter()
    for first in range(0, count, BATCH):
        vectors = rng.standard_normal((min(BATCH, count - first), 384), np.float32)
        index.add(np.arange(first, first + len(vectors), dtype=np.uint64), vectors)
    filled_s, times = time.perf_counter() - began, []
    for query in rng.standard_normal((each, 384), np.float32):
        began = time.perf_counter()
        index.search(query, NEAREST)
        times.append((time.perf_counter() - began) * 1e3)
    median, p99 = np.quantile(times, [0.5, 0.99])
    print(f"{count:,} vectors: {count / filled_s:,.0f}/s, median {median:.1f} ms, p99 {p99:.1f} ms")


def main() -> None:
    """Print the curve as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=50, help="of each kind")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--vectors", type=int, default=0)
    options = parser.parse_args()
    if options.vectors:
        measure_vectors(options.vectors, options.queries)
        return
    kinds = ["any word", "two words", "three words", "phrase", "beginning", "in a folder"]
    heads = ["captions", "MiB", "added/s", "indexed/s", "median ms", "p99 ms", "worst ms"]
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print("| " + " | ".join(heads + [f"{kind} ms" for kind in kinds]) + " |")
    print("|" + " --- |" * (len(heads) + len(kinds)), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for count in (10_000, 100_000, 300_000, 1_000_000):
            if count <= options.most:
                measure(count, Path(folder), options.queries)


if __name__ == "__main__":
    main()
