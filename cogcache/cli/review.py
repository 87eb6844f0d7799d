"""`review` and `replace`: captions accepted, rejected, tagged, edited, and all of that undone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import cache_option
from cogcache.cli.filters import catalog_of, selection_options
from cogcache.cli.help import dressed
from cogcache.cli.judged import sort_option
from cogcache.cli.numbers import Whole
from cogcache.cli.printing import json_option, print_rows
from cogcache.cli.times import as_players_show, under_names_of_today
from cogcache.errors import ConfigError
from cogcache.units import printable

if TYPE_CHECKING:
    from cogcache.catalog import Selection
    from cogcache.review import Outcome, Reviewed, Reviews

Command = Callable[..., Any]
COLUMNS = ("id", "video", "start_s", "end_s", "prompt_name", "state", "tags", "caption")

_numbers = click.argument("ids", nargs=-1, type=int, metavar="[ID]...")
_all_option = click.option("--all", "all_", is_flag=True, help="All captions of the cache.")


def _review_options(command: Command) -> Command:
    """Give a command ``--set`` and ``--author``."""
    author = click.option(
        "--author", envvar="COGCACHE_AUTHOR", metavar="NAME",
        help="Who does it; else the name of the user.",
    )  # fmt: skip
    named = click.option(
        "--set", "set_", default="reviewed", metavar="NAME", help="Set that edits belong to."
    )
    return named(author(command))


@contextmanager
def _opened(cache: Path, set_: str, author: str | None) -> Iterator[Reviews]:
    from cogcache.catalog import Catalog
    from cogcache.review import Reviews

    with Catalog(catalog_of(cache)) as catalog:
        yield Reviews(catalog, set_, author)


def _choosing(command: Command) -> Command:
    """Give a command captions by number or filter: ``reviews`` and ``chosen``."""

    @functools.wraps(command)
    def with_chosen(
        ids: tuple[int, ...],
        cache: Path,
        set_: str,
        author: str | None,
        selection: Selection,
        all_: bool,
        **given: Any,
    ) -> Any:
        if not ids and not all_ and not selection.where()[0]:
            raise ConfigError("no caption is named", "give numbers, filters or --all")
        with _opened(cache, set_, author) as reviews:
            chosen = reviews.chosen(selection, ids or None)
            return command(reviews=reviews, chosen=chosen, **given)

    decorated: Command = selection_options(_all_option(_review_options(with_chosen)))
    return _numbers(cache_option(decorated))


def _told(outcome: Outcome, done: str) -> None:
    """Say what became of a review; end with 1 where another was quicker."""
    _ended(outcome, f"{outcome.changed:,} captions {done}, {outcome.same:,} were so already")


def _ended(outcome: Outcome, line: str) -> None:
    """Print a line, and end with 1 where captions were left as somebody else was quicker."""
    click.echo(line)
    if outcome.conflicts:
        number = len(outcome.conflicts)
        click.echo(f"{number:,} captions were reviewed since, and are left as they are", err=True)
        raise SystemExit(1)


@click.group()
def review() -> None:
    """Accept, reject, tag and edit captions; every step can be undone.

    What a model wrote stays. An edited caption stands beside it in a set, `reviewed` by default.
    """


@review.command("list")
@cache_option
@_review_options
@click.option("--limit", type=Whole(1), metavar="N", help="List at most this many.")
@sort_option
@selection_options
@json_option
def list_(
    cache: Path,
    set_: str,
    author: str | None,
    limit: int | None,
    sort: str | None,
    selection: Selection,
    json_: bool,
) -> None:
    """List captions as they are now, with their numbers, states and tags."""
    with _opened(cache, set_, author) as reviews:
        rows = [each.row() for each in reviews.chosen(selection)]
        rows = reviews.catalog.scores.order(rows, sort) if sort else rows
        rows = under_names_of_today(reviews.catalog, rows[:limit])
    print_rows(rows if json_ else as_players_show(rows), COLUMNS, json_=json_)


@review.command()
@_choosing
def accept(reviews: Reviews, chosen: list[Reviewed]) -> None:
    """Note that captions are right: those of these numbers, or that pass the filters."""
    _told(reviews.accept(chosen), "accepted")


@review.command()
@_choosing
def reject(reviews: Reviews, chosen: list[Reviewed]) -> None:
    """Note that captions are not to be used: export, train, chains and summaries pass them by."""
    _told(reviews.reject(chosen), "rejected")


@review.command()
@click.option("--add", multiple=True, metavar="TAG", help="Give this tag. Repeatable.")
@click.option("--remove", multiple=True, metavar="TAG", help="Take this tag away. Repeatable.")
@_choosing
def tag(
    reviews: Reviews, chosen: list[Reviewed], add: tuple[str, ...], remove: tuple[str, ...]
) -> None:
    """Give captions tags, or take tags from them."""
    if not (add or remove):
        raise ConfigError("no tag is named", "give --add TAG or --remove TAG")
    _told(reviews.tag(chosen, add, remove), "tagged")


@review.command()
@click.argument("id_", metavar="ID", type=int)
@click.argument("text")
@cache_option
@_review_options
def edit(id_: int, text: str, cache: Path, set_: str, author: str | None) -> None:
    """Have one caption say TEXT; that accepts it. What the model wrote stays beside it."""
    with _opened(cache, set_, author) as reviews:
        (chosen,) = reviews.chosen(numbers=[id_])
        _told(reviews.edit(chosen, text), "edited")


@review.command()
@click.argument("ids", nargs=-1, type=int, metavar="[ID]...")
@cache_option
@_review_options
def undo(ids: tuple[int, ...], cache: Path, set_: str, author: str | None) -> None:
    """Take back what was done last with captions; without numbers, all of the last command."""
    with _opened(cache, set_, author) as reviews:
        outcome = reviews.undo(reviews.chosen(numbers=ids)) if ids else reviews.undo_batch()
    _ended(outcome, f"{outcome.changed:,} captions are as they were before")


@review.command()
@click.argument("id_", metavar="ID", type=int)
@cache_option
@_review_options
@json_option
def history(id_: int, cache: Path, set_: str, author: str | None, json_: bool) -> None:
    """List all versions of a caption, oldest first, with time and author."""
    with _opened(cache, set_, author) as reviews:
        (chosen,) = reviews.chosen(numbers=[id_])
        rows = reviews.catalog.edits.history(chosen.key, set_)
    print_rows(rows, ("created_at", "author", "action", "state", "tags", "text"), json_=json_)


@click.command()
@click.argument("old", required=False, default="")
@click.argument("new", required=False, default=None)
@cache_option
@_review_options
@click.option("--regex", is_flag=True, help="OLD is a pattern of Python's re; NEW may name groups.")
@click.option("--ignore-case", is_flag=True, help="Find words in capitals and small letters.")
@click.option("--prefix", default="", metavar="TEXT", help="Put this before each caption.")
@click.option("--suffix", default="", metavar="TEXT", help="Put this after each caption.")
@click.option("--trigger", default="", metavar="WORD", help="Begin each with a word and a comma.")
@click.option("--yes", is_flag=True, help="Make the changes; else they are only shown.")
@selection_options
@json_option
def replace(
    cache: Path,
    set_: str,
    author: str | None,
    yes: bool,
    selection: Selection,
    json_: bool,
    **how: Any,
) -> None:
    """Replace OLD by NEW in captions, as edits; every change is shown first.

    OLD is found as whole words. `cogcache review undo` takes all of it back.
    """
    from cogcache.review import Rewriting

    if how["old"] and how["new"] is None:
        hint = "to take the words out, write '' for them"
        raise ConfigError(f"it is not said what to put in the place of {how['old']!r}", hint)
    rewriting = Rewriting(**{**how, "new": how["new"] or ""})
    with _opened(cache, set_, author) as reviews:
        changes = rewriting.preview(reviews.chosen(selection))
        now = under_names_of_today(reviews.catalog, [each.reviewed.caption for each in changes])
        rows = [
            {"id": row["id"], "video": row["video"],
             "before": each.reviewed.text, "after": each.after}
            for row, each in zip(now, changes, strict=True)
        ]  # fmt: skip
        if json_:
            print_rows(rows, (), json_=True)
        else:
            _print_changes(rows)
        if yes:
            texts = {each.reviewed.key: each.after for each in changes}
            outcome = reviews.rewrite(texts, [each.reviewed for each in changes])
            if outcome.conflicts or not json_:
                _told(outcome, "changed")
        elif changes and not json_:
            click.echo(f"{len(changes):,} captions would change; make it so with --yes")


def _print_changes(rows: Sequence[dict[str, Any]]) -> None:
    """Show every change: what goes in [-…-], what comes in {+…+}."""
    from cogcache.review import differences

    signs = {"same": "{}", "gone": "[-{}-]", "new": "{{+{}+}}"}
    for row in rows:
        parts = differences(row["before"], row["after"])
        marked = "".join(signs[part.kind].format(part.text) for part in parts)
        click.echo(f"{row['id']}  {printable(row['video'])}: {printable(marked)}")
    if not rows:
        click.echo("nothing to change")


for _command in review.commands.values():
    dressed(_command)
