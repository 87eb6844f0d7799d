"""`plan`: what each stage will take, before anything is loaded."""

from __future__ import annotations

from typing import Any

import click

from cogcache.cli.printing import json_option
from cogcache.config import Settings
from cogcache.options import settings_options

PLANNED = ("model", "sampling", "vision", "language", "generation")


@click.command()
@click.option("--frames", type=click.IntRange(1), default=24, help="Frames of a clip.")
@click.option("--clips", type=click.IntRange(1), default=1000, help="Clips to plan the disk for.")
@json_option
@settings_options(*PLANNED)
def plan(frames: int, clips: int, json_: bool, settings: Settings) -> None:
    """Say what each stage will take in a given memory, from headers and config alone.

    Nothing is loaded; of a hub id only small files and headers are fetched.
    """
    from cogcache.planning import make_plan
    from cogcache.tables import as_json

    made = make_plan(settings, frames, clips)
    click.echo(as_json(made["memories"]) if json_ else "\n".join(_lines(made)))


def _lines(made: dict[str, Any]) -> list[str]:
    from cogcache.tables import as_table

    columns = ("memory", "vision", "frames_per_batch", "vision_peak", "language", "language_peak")
    return [
        *made["facts"],
        "",
        as_table(made["memories"], columns),
        "",
        *(f"{row['memory']}: {row['reason']}" for row in made["memories"] if row["reason"]),
    ]
