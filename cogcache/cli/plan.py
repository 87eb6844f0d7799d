"""`plan`: what each stage will take, before anything is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.options import settings_options
from cogcache.cli.printing import json_option
from cogcache.settings import Settings
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from cogcache.planning import TrainingPlan

PLANNED = ("model", "sampling", "vision", "language", "generation", "training", "distillation")


@click.command()
@click.option("--frames", type=click.IntRange(1), default=24, help="Frames of a clip.")
@click.option("--prompts", type=click.IntRange(1), default=1, help="Prompts of each clip.")
@click.option("--clips", type=click.IntRange(1), default=1000, help="Clips to plan the disk for.")
@click.option("--train", is_flag=True, help="Plan `cogcache train` too.")
@json_option
@settings_options(*PLANNED)
def plan(
    frames: int, prompts: int, clips: int, train: bool, json_: bool, settings: Settings
) -> None:
    """Say what each stage will take in a given memory, from headers and config alone.

    Nothing is loaded; of a hub id only small files and headers are fetched.
    """
    from cogcache.planning import make_plan

    made = make_plan(settings, frames, prompts, clips)
    lines = [] if json_ else _lines(made)
    if train:
        planned = _training(settings, made["clip"]["row_tokens"])
        made["training"] = planned.as_dict()
        lines += ["", *planned.lines()]
    click.echo(json.dumps(made, indent=2) if json_ else "\n".join(lines))


def _training(settings: Settings, row_tokens: int) -> TrainingPlan:
    """Plan `train` for rows as long as those that the stages are planned for, and a caption."""
    from cogcache.models import Checkpoint, family_of
    from cogcache.planning import plan_training
    from cogcache.training import base_kind

    labels = min(200, settings.generation.max_new_tokens)
    kind, rows = base_kind(settings), row_tokens + labels
    family = family_of(Checkpoint.open(settings.model, settings.revision))
    family = family.at(settings.vision.cache_point)
    return plan_training(family, settings, kind, rows, labels)


def _lines(made: dict[str, Any]) -> list[str]:
    from cogcache.cli.tables import as_table

    columns = ("memory", "vision", "frames_per_batch", "vision_peak", "language", "language_peak")
    memories = made["memories"]
    lines = [
        f"{made['model']}: the whole model in bf16 is {format_bytes(made['whole_bytes'])}",
        *(_half(half) for half in made["halves"]),
        *(_disk(disk) for disk in made["disk"] if disk["features_bytes"] is not None),
        f"  {made['clip']['reason']}",
        *(f"  {over}" for over in [made["clip"]["over_context"]] if over),
        "",
        as_table([_row(memory) for memory in memories], columns),
    ]
    if len(memories) == 1:
        return [*lines, "", *_reasons(memories[0])]
    return [*lines, *_too_small(memories)]


def _half(half: dict[str, Any]) -> str:
    text = f"  {half['half']} half, {half['precision']}: {format_bytes(half['weights_bytes'])}"
    if half.get("of_it_quantisation_bytes"):
        text += f", {format_bytes(half['of_it_quantisation_bytes'])} of it scales and tables, "
        text += f"{format_bytes(half['of_it_not_quantised_bytes'])} not quantised"
    return text + (" (as asked)" if half["asked"] else "")


def _disk(disk: dict[str, Any]) -> str:
    return (
        f"  {disk['cache_point']} features: {format_bytes(disk['features_bytes_a_clip'])} a clip "
        f"before compression; of {disk['clips']:,} clips {format_bytes(disk['features_bytes'])}, "
        f"their captions {format_bytes(disk['captions_bytes'])}; with --keep-prefix "
        f"{format_bytes(disk['keep_prefix_bytes'])} besides"
    )


def _row(memory: dict[str, Any]) -> dict[str, Any]:
    vision, language = memory["vision"], memory["language"]
    return {
        "memory": memory["memory"],
        "vision": _placed(vision, "blocks") if vision["fits"] else "does not fit",
        "frames_per_batch": vision["frames_per_batch"] if vision["fits"] else None,
        "vision_peak": format_bytes(vision["peak_bytes"]) if vision["fits"] else None,
        "language": _language(language) if language["fits"] else "does not fit",
        "language_peak": format_bytes(language["peak_bytes"]) if language["fits"] else None,
    }


def _placed(stage: dict[str, Any], what: str) -> str:
    resident, total = stage["resident_layers"], stage["num_layers"]
    return "resident" if resident == total else f"{resident} of {total} {what} resident"


def _language(stage: dict[str, Any]) -> str:
    text = f"{stage['clips_per_batch']} rows"
    if stage["embedding_waits"]:
        text += ", embedding elsewhere"
    if stage["resident_layers"] < stage["num_layers"]:
        text += f", {_placed(stage, 'layers')}"
    return text


def _reasons(memory: dict[str, Any]) -> list[str]:
    parts = ("weights", "activations", "logits", "cache")
    lines = []
    for half in ("vision", "language"):
        stage = memory[half]
        sizes = ", ".join(
            f"{part} {format_bytes(stage[f'{part}_bytes'])}"
            for part in parts
            if stage.get(f"{part}_bytes")
        )
        lines.append(f"{half}: {stage['reason']}")
        lines.append(f"  {sizes}")
        if not stage["fits"]:
            lines.append(
                f"  does not fit: {format_bytes(stage['smallest_bytes'])} or more would do"
            )
    margin = f"{format_bytes(memory['margin_bytes'])} are left free"
    lines.append(f"margin: {margin}: {memory['margin_reason']}")
    lines.append(f"cache point: {memory['cache_point']}: {memory['cache_point_reason']}")
    return lines


def _too_small(memories: list[dict[str, Any]]) -> list[str]:
    lines = [""]
    for memory in memories:
        for number, half in (("one", "vision"), ("two", "language")):
            if not memory[half]["fits"]:
                needed = format_bytes(memory[half]["smallest_bytes"])
                lines.append(f"{memory['memory']}: stage {number} needs {needed} or more")
    return lines if len(lines) > 1 else []
