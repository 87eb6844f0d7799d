"""Measures captioning from the cache side by side with other ways to caption."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.small import Bench
from benchmarks.timing import Clock, Line, in_turn, timed
from cogcache.catalog.catalog import Catalog
from cogcache.generation.decoder import Decoder
from cogcache.generation.kv_cache import Prefix
from cogcache.generation.prefix_files import KeptPrefixes
from cogcache.generation.requests import Finished, Request
from cogcache.models.halves.identity import identify
from cogcache.settings.stage_two import Generation
from cogcache.stages.caption import caption
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.tasks import list_captions
from cogcache.store.store import FeatureStore
from cogcache.video.reading import read_clip

COUNTS = (1, 2, 4, 8)
LENGTHS = (4, 16, 64)
"""Prompts a clip and new tokens of each, for the curve."""


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
    """What a further clip takes the caption stage, against its decoder fed from memory.

    The stage is run on two clips and on all, each time with prompts that are new: what a run takes
    once, such as loading, falls out of the difference, and is shown beside it.
    """
    language = bench.language("nf4")
    settings = bench.settings(quantization="nf4", max_new_tokens=32, clips_per_batch=8)
    further = bench.num_clips - 2
    ours, stage, fixed = [], [], []
    for repeat in range(bench.repeats + 1):
        seconds = []
        for videos in (bench.videos[:2], bench.videos):
            asked = {str(n): f"{text} {repeat}{len(videos)}" for n, text in enumerate(prompts(4))}
            run = settings.model_copy(update={"prompts": asked})
            seconds.append(timed(lambda run=run, v=videos: caption(bench.cache, run, videos=v)))
        ready = groups(bench, [f"{text} {repeat}9" for text in prompts(4)], 32)[2:]
        ours.append(timed(lambda ready=ready: drain(Decoder(language, bench.family, 8), ready)))
        stage.append(seconds[1] - seconds[0])
        fixed.append(seconds[0] - stage[-1] * 2 / further)
    name = f"{further} clips more, 4 prompts, 32 tokens, nf4: decoding alone, the caption stage"
    yield Line(name, ours[1:], stage[1:], "≤ 1.05")
    yield Line("what that stage takes once, loading included", [1.0], [median(fixed[1:])], "")


def sharing(bench: Bench) -> Iterator[Line]:
    """K prompts a clip with a shared prefix, against each with a prefill of its own."""
    language = bench.language()
    for new_tokens in LENGTHS:
        for number in COUNTS:
            [shared, *_] = groups(bench, prompts(number), new_tokens)
            alone = [[_of_its_own(request, index)] for index, request in enumerate(shared)]
            found = in_turn(
                bench.repeats,
                lambda shared=shared: drain(Decoder(language, bench.family, 16), [shared]),
                lambda alone=alone: drain(Decoder(language, bench.family, 16), alone),
            )
            bar = "≥ 4" if (number, new_tokens) == (8, 4) else ""
            name = f"{number} prompts a clip, {new_tokens} tokens each: shared, not shared"
            yield Line(name, *found, bar)


def _of_its_own(request: Request, index: int) -> Request:
    """Return the request as one about another clip, so that its video part is run for it alone."""
    return replace(request, clip=f"{request.clip}-{index}")


def keeping(bench: Bench) -> Iterator[Line]:
    """A new prompt whose video part was kept on the disk, against one that is prefilled."""
    asked = groups(bench, prompts(1), 16)[:1]
    for kind in ("none", "nf4"):
        language, folder = bench.language(kind), Path(tempfile.mkdtemp(dir=bench.folder))

        def ours(language: Any = language, folder: Path = folder) -> None:
            kept = KeptPrefixes(folder, {"benchmark": "keeping"})
            drain(Decoder(language, bench.family, 8, kept), asked)
            kept.wait()

        def theirs(language: Any = language) -> None:
            drain(Decoder(language, bench.family, 8), asked)

        ours()
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
        label = kind.replace("none", "bf16")
        name = f"a new prompt, 16 tokens, {label}: video part kept ({size:.0f} MB), prefilled"
        yield Line(name, *in_turn(bench.repeats, ours, theirs), "")


def keeping_large(bench: Bench) -> Iterator[Line]:
    """Read and write a video part of the flagship's size: 24 frames, 1,608 tokens, bf16."""
    layers = [tuple(torch.randn(2, 8, 1608, 128).bfloat16()) for _ in range(32)]
    prefix, folder = Prefix(layers), Path(tempfile.mkdtemp(dir=bench.folder))
    kept, number = KeptPrefixes(folder, {"benchmark": "large"}), iter(range(1000))

    def write() -> None:
        kept.keep(str(next(number)), "tokens", prefix)
        kept.wait()

    write()
    found = in_turn(bench.repeats, lambda: kept.read("0", "tokens"), write, time.perf_counter)
    yield Line("a kept video part of CogVLM2-Video's size, 211 MB: read, written", *found, "")


def batching(bench: Bench) -> Iterator[Line]:
    """Steps of 16 clips against steps of one, by new tokens a second; prefills are not counted."""
    for kind in ("none", "nf4"):
        language = bench.language(kind)
        clips = groups(bench, prompts(1), 33)
        asked = [[_of_its_own(clips[n % len(clips)][0], n)] for n in range(16)]
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(bench.repeats):
            together = Stepwise(language, bench.family, 16)
            alone = Stepwise(language, bench.family, 1)
            drain(together, asked)
            drain(alone, asked[:2])
            for into, found in zip(times, (together, alone), strict=True):
                into.append(1000 * found.step_s / found.statistics.row_steps)
        name = f"a token in a batch of 16 clips, against one by one, {kind.replace('none', 'bf16')}"
        yield Line(name, *times, "≥ 4", "ms")


def waste(bench: Bench) -> Iterator[Line]:
    """Rows that a step gives no token to: ours, and a batch that runs to its longest row's end."""
    language = bench.language()
    lengths = [4, 64, 8, 48, 16, 32, 12, 40] * 2
    requests = [group[0] for group in groups(bench, prompts(1), 1)]
    asked = [[_lasting(requests[n % len(requests)], n, length)] for n, length in enumerate(lengths)]
    decoder = drain(Decoder(language, bench.family, 8), asked)
    tokens = sum(lengths) - len(lengths)  # the prefill gives each its first
    batches = [lengths[first : first + 8] for first in range(0, len(lengths), 8)]
    padded = sum(len(batch) * (max(batch) - 1) for batch in batches)
    name = "rows over all steps, per token: ours, in batches that wait for their longest"
    ours = decoder.statistics.row_steps / tokens
    yield Line(name, [ours], [padded / tokens], "", "")


def _lasting(request: Request, index: int, new_tokens: int) -> Request:
    generation = request.generation.model_copy(update={"max_new_tokens": new_tokens})
    return replace(_of_its_own(request, index), generation=generation)


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
    from cogcache.models.checkpoints.checkpoint import Checkpoint
    from cogcache.models.registry import family_of
    from cogcache.settings.settings import load_settings
    from cogcache.stages.clips.worklist import Wanted

    settings = load_settings(None, {"prompts": {str(n): t for n, t in enumerate(prompts(8))}})
    family = family_of(Checkpoint.open("tiny"))
    FeatureStore.create_or_open(cache)
    with Catalog(cache / "catalog.sqlite") as catalog:
        vision, language = (
            identify(family, half, catalog.files) for half in ("vision", "language")
        )
        wanted = Wanted(settings, family, vision)
        keys = [wanted.key(f"{n:064x}", (0.0, None)) for n in range(count // 8)]
        videos = [f"/videos/{n:06}.mp4" for n in range(len(keys))]
        unknown = dict.fromkeys(
            ("duration_s", "fps", "width", "height", "total_num_frames", "codec")
        )
        catalog.files.add_videos(
            {"digest": key.video_digest, "path": video, "size_bytes": 1, **unknown}
            for key, video in zip(keys, videos, strict=True)
        )
        catalog.clips.add(
            {
                "feature_key": key.digest, "video_digest": key.video_digest, "video": video,
                "start_s": 0.0, "end_s": None, "family": family.name, "model": "tiny",
                "num_frames": 24, "size_bytes": 1, "decoder": "pyav", "settings": key.fields(),
            }
            for key, video in zip(keys, videos, strict=True)
        )  # fmt: skip
        tasks = list_captions(StageTwo(settings, family, language), catalog).missing
        assert len(tasks) == count
        catalog.captions.add(
            {
                "caption_key": task.key.digest, "feature_key": task.key.feature_key,
                "video": task.clip["video"], "start_s": 0.0, "end_s": None,
                "prompt_name": task.prompt_name, "prompt": task.prompt, "caption": "A shape.",
                "model": "tiny", "quantization": "nf4", "flags": [], "num_tokens": 3,
                "seconds": 0.1, "settings": task.key.fields(),
            }
            for task in tasks
        )  # fmt: skip
