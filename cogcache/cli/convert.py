"""`convert`: features into those of another cache point or compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cogcache.cli.cache_option import cache_option
from cogcache.cli.options import settings_options
from cogcache.settings import Settings, leaves

_CHOICES = {leaf.name: leaf.choices for leaf in leaves("vision") if leaf.choices}


@click.command()
@click.argument("videos", nargs=-1, type=str)
@cache_option
@click.option(
    "--cache-point",
    type=click.Choice(_CHOICES["cache_point"]),
    help="Make features of this cache point, beside those that they are made of.",
)
@click.option(
    "--compression",
    type=click.Choice(_CHOICES["compression"]),
    help="Pack feature files in this way; what they hold stays bit for bit.",
)
@settings_options("model", "limits", model_needed=False)
def convert(
    videos: tuple[str, ...],
    cache: Path,
    cache_point: str | None,
    compression: Any,
    settings: Settings,
) -> None:
    """Convert features to another cache point or compression, without decoding a video.

    Only exact conversions are made: `pooled` into `projected`, and one lossless compression into
    another. Without VIDEOS, all cached features are converted.
    """
    from cogcache.stages.convert import convert as run

    if cache_point is None and compression is None:
        raise click.UsageError("say into what: --cache-point or --compression")
    report = run(
        cache, settings, cache_point=cache_point, compression=compression, videos=videos or None
    )
    from cogcache.stages import report_lines

    notes = [] if report.counts.done else [f"  {note}" for note in report.notes]
    for line in report_lines(report) + notes:
        click.echo(line)
    raise SystemExit(report.exit_status)
