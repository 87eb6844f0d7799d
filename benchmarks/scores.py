"""Measures how well scores find wrong captions, on made-up clips whose truth is known.

    python -m benchmarks.scores FOLDER                 # all of it
    python -m benchmarks.scores FOLDER --part clips    # motion and near-duplicates alone
    python -m benchmarks.scores FOLDER --part cost     # what scoring costs with a larger model

Captions: 300 clips of shapes, captioned with the truth; 60 captions are exchanged for another
clip's, 60 have one attribute changed. The AUC is the chance that a wrong caption scores lower than
a right one. Clips: 200, of which 30 stand still, 30 are re-encoded copies and 30 near copies.
Cost: the bundled model captions a clip in milliseconds, so that reading the clip is most of a
score; the random model of 50 M parameters shows the products themselves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.small import Bench
from cogcache.catalog.catalog import Catalog
from cogcache.export.importing import import_captions
from cogcache.selftest.shapes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    DIRECTIONS,
    QUESTIONS,
    SHAPES,
    SPEEDS,
    Scene,
    draw_scene,
    pictures_of,
    write_clip,
    write_pictures,
)
from cogcache.settings.settings import Settings, load_settings
from cogcache.stages.caption import caption
from cogcache.stages.captioning.language_half import LanguageHalf
from cogcache.stages.extract import extract
from cogcache.stages.score import Scored, ScoreRequest, score

PROMPT = QUESTIONS["detail"][0]
NUM_CLIPS, NUM_WRONG, NUM_OTHERS = 300, 60, 1
NUM_LARGE, NUM_TOKENS = 16, 64
"""Clips for the larger model, and tokens of their captions: random weights never end one."""
ROUNDS = 3
ATTRIBUTES = {
    "color": COLORS,
    "shape": SHAPES,
    "direction": DIRECTIONS,
    "speed": SPEEDS,
    "count": COUNTS,
    "background": BACKGROUNDS,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder for clips and caches")
    parser.add_argument("--part", choices=["captions", "clips", "cost"], help="only this part")
    options = parser.parse_args()
    print(f"processor level {torch.backends.cpu.get_cpu_capability()}")
    for part, measure in {"captions": of_captions, "clips": of_clips, "cost": of_cost}.items():
        if options.part in (part, None):
            print("\n".join(measure(options.folder / part)), flush=True)


# ---- captions ---------------------------------------------------------------------------------


def of_captions(folder: Path) -> list[str]:
    """Return what grounding and swap find, and what they cost beside making the captions."""
    scenes = made_scenes(folder / "videos", NUM_CLIPS)
    extract([str(folder / "videos")], folder / "cache", settings_of())
    rounds = [one_round(folder, number, scenes) for number in range(ROUNDS + 1)][1:]
    return [*table(folder / f"cache-{ROUNDS}", wrong_of(scenes)[1]), *costs(rounds, NUM_CLIPS)]


def costs(rounds: Sequence[Round], number: int) -> list[str]:
    """Return a line for each round over so many captions, and one of their ratios."""
    lines = [
        f"{number} captions made in {each.captioned_s:.2f} s, from kept video parts in"
        f" {each.again_s:.2f} s, scored in {each.scored_s:.2f} s of the processor"
        for each in rounds
    ]
    ratios = [each.scored_s / each.captioned_s for each in rounds]
    kept = [each.scored_s / each.again_s for each in rounds]
    return [
        *lines,
        f"scoring beside captioning: {statistics.median(ratios):.2f}"
        f" ({min(ratios):.2f} to {max(ratios):.2f}); beside captioning from kept video parts:"
        f" {statistics.median(kept):.2f} ({min(kept):.2f} to {max(kept):.2f})",
    ]


@dataclass
class Round:
    """Seconds of the processor, without those of loading the model."""

    captioned_s: float
    again_s: float
    scored_s: float


def one_round(folder: Path, number: int, scenes: dict[str, Scene]) -> Round:
    """Make the captions in a copy of the cache, and again from kept video parts; score claims."""
    cache, settings = folder / f"cache-{number}", settings_of(folder / f"prefixes-{number}")
    shutil.copytree(folder / "cache", cache)
    again = Path(shutil.copytree(folder / "cache", folder / f"again-{number}"))
    captioned_s = work_s(lambda: caption(cache, settings))
    again_s = work_s(lambda: caption(again, settings))
    write_set(folder / "claims.jsonl", cache, scenes)
    import_captions(folder / "claims.jsonl", cache / "catalog.sqlite", "claims")
    return Round(captioned_s, again_s, work_s(lambda: scored(cache, settings, "claims")))


def work_s(work: Callable[[], object]) -> float:
    """Return the processor's seconds of a run, without those of loading the language half.

    The first call of a process imports libraries, too.
    """
    loading: list[float] = []
    load = LanguageHalf.load

    def timed(half: LanguageHalf, row_tokens: int) -> object:
        started = time.process_time()
        try:
            return load(half, row_tokens)
        finally:
            loading.append(time.process_time() - started)

    LanguageHalf.load = timed  # type: ignore[method-assign, assignment]
    started = time.process_time()
    try:
        work()
    finally:
        LanguageHalf.load = load  # type: ignore[method-assign]
    return time.process_time() - started - sum(loading)


def settings_of(keep_prefix: Path | None = None) -> Settings:
    """Return the settings of all runs: the bundled model in bf16, one prompt."""
    given = {"model": "tiny", "quantization": "none", "device": "cpu", "decode_workers": 1}
    given |= {"keep_prefix": str(keep_prefix)} if keep_prefix else {}
    return load_settings(None, {**given, "prompts": {"detail": PROMPT}})


def scored(cache: Path, settings: Settings, name: str) -> Scored:
    """Score a set of captions with the model."""
    from cogcache.catalog import Selection

    request = ScoreRequest(("grounding", "swap"), Selection(models=(name,)), NUM_OTHERS)
    return score(cache, settings, request)


def made_scenes(folder: Path, number: int, seed: int = 11) -> dict[str, Scene]:
    """Write clips; return what each shows, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = {}
    for index in range(number):
        scene = draw_scene(np.random.default_rng(seed * 1000 + index))
        scenes[f"{index:04}.mp4"] = scene
        write_clip(scene, folder / f"{index:04}.mp4")
    return scenes


def wrong_of(scenes: dict[str, Scene]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the set says of each clip, and which of it is wrong, by the clip's name."""
    rng = np.random.default_rng(3)
    names = [str(name) for name in rng.permutation([*scenes])]
    exchanged, changed = names[:NUM_WRONG], names[NUM_WRONG : 2 * NUM_WRONG]
    texts = {name: scene.answer("detail") for name, scene in scenes.items()}
    for number, name in enumerate(exchanged):
        others = [*exchanged[number + 1 :], *exchanged[:number]]
        texts[name] = next(t for o in others if (t := scenes[o].answer("detail")) != texts[name])
    for name in changed:
        attribute = str(rng.choice([*ATTRIBUTES]))
        others = [
            each for each in ATTRIBUTES[attribute] if each != getattr(scenes[name], attribute)
        ]
        other = str(rng.choice(others))
        texts[name] = replace(scenes[name], **{attribute: other}).answer("detail")
    return texts, dict.fromkeys(exchanged, "exchanged") | dict.fromkeys(changed, "changed")


def write_set(path: Path, cache: Path, scenes: dict[str, Scene]) -> None:
    """Write a set of captions of which some are wrong."""
    texts = wrong_of(scenes)[0]
    with Catalog(cache / "catalog.sqlite") as catalog:
        clips = catalog.clips.rows()
    rows = [
        {"feature_key": clip["feature_key"], "prompt_name": "detail", "prompt": PROMPT,
         "caption": texts[Path(clip["video"]).name]}
        for clip in clips
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(cache: Path, wrong: dict[str, str]) -> list[str]:
    """Return the AUC of each score for each kind of wrong caption."""
    with Catalog(cache / "catalog.sqlite") as catalog:
        videos = {
            row["caption_key"]: Path(row["video"]).name
            for row in catalog.captions.rows(model="claims")
        }
        rows = catalog.scores.rows(names=["grounding", "swap"])
    lines = ["| score | exchanged | one attribute changed |", "| --- | --- | --- |"]
    for name in ("grounding", "swap"):
        values = {videos[r["caption_key"]]: r["score"] for r in rows if r["name"] == name}
        right = [value for video, value in values.items() if video not in wrong]
        found = [
            auc([v for video, v in values.items() if wrong.get(video) == kind], right)
            for kind in ("exchanged", "changed")
        ]
        lines.append(f"| `{name}` | {found[0]:.3f} | {found[1]:.3f} |")
    return lines


def auc(low: Sequence[float], high: Sequence[float]) -> float:
    """Return the chance that one of `low` is below one of `high`; ties count half."""
    difference = np.subtract.outer(np.array(high), np.array(low))
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


# ---- cost with a larger model -------------------------------------------------------------------


def of_cost(folder: Path) -> list[str]:
    """Return what scoring costs beside captioning where the model's products take the time."""
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, ROUNDS, NUM_LARGE)
    extract([*map(str, bench.videos)], folder / "cache", bench.settings())
    rounds = [_large_round(bench, number) for number in range(ROUNDS + 1)][1:]
    return costs(rounds, NUM_LARGE)


def _large_round(bench: Bench, number: int) -> Round:
    """Caption a copy of the cache, and once more from kept video parts; score what was said."""
    caches = [
        Path(shutil.copytree(bench.folder / "cache", bench.folder / f"{name}-{number}"))
        for name in ("cache", "again")
    ]
    settings = bench.settings(
        quantization="none", max_new_tokens=NUM_TOKENS,
        keep_prefix=str(bench.folder / f"prefixes-{number}"), prompts={"detail": PROMPT},
    )  # fmt: skip
    made_s, again_s = (work_s(lambda cache=cache: caption(cache, settings)) for cache in caches)
    request = ScoreRequest(("grounding", "swap"), others=NUM_OTHERS)
    return Round(made_s, again_s, work_s(lambda: score(caches[0], settings, request)))


# ---- clips ------------------------------------------------------------------------------------


def of_clips(folder: Path) -> list[str]:
    """Return the precision and recall of still clips and of copies."""
    videos = folder / "videos"
    truth = write_clips(videos)
    extract([str(videos)], folder / "cache", settings_of())
    started = time.perf_counter()
    score(folder / "cache", settings_of(), ScoreRequest(("clips",)))
    took_s = time.perf_counter() - started
    with Catalog(folder / "cache" / "catalog.sqlite") as catalog:
        names = {c["feature_key"]: Path(c["video"]).stem for c in catalog.clips.rows()}
        rows = catalog.scores.rows(names=["static", "duplicate"])
    still = {names[r["feature_key"]] for r in rows if r["name"] == "static" and r["score"]}
    twins = {
        frozenset((names[r["feature_key"]], names[str(r["details"]["of"])]))
        for r in rows
        if r["name"] == "duplicate" and r["score"]
    }
    copies = {frozenset(pair) for pair in truth["copy"]}
    near = {frozenset(pair) for pair in truth["near"]}
    return [
        "| what | found | right of these | of |",
        "| --- | --- | --- | --- |",
        _row("still", still, {name for (name,) in truth["still"]}),
        _row("re-encoded copies", twins - near, copies),
        _row("near copies", twins - copies, near),
        f"{len(names)} clips scored in {took_s:.1f} s",
    ]


def _row(name: str, found: set, true: set) -> str:  # type: ignore[type-arg]
    right = len(found & true)
    precision, recall = right / max(len(found), 1), right / len(true)
    return f"| {name} | {len(found)} | {right} ({precision:.2f}) | {len(true)} ({recall:.2f}) |"


def write_clips(folder: Path) -> dict[str, list[tuple[str, ...]]]:
    """Write 200 clips; return which stand still, and which pairs are copies or nearly so.

    A near copy begins two frames later, is a little brighter, and is compressed harder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth: dict[str, list[tuple[str, ...]]] = {"still": [], "copy": [], "near": []}
    for index in range(140):
        scene = draw_scene(np.random.default_rng(77_000 + index))
        name = f"clip{index:03}"
        if index < 30:
            scene = replace(scene, velocity=(0.0, 0.0))
            truth["still"].append((name,))
        shown = pictures_of(scene)
        write_pictures(shown, folder / f"{name}.mp4")
        if 30 <= index < 60:
            write_pictures(shown, folder / f"copy{index:03}.mp4", crf=30)
            truth["copy"].append((name, f"copy{index:03}"))
        if 60 <= index < 90:
            brighter = np.clip(shown[2:].astype(int) + 4, 0, 255).astype(np.uint8)
            write_pictures(brighter, folder / f"near{index:03}.mp4", crf=26)
            truth["near"].append((name, f"near{index:03}"))
    return truth


if __name__ == "__main__":
    main()
