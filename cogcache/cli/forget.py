"""`forget`: captions that are deleted, and for thirty days can be taken back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import cache_option
from cogcache.cli.filters import catalog_of, selection_options
from cogcache.cli.numbers import Whole
from cogcache.cli.printing import json_option, print_rows
from cogcache.cli.times import as_players_show, under_names_of_today
from cogcache.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cogcache.catalog import Forgetting, Selection

COLUMNS = ("video", "start_s", "end_s", "prompt_name", "caption", "model")


@click.command()
@cache_option
@click.option("--yes", is_flag=True, help="Delete what is listed.")
@click.option("--undo", is_flag=True, help="Take back what the last `forget --yes` deleted, or, "
              "of all that is kept, what passes the filters.")  # fmt: skip
@click.option("--kept", is_flag=True, help="List what can be taken back.")
@click.option("--limit", type=Whole(1), default=20, metavar="N", help="Show at most this many.")
@selection_options
@json_option
def forget(
    cache: Path,
    yes: bool,
    undo: bool,
    kept: bool,
    limit: int,
    selection: Selection,
    json_: bool,
) -> None:
    """List the captions that pass the filters; with --yes, delete them.

    Deleted captions are kept for thirty days, and --undo takes them back. Features stay: `cogcache
    caption` makes the captions again when it is asked for them.
    """
    from cogcache.catalog import Catalog, kept_captions, take_back
    from cogcache.catalog import forget as find

    if sum((yes, undo, kept)) > 1:
        raise ConfigError("--yes, --undo and --kept each do another thing", "give one of them")
    catalog = catalog_of(cache)
    if undo:
        done = take_back(catalog, selection)
    elif kept:
        done = kept_captions(catalog, selection)
    else:
        done = find(catalog, selection, remove=yes)
    columns = (*COLUMNS, "forgotten_at") if kept else COLUMNS
    with Catalog(catalog) as opened:
        rows = under_names_of_today(opened, done.captions if json_ else done.captions[:limit])
    print_rows(rows if json_ else as_players_show(rows), columns, json_=json_)
    if not json_:
        _tell(done, limit, _outcome(yes=yes, undo=undo, kept=kept))


def _outcome(*, yes: bool, undo: bool, kept: bool) -> str:
    """Return what is said of the captions that are listed."""
    from cogcache.catalog import KEPT_DAYS

    if undo:
        return "taken back"
    if kept:
        return "can be taken back: --undo"
    if yes:
        return f"deleted; for {KEPT_DAYS} days `cogcache forget --undo` takes them back"
    return "--yes deletes them"


def _tell(done: Forgetting, limit: int, outcome: str) -> None:
    if len(done.captions) > limit:
        click.echo(f"... and {len(done.captions) - limit:,} more")
    for (prompt, model), number in _groups(done.captions):
        click.echo(f"{number:,} of the prompt {prompt} by {model}")
    if done.captions:
        click.echo(f"{_captions(len(done.captions))}: {outcome}")
    if done.still_there:
        there = _captions(done.still_there)
        click.echo(f"{there} made again since: those stay, and the deleted ones are kept")
    if done.expired:
        click.echo(f"{_captions(done.expired)} deleted earlier: gone for good")


def _groups(rows: Sequence[dict[str, Any]]) -> list[tuple[tuple[str, str], int]]:
    return Counter((row["prompt_name"], row["model"]) for row in rows).most_common()


def _captions(number: int) -> str:
    return "1 caption" if number == 1 else f"{number:,} captions"
