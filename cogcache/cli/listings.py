"""Listings of what is in a cache, and of the models there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cogcache.cli.printing import json_option, print_rows
from cogcache.errors import ConfigError
from cogcache.options import cache_option


@click.command()
@click.argument("what", type=click.Choice(["captions", "clips", "runs"]), default="captions")
@cache_option
@json_option
def ls(what: str, cache: Path, json_: bool) -> None:
    """List captions (the default), clips or runs."""
    columns = {
        "captions": ("video", "start_s", "end_s", "prompt_name", "caption", "flags"),
        "clips": ("video", "start_s", "end_s", "num_frames", "size_bytes", "model", "decoder"),
        "runs": ("run", "command", "model", "started_at", "status", "measured_peak_bytes"),
    }
    _list(cache, lambda catalog: getattr(catalog, what)(), columns[what], json_=json_)


@click.command()
@cache_option
@json_option
def failures(cache: Path, json_: bool) -> None:
    """List what could not be done, with the reason."""
    columns = ("video", "start_s", "end_s", "stage", "reason", "message", "tries")
    _list(cache, lambda catalog: catalog.failures(), columns, json_=json_)


@click.command()
@json_option
def models(json_: bool) -> None:
    """List the families of models and what is known of each."""
    from dataclasses import asdict

    from cogcache.models.registry import FAMILIES

    print_rows([asdict(entry) for entry in FAMILIES], ("name", "models", "tested"), json_=json_)


def _list(
    cache: Path,
    rows: Callable[[Any], list[dict[str, Any]]],
    columns: tuple[str, ...],
    *,
    json_: bool,
) -> None:
    from cogcache.catalog import Catalog
    from cogcache.store import FeatureStore

    FeatureStore.open(cache)
    if not (cache / "catalog.sqlite").is_file():
        raise ConfigError(f"{cache} has no catalog yet", "make one with `cogcache extract`")
    with Catalog(cache / "catalog.sqlite") as catalog:
        print_rows(rows(catalog), columns, json_=json_)
