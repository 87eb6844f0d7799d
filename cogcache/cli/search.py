"""`search`: find captions by their words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cogcache.cli.filters import catalog_of, selection_options
from cogcache.cli.printing import json_option, print_rows
from cogcache.options import cache_option

if TYPE_CHECKING:
    from cogcache.selection import Selection

COLUMNS = ("video", "start_s", "end_s", "prompt_name", "snippet")


@click.command()
@click.argument("query", nargs=-1, required=True)
@cache_option
@click.option("--limit", type=click.IntRange(1, 1000), default=20, help="Show at most this many.")
@click.option(
    "--offset", type=click.IntRange(0), default=0, help="Leave out that many of the best."
)
@selection_options
@json_option
def search(
    query: tuple[str, ...],
    cache: Path,
    limit: int,
    offset: int,
    selection: Selection,
    json_: bool,
) -> None:
    """Find captions, the best first.

    All words of QUERY have to be there. "In quotes" is a phrase, shor* a beginning, OR parts
    alternatives, and -word excludes (put -- before QUERY then). Put single quotes around it all.
    """
    from cogcache.search import CaptionSearch

    with CaptionSearch(catalog_of(cache)) as index:
        found = index.search(" ".join(query), selection, limit=limit, offset=offset)
    print_rows([hit.row() for hit in found.hits], COLUMNS, json_=json_)
    if found.capped:
        note = (
            f"More captions fit than could be ranked: these are of the newest {found.num_ranked:,}."
        )
        click.echo(f"{note} Add a word or a filter.", err=True)
