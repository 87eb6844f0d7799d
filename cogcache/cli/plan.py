"""`plan`: what each stage will take, before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.numbers import Real, Whole
from cogcache.cli.options import settings_options
from cogcache.cli.printing import json_option
from cogcache.settings import Sampling, Settings
from cogcache.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from cogcache.planning import (
        Job,
        LanguageChoice,
        Plan,
        PlannedDisk,
        PlannedHalf,
        PlannedHours,
        PlannedMemory,
        TrainingPlan,
        VisionChoice,
    )

PLANNED = (
    *("model", "sampling", "clips", "vision", "language", "inference", "generation"),
    *("training", "distillation"),
)


class SizeType(click.ParamType[tuple[int, int]]):
    """`1280x720`: width and height, in pixels."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return width and height."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(value))
        if match is None:
            self.fail(f"{value!r} is not WIDTHxHEIGHT: write it like 1280x720", param, ctx)
        return int(match[1]), int(match[2])


USUAL_FPS = 25.0
"""Of videos of which nothing is known; published ways to take frames hardly depend on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says of the clips; None where it does not."""

    size: tuple[int, int] | None
    duration_s: float | None
    frames: int | None
    prompts: int
    clips: int | None


@click.command()
@click.argument("videos", nargs=-1, type=str)
@click.option("--size", type=SizeType(), metavar="WIDTHxHEIGHT", help="Of the videos' frames.")
@click.option("--duration", "duration_s", type=Real(0.1), metavar="SECONDS", help="Of a clip.")
@click.option("--frames", type=Whole(1), help="Frames of a clip, in place of --duration.")
@click.option("--prompts", type=Whole(1), default=1, show_default=True, help="Of each clip.")
@click.option("--clips", type=Whole(1), help="Clips to plan disk and time for.")
@click.option("--train", is_flag=True, help="Plan `cogcache train` too.")
@click.option("--measure", is_flag=True, help="Run two made-up clips through both stages here.")
@json_option
@settings_options(*PLANNED, without=["profile"])
def plan(
    videos: tuple[str, ...],
    train: bool,
    measure: bool,
    json_: bool,
    settings: Settings,
    **asked: Any,
) -> None:
    """Say what each stage will take: memory, disk and time, from headers and config alone.

    No weights are loaded; for a hub id, only small files and headers are fetched. If you name
    VIDEOS (files or folders), size, length and number of clips are taken from them.
    """
    from cogcache.planning import look_at, make_plan

    clips = Asked(**asked)
    seen = look_at(videos, settings.clips) if videos else None
    if seen:
        clips = replace(
            clips,
            size=clips.size or seen.size,
            duration_s=clips.duration_s or seen.duration_s,
            clips=clips.clips or seen.clips,
        )
    job = _job(clips, settings, seen.fps if seen else USUAL_FPS)
    made = make_plan(settings, job)
    if seen:
        made = replace(made, videos=seen.words())
    if measure:
        hours = _measured(settings, job, clips.duration_s or float(job.frames))
        made = replace(made, hours=hours)
    if train:
        made = replace(made, training=_training(settings, made.clip.row_tokens))
    click.echo(json.dumps(made.as_dict(), indent=2) if json_ else "\n".join(_lines(made)))


def _job(asked: Asked, settings: Settings, fps: float) -> Job:
    from cogcache.planning import Job, published_count

    if settings.sampling.strategy == "published":
        frames = asked.frames or published_count(settings, asked.duration_s, fps)
    else:
        frames = asked.frames or frames_of(asked.duration_s, settings.sampling)
    job = Job(frames=frames, prompts=asked.prompts)
    return replace(job, size=asked.size or job.size, clips=asked.clips or job.clips)


def frames_of(duration_s: float | None, sampling: Sampling) -> int:
    """Return how many frames are taken of a clip; without a length, as many as there may be."""
    if duration_s is None or sampling.strategy == "uniform":
        return sampling.max_frames
    return min(round(duration_s * (sampling.fps or 1.0)) + 1, sampling.max_frames)


def _measured(settings: Settings, job: Job, duration_s: float) -> PlannedHours:
    from cogcache.planning import measured_hours
    from cogcache.selftest import NUM_CLIPS, measure

    width, height = job.size
    source = f"measured here just now, on {NUM_CLIPS} made-up clips of {width}x{height}"
    return measured_hours(measure(settings, job.size, duration_s), job.clips, source)


def _training(settings: Settings, row_tokens: int) -> TrainingPlan:
    """Plan `train` for rows as long as those that the stages are planned for, and a caption."""
    from cogcache.models import open_family
    from cogcache.planning import plan_training
    from cogcache.training import base_kind

    labels = min(200, settings.generation.max_new_tokens)
    kind, rows = base_kind(settings), row_tokens + labels
    family = open_family(settings)
    return plan_training(family, settings, kind, rows, labels)


def _lines(made: Plan) -> list[str]:
    from cogcache.cli.tables import as_table

    columns = ("memory", "vision", "frames_per_batch", "vision_peak", "language", "language_peak")
    memories = made.memories
    lines = [
        f"{made.model}: the whole model in bf16 is {format_bytes(made.whole_bytes)}",
        *(_half(half) for half in made.halves),
        *(_disk(disk, disk.clip_features_bytes) for disk in made.disk if disk.clip_features_bytes),
        *([f"  {made.videos}"] if made.videos else []),
        f"  {made.clip.reason}",
        *_hours(made.hours),
        *([f"  {made.clip.over_context}"] if made.clip.over_context else []),
        "",
        as_table([_row(memory) for memory in memories], columns),
        *(["", *_reasons(memories[0])] if len(memories) == 1 else _too_small(memories)),
    ]
    return [*lines, "", *_trainings(made.training)] if made.training else lines


def _trainings(planned: TrainingPlan) -> list[str]:
    kept = format_bytes(planned.teacher_bytes)
    return [*planned.lines(), f"  distill keeps {kept} of its teacher a caption, on the disk"]


def _hours(hours: PlannedHours) -> list[str]:
    parts = [
        f"{format_seconds(hours.clip_s(half))} a clip, "
        f"{format_seconds(3600 * hours.hours(half))} for {hours.clips:,} clips"
        for half in ("vision", "language")
    ]
    return [
        f"  time of stage one: {parts[0]}; of stage two: {parts[1]}",
        f"    {hours.unit_costs}",
    ]


def _half(half: PlannedHalf) -> str:
    text = f"  {half.half} half, {half.precision}: {format_bytes(half.weights_bytes)}"
    if half.parts and half.parts.quantisation_bytes:
        text += f", {format_bytes(half.parts.quantisation_bytes)} of it scales and tables, "
        text += f"{format_bytes(half.parts.not_quantised_bytes)} not quantised"
    return text + (" (as asked)" if half.is_asked else "")


def _disk(disk: PlannedDisk, clip_bytes: int) -> str:
    return (
        f"  {disk.cache_point} features: {format_bytes(clip_bytes)} a clip "
        f"before compression; of {disk.clips:,} clips {format_bytes(clip_bytes * disk.clips)}, "
        f"their captions {format_bytes(disk.captions_bytes)}; with --keep-prefix "
        f"{format_bytes(disk.prefix_bytes)} besides"
    )


def _row(memory: PlannedMemory) -> dict[str, Any]:
    vision, language = memory.vision, memory.language
    return {
        "memory": memory.name,
        "vision": _placed(vision, "blocks") if vision.fits else "does not fit",
        "frames_per_batch": vision.frames_per_batch if vision.fits else None,
        "vision_peak": format_bytes(vision.plan.peak_bytes) if vision.fits else None,
        "language": _language(language) if language.fits else "does not fit",
        "language_peak": format_bytes(language.plan.peak_bytes) if language.fits else None,
    }


def _placed(choice: VisionChoice | LanguageChoice, what: str) -> str:
    resident, total = choice.resident_layers, choice.num_layers
    return "resident" if resident == total else f"{resident} of {total} {what} resident"


def _language(choice: LanguageChoice) -> str:
    text = f"{choice.clips_per_batch} rows"
    if choice.embedding_waits:
        text += ", embedding elsewhere"
    if choice.resident_layers < choice.num_layers:
        text += f", {_placed(choice, 'layers')}"
    return text


def _reasons(memory: PlannedMemory) -> list[str]:
    lines = []
    for half in ("vision", "language"):
        choice = memory.choice(half)
        plan = choice.plan
        parts = {
            "weights": plan.weights_bytes,
            "activations": plan.activations_bytes,
            "logits": plan.logits_bytes,
            "cache": plan.cache_bytes,
        }
        sizes = (f"{part} {format_bytes(size)}" for part, size in parts.items() if size)
        lines += [f"{half}: {choice.reason}", f"  {', '.join(sizes)}"]
        if not choice.fits:
            needed = format_bytes(memory.least_bytes[half])
            lines.append(f"  does not fit: {needed} or more would do")
    margin = f"{format_bytes(memory.margin_bytes)} are left free"
    lines.append(f"margin: {margin}: {memory.margin_reason}")
    lines.append(f"cache point: {memory.cache_point}: {memory.cache_point_reason}")
    return lines


def _too_small(memories: Sequence[PlannedMemory]) -> list[str]:
    lines = [""]
    for memory in memories:
        for number, half in (("one", "vision"), ("two", "language")):
            if not memory.choice(half).fits:
                needed = format_bytes(memory.least_bytes[half])
                lines.append(f"{memory.name}: stage {number} needs {needed} or more")
    return lines if len(lines) > 1 else []
