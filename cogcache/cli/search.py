"""`search`: find captions by their words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import cache_option
from cogcache.cli.filters import (
    catalog_of,
    look_options,
    print_absent,
    say_unknown_names,
    selection_options,
)
from cogcache.cli.judged import sort_option
from cogcache.cli.numbers import Whole
from cogcache.cli.printing import json_option, print_rows

if TYPE_CHECKING:
    from cogcache.catalog import Look, Selection, SemanticIndex

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
COLUMNS = ("video", "start_s", "end_s", "prompt_name", "snippet")


Command = Callable[..., Any]


def _semantic_options(command: Command) -> Command:
    """Give a command ``semantic: str | None``: the model that finds the meaning, if one is to."""

    @functools.wraps(command)
    def with_semantic(*args: Any, semantic: bool, semantic_model: str, **given: Any) -> Any:
        return command(*args, semantic=semantic_model if semantic else None, **given)

    decorated: Command = click.option(
        "--semantic-model",
        metavar="MODEL",
        default=DEFAULT_MODEL,
        show_default=True,
        help="What finds the meaning: a sentence-transformers model, as folder or hub id.",
    )(with_semantic)
    return click.option("--semantic", is_flag=True, help="Search by meaning too; needs the extra.")(
        decorated
    )


@click.command()
@click.argument("query", nargs=-1, required=True)
@cache_option
@click.option("--limit", type=Whole(1, 1000), default=20, help="Show at most this many.")
@click.option("--offset", type=Whole(0), default=0, help="Leave out that many of the best.")
@_semantic_options
@sort_option
@selection_options
@look_options
@json_option
def search(
    query: tuple[str, ...],
    cache: Path,
    semantic: str | None,
    selection: Selection,
    look: Look,
    json_: bool,
    **page: Any,
) -> None:
    """Find captions, the best first.

    All words of QUERY have to be there. "In quotes" is a phrase, shor* a beginning, OR parts
    alternatives, and -word excludes (put -- before QUERY then). Put single quotes around it all.
    """
    from cogcache.catalog import CaptionSearch, Catalog
    from cogcache.cli.times import as_players_show

    text, sort = " ".join(query), page.pop("sort")
    with CaptionSearch(catalog_of(cache)) as index:
        if look.check:
            index.look_in(selection.folders)
        if semantic:
            from cogcache.catalog import fused_search

            vectors = _vectors(cache, semantic)
            found = fused_search(vectors, index, text, selection, **page)
        else:
            found = index.search(text, selection, **page)
        found = index.placed(found, look, selection.folders)
    rows = [hit.row() for hit in found.hits]
    if sort:
        with Catalog(catalog_of(cache)) as catalog:
            rows = catalog.scores.order(rows, sort)
    print_absent(found.absent)
    if not rows:
        say_unknown_names(catalog_of(cache), selection)
    print_rows(rows if json_ else as_players_show(rows), COLUMNS, json_=json_)
    if found.capped:
        note = (
            f"More captions fit than could be ranked: these are of the newest {found.num_ranked:,}."
        )
        click.echo(f"{note} Add a word or a filter.", err=True)


def _vectors(cache: Path, model: str) -> SemanticIndex:
    """Return the model's vectors of all captions; new captions are added first."""
    from tqdm import tqdm

    from cogcache.catalog import Embedder, SemanticIndex

    index = SemanticIndex(cache, Embedder(model))
    # Quiet where nobody looks on, and where it is done in a moment.
    with tqdm(desc="captions embedded", unit="", disable=None, delay=2) as bar:

        def show(done: int, all_: int) -> None:
            bar.total = all_
            bar.update(done - bar.n)

        index.update(show)
    return index
