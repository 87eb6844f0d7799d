"""`split`: write the halves of a model as a checkpoint of their own."""

from __future__ import annotations

from pathlib import Path

import click

from cogcache.cli.cache_option import NamedPath
from cogcache.cli.options import settings_options
from cogcache.settings import Settings


@click.command()
@click.argument("model")
@click.argument("out", type=NamedPath(path_type=Path))
@click.option("--revision", default=None, help="Commit, tag or branch of a hub id.")
@settings_options("language", model_needed=False)  # it is named as MODEL
def split(model: str, out: Path, revision: str | None, settings: Settings) -> None:
    """Write the halves of MODEL to the folder OUT, the language half already quantised.

    Give OUT as --model to both stages. Keys stay those of the original model, so what was cached
    with it stays valid. Each half is read from its own files. With --adapter and --quantization
    none, OUT is the model with the adapter merged into its 16-bit weights.
    """
    from cogcache.models import merge_adapter
    from cogcache.models.split import split as write

    given = {"model": model, **({"revision": revision} if revision else {})}
    run = write if settings.language.adapter is None else merge_adapter
    for line in run(model, out, settings.model_copy(update=given)).lines():
        click.echo(line)
