"""What re-captioning costs from the cache, side by side with what it is compared with.

    python -m benchmarks.recaption [FIGURE ...] [--repeats 5] [--threads 2]

Each figure is a ratio of two ways measured in turn in one run, on a random model of 50 M
parameters with the flagship's proportions (`small`). Printed are the median and the extremes.
What computes is timed in processor seconds of one thread, so that a shared machine can measure it;
`--wall --threads 2` takes the clock on the wall instead. Files are always timed by the wall.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.small import Bench
from cogcache.caption import caption
from cogcache.captionlist import list_captions
from cogcache.catalog import Catalog
from cogcache.config import Generation
from cogcache.decoding import Decoder
from cogcache.extract import extract
from cogcache.generation import Finished, Request
from cogcache.models.identity import identify
from cogcache.store import FeatureStore
from cogcache.units import MIB
from cogcache.video import read_clip


@dataclass(frozen=True)
class Line:
    """One row of the table: the ratio of the second time to the first, for each repeat."""

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    bar: str
    unit: str = "s"

    def __str__(self) -> str:
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        times = f"{median(self.ours):.3g} {self.unit} | {median(self.theirs):.3g} {self.unit}"
        return f"| {self.name} | {times} | {median(ratios):.2f} | {spread} | {self.bar} |"


HEAD = "| figure | ours | against | ratio | over the repeats | bar |" + "\n|" + 6 * " --- |"


class Clock:
    """What computing is timed with."""

    now: Callable[[], float] = staticmethod(time.process_time)


def timed(work: Callable[[], object], now: Callable[[], float] | None = None) -> float:
    """Return the seconds that a piece of work takes."""
    now = now or Clock.now
    started = now()
    work()
    return now() - started


def in_turn(
    repeats: int,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    now: Callable[[], float] | None = None,
) -> tuple[list[float], list[float]]:
    """Time two ways in turn, so that what else the machine does falls on both."""
    found = [(timed(ours, now), timed(theirs, now)) for _ in range(repeats)]
    return [a for a, _ in found], [b for _, b in found]


def groups(bench: Bench, prompts: Sequence[str], new_tokens: int) -> list[list[Request]]:
    """Ask all prompts about all clips."""
    greedy = Generation(max_new_tokens=new_tokens, retry=False)
    return [
        [
            Request(bench.family.row(clip, prompt, "chat"), str(index), 0, greedy)
            for prompt in prompts
        ]
        for index, clip in enumerate(bench.features)
    ]


def drain(decoder: Decoder, requests: Sequence[Sequence[Request]]) -> Decoder:
    """Decode everything."""
    for _ in decoder.run(requests):
        pass
    return decoder


def prompts(count: int) -> list[str]:
    """Return questions of one length."""
    return [f"What happens in part {number:02} of it?" for number in range(count)]


class Stepwise(Decoder):
    """Counts the time of its steps apart from that of its prefills."""

    step_s = 0.0

    def _step(self) -> list[Finished]:
        started = Clock.now()
        finished = super()._step()
        self.step_s += Clock.now() - started
        return finished


def monolith(bench: Bench) -> Iterator[Line]:
    """8 new prompts on a cached clip, against the whole model from the video file, one by one."""
    language, model, family = bench.language(), bench.monolith, bench.family
    settings, video, store = bench.settings(), bench.videos[0], FeatureStore.open(bench.cache)
    [key, *_] = store
    clip = bench.features[0]

    def ours() -> None:
        store.read(key)
        drain(Decoder(language, family, 8), groups(bench, prompts(8), 16)[:1])

    def theirs() -> None:
        for prompt in prompts(8):
            frames = read_clip(video, settings.sampling, 0.0, None)
            inputs = family.prepare(frames, torch.bfloat16)
            arguments = family.model_inputs([family.row(clip, prompt, "chat")], model)
            del arguments["mm_encoder_outputs"]
            model.generate(
                **arguments, **inputs.tensors, max_new_tokens=16, min_new_tokens=16,
                do_sample=False, pad_token_id=family.pad_id,
            )  # fmt: skip

    drain(Decoder(language, family, 8), groups(bench, prompts(2), 2)[:1])
    name = "8 new prompts on a cached clip, 16 tokens each, against the whole model from the file"
    yield Line(name, *in_turn(bench.repeats, ours, theirs), "≥ 10")


def limit(bench: Bench) -> Iterator[Line]:
    """The caption stage behind loading, against its decoder fed from memory."""
    language, times = bench.language("nf4"), ([], [])
    loading = median(timed(lambda: bench.language("nf4")) for _ in range(bench.repeats))
    settings = bench.settings(quantization="nf4", max_new_tokens=32, clips_per_batch=8)
    for repeat in range(bench.repeats):
        asked = {str(n): f"{text} {repeat:03}" for n, text in enumerate(prompts(4))}
        ready = groups(bench, list(asked.values()), 32)
        times[0].append(timed(lambda ready=ready: drain(Decoder(language, bench.family, 8), ready)))
        stage = settings.model_copy(update={"prompts": asked})
        times[1].append(timed(lambda stage=stage: caption(bench.cache, stage)) - loading)
    name = "decoding from memory, against the caption stage less loading"
    yield Line(name, *times, "≤ 1.05")


def sharing(bench: Bench) -> Iterator[Line]:
    """K prompts a clip with a shared prefix, against each with a prefill of its own."""
    language = bench.language()
    for count, new_tokens in ((2, 4), (4, 4), (8, 4), (8, 64)):
        [shared, *_] = groups(bench, prompts(count), new_tokens)
        alone = [[request] for request in shared]
        found = in_turn(
            bench.repeats,
            lambda shared=shared: drain(Decoder(language, bench.family, 16), [shared]),
            lambda alone=alone: drain(Decoder(language, bench.family, 16), alone),
        )
        bar = "≥ 4" if (count, new_tokens) == (8, 4) else ""
        yield Line(
            f"{count} prompts a clip, {new_tokens} tokens each: shared, not shared", *found, bar
        )


def batching(bench: Bench) -> Iterator[Line]:
    """Steps of 16 rows against steps of one, by new tokens a second; prefills are not counted."""
    for kind in ("none", "nf4"):
        language = bench.language(kind)
        [asked, *_] = groups(bench, prompts(16), 33)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(bench.repeats):
            together = Stepwise(language, bench.family, 16)
            alone = Stepwise(language, bench.family, 1)
            drain(together, [asked])
            drain(alone, [asked[:2]])
            for into, found in zip(times, (together, alone), strict=True):
                into.append(1000 * found.step_s / found.statistics.row_steps)
        name = f"a token in a batch of 16 rows, against one by one, {kind.replace('none', 'bf16')}"
        yield Line(name, *times, "≥ 4", "ms")


def sealing(bench: Bench) -> Iterator[Line]:
    """Sealing and reading a feature file, against numpy's save with fsync, and load."""
    tensors = {"features": torch.randn(24, 66, 4096).bfloat16()}
    plain = tensors["features"].view(torch.uint16).numpy()
    store = FeatureStore.create_or_open(bench.folder / "sealing")
    path, count = bench.folder / "plain.npy", iter(range(10_000))

    def save() -> None:
        with path.open("wb") as file:
            np.save(file, plain)
            file.flush()
            os.fsync(file.fileno())

    def seal() -> None:
        store.write(f"{next(count):064x}", tensors, {"texts": {}}, compression="none")

    repeats = 3 * bench.repeats
    theirs, ours = in_turn(repeats, save, seal, time.perf_counter)
    yield Line("sealing 13 MB: speed against numpy.save and fsync", ours, theirs, "≥ 0.6")
    theirs, ours = in_turn(
        repeats, lambda: np.load(path).sum(), lambda: read_whole(store), time.perf_counter
    )
    yield Line("reading 13 MB: speed against numpy.load", ours, theirs, "≥ 0.5")


def read_whole(store: FeatureStore) -> None:
    """Read the first feature file and touch all of it, as numpy's sum does."""
    store.read(f"{0:064x}").tensors["features"].view(torch.uint16).numpy().sum()


def size(bench: Bench) -> Iterator[Line]:
    """Bytes of feature files against raw bf16 of the projected features, and how fast."""
    for model, videos in ((bench.model, bench.videos), ("tiny", bench.videos)):
        raw: dict[str, int] = {}
        for point in ("projected", "pooled"):
            cache = bench.folder / f"size-{Path(model).name}-{point}"
            extract(videos, cache, bench.settings(model=model, cache_point=point))
            store = FeatureStore.open(cache)
            stored = [store.read(key).tensors for key in store]
            raw[point] = sum(each["features"].nbytes for each in stored)
            for codec in ("none", "zstd", "blosc2"):
                yield _coded(bench, stored, codec, raw, f"{Path(model).name}, {point}")


def _coded(bench: Bench, stored: list, codec: str, raw: dict[str, int], name: str) -> Line:
    store = FeatureStore.create_or_open(bench.folder / f"codec-{time.monotonic_ns()}")
    sizes: list[int] = []

    def write() -> None:
        first = len(sizes)
        for index, tensors in enumerate(stored):
            sizes.append(
                store.write(f"{first + index:064x}", tensors, {"texts": {}}, compression=codec)
            )

    writing = [timed(write, time.perf_counter) for _ in range(bench.repeats)]
    reading = [timed(lambda: [store.read(k) for k in [*store][: len(stored)]]) for _ in writing]
    own = sum(each["features"].nbytes for each in stored)
    speeds = f"{own / median(writing) / MIB:.0f} and {own / median(reading) / MIB:.0f} MiB/s"
    disk = [float(sum(sizes[: len(stored)]))] * 2
    label = f"{name}, {codec}, written and read at {speeds}: bytes against raw projected"
    bar = "≤ 0.75" if name.endswith("projected") else "≤ 0.33"
    return Line(label, [raw["projected"] / 1e6] * 2, [each / 1e6 for each in disk], bar, "MB")


def nothing_to_do(bench: Bench) -> Iterator[Line]:
    """`cogcache caption` as a process when all is there, over 1,000 to 100,000 captions."""
    for count in (1_000, 10_000, 100_000):
        cache = bench.folder / f"full-{count}"
        _fill(cache, count)
        command = [sys.executable, "-m", "cogcache", "caption", "--model", "tiny"]
        command += [f"--prompt={n}={text}" for n, text in enumerate(prompts(8))]

        def run(command: list[str] = command, cache: Path = cache, count: int = count) -> None:
            output = subprocess.check_output([*command, f"--cache={cache}"], text=True)
            assert f"{count} there already" in output, output

        run()
        times = [timed(run, time.perf_counter) for _ in range(bench.repeats)]
        yield Line(
            f"caption with {count:,} captions there: seconds", [1.0] * len(times), times, "≤ 5"
        )


def _fill(cache: Path, count: int) -> None:
    """Make a cache of so many captions of as many clips, eight prompts each."""
    from cogcache.checkpoint import Checkpoint
    from cogcache.config import load_settings
    from cogcache.models.registry import family_of
    from cogcache.worklist import Wanted

    settings = load_settings(None, {"prompts": {str(n): t for n, t in enumerate(prompts(8))}})
    family = family_of(Checkpoint.open("tiny"))
    FeatureStore.create_or_open(cache)
    with Catalog(cache / "catalog.sqlite") as catalog:
        vision, language = (identify(family, half, catalog) for half in ("vision", "language"))
        wanted = Wanted(settings, family, vision)
        keys = [wanted.key(f"{n:064x}", (0.0, None)) for n in range(count // 8)]
        videos = [f"/videos/{n:06}.mp4" for n in range(len(keys))]
        unknown = dict.fromkeys(
            ("duration_s", "fps", "width", "height", "total_num_frames", "codec")
        )
        catalog.add_videos(
            {"digest": key.video_digest, "path": video, "size_bytes": 1, **unknown}
            for key, video in zip(keys, videos, strict=True)
        )
        catalog.add_clips(
            {
                "feature_key": key.digest, "video_digest": key.video_digest, "video": video,
                "start_s": 0.0, "end_s": None, "family": family.name, "model": "tiny",
                "num_frames": 24, "size_bytes": 1, "decoder": "pyav", "settings": key.fields(),
            }
            for key, video in zip(keys, videos, strict=True)
        )  # fmt: skip
        tasks = list_captions(settings, family, language, catalog).missing
        assert len(tasks) == count
        catalog.add_captions(
            {
                "caption_key": task.key.digest, "feature_key": task.key.feature_key,
                "video": task.clip["video"], "start_s": 0.0, "end_s": None,
                "prompt_name": task.prompt_name, "prompt": task.prompt, "caption": "A shape.",
                "model": "tiny", "quantization": "nf4", "flags": [], "num_tokens": 3,
                "seconds": 0.1, "settings": task.key.fields(),
            }
            for task in tasks
        )  # fmt: skip


FIGURES = (monolith, limit, sharing, batching, sealing, size, nothing_to_do)


def main() -> None:
    """Measure what is asked for and print the table."""
    names = [figure.__name__ for figure in FIGURES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", choices=[*names, []], metavar="FIGURE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="time computing by the wall, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.wall:
        Clock.now = staticmethod(time.perf_counter)
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.repeats)
        for figure in FIGURES:
            if not options.figures or figure.__name__ in options.figures:
                for line in figure(bench):
                    print(line, flush=True)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
