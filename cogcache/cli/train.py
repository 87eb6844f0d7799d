"""`train` and `distill`: a language half learns from cached features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cogcache.cli.filters import catalog_of, selection_options_beside_model
from cogcache.cli.options import cache_option, settings_options
from cogcache.cli.stages import catalog_option
from cogcache.settings import Settings

if TYPE_CHECKING:
    from cogcache.catalog import Selection

TRAINED = (
    "model",
    "sampling",
    "vision",
    "language",
    "generation",
    "limits",
    "machines",
    "training",
)


@click.command()
@cache_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the adapter and the checkpoints on the way to it.",
)
@catalog_option
@selection_options_beside_model
@settings_options(*TRAINED)
def train(
    cache: Path,
    out: Path,
    catalog_path: Path | None,
    selection: Selection,
    settings: Settings,
) -> None:
    """Train the language half on captions of the cache; the vision half is not loaded.

    The captions are those that pass the filters, such as an imported set of corrected ones:
    --captions-of SET. Typed again, the command goes on where it was ended.
    """
    from cogcache.stages import train as run

    catalog_of(cache)
    done = run(cache, out, settings, selection, catalog_path)
    click.echo("\n".join(done.lines))
    raise SystemExit(done.exit_status)
