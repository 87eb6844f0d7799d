"""The options that choose among captions, the same in every command that takes some."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import LocationType
from cogcache.cli.judged import (
    JUDGED,
    JUDGED_NAMES,
    include_rejected_option,
    judged,
    judged_several,
    needless_rejected_option,
)
from cogcache.errors import ConfigError
from cogcache.generation import FLAGS
from cogcache.units import printable

if TYPE_CHECKING:
    from cogcache.catalog import Absent, Missing, Selection

Command = Callable[..., Any]

_OPTIONS = (
    click.option(
        "--in",
        "folders",
        type=LocationType(),
        multiple=True,
        metavar="FOLDER",
        help="Only videos in this folder, at any depth; or one video. Repeatable.",
    ),
    click.option(
        "--prompt-name",
        "prompts",
        multiple=True,
        metavar="NAME",
        help="Only captions made with this prompt. Repeatable.",
    ),
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="NAME",
        help="Only captions of this model, or of this imported set. Repeatable.",
    ),
    click.option("--since", metavar="DAY", help="Only captions made on YYYY-MM-DD (UTC) or later."),
    click.option("--until", metavar="DAY", help="Only captions made on YYYY-MM-DD or earlier."),
    click.option(
        "--min-duration", "min_duration_s", type=float, metavar="SECONDS", help="Of the clip."
    ),
    click.option(
        "--max-duration", "max_duration_s", type=float, metavar="SECONDS", help="Of the clip."
    ),
    click.option(
        "--flag",
        "flags",
        type=click.Choice(FLAGS),
        multiple=True,
        metavar="FLAG",
        help=f"Only captions with this flag: {', '.join(FLAGS)}. Repeatable.",
    ),
    click.option("--no-flags", is_flag=True, help="Only captions without any flag."),
    *JUDGED,
    click.option(
        "--cut",
        "cuts",
        multiple=True,
        metavar="NAME",
        help="Only clips that were cut in this way: whole, segment:24, scenes; or clip, for parts "
        "given by --clip. Repeatable.",
    ),
)
_NAMES = (
    "folders",
    "prompts",
    "models",
    "since",
    "until",
    "min_duration_s",
    "max_duration_s",
    "flags",
    "no_flags",
    *JUDGED_NAMES,
    "cuts",
)
_OF_CAPTIONS = ("prompts", "flags", "no_flags", *JUDGED_NAMES)
"""Filters that failures know nothing of."""


def selection_options(command: Command) -> Command:
    """Give a command the filters; it is called with ``selection: Selection`` for all of them."""
    return _with_filters(command, [*_OPTIONS, needless_rejected_option])


def selection_options_of_users(command: Command) -> Command:
    """Give the filters to a command that leaves out rejected captions unless told otherwise."""
    return _with_filters(command, [*_OPTIONS, include_rejected_option])


def selection_options_of_failures(command: Command) -> Command:
    """Give a command those filters that choose among failures, as `selection_options` does."""
    chosen = zip(_NAMES, _OPTIONS, strict=True)
    return _with_filters(command, [option for name, option in chosen if name not in _OF_CAPTIONS])


def selection_options_beside_model(command: Command) -> Command:
    """Give the filters to a command whose ``--model`` is the model that it loads."""
    return _with_filters(command, [*_beside_model(), needless_rejected_option])


def selection_options_of_training(command: Command) -> Command:
    """Give the filters to a command that loads a model and leaves out rejected captions."""
    return _with_filters(command, [*_beside_model(), include_rejected_option])


def _beside_model() -> list[Callable[[Command], Command]]:
    others = [
        option
        for name, option in zip(_NAMES, _OPTIONS, strict=True)
        if name not in ("models", "prompts")
    ]
    prompt_name = click.option(
        "--prompt-name",
        "prompt_names",
        multiple=True,
        metavar="NAME",
        help="Only captions made with this prompt. Repeatable.",
    )
    captions_of = click.option(
        "--captions-of",
        "models",
        multiple=True,
        metavar="NAME",
        help="Only captions of this model, or of this imported set. Repeatable.",
    )
    return [captions_of, prompt_name, *others]


def _with_filters(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    @functools.wraps(command)
    def with_selection(*args: Any, **given: Any) -> Any:
        from cogcache.catalog import Selection

        # Where `prompts` are what is asked, the filter's names have another name.
        names = {"prompts": "prompt_names"} if "prompt_names" in given else {}
        taken = {name: names.get(name, name) for name in (*_NAMES, "include_rejected")}
        chosen = {name: given.pop(own) for name, own in taken.items() if own in given}
        return command(*args, selection=Selection(**judged(chosen)), **given)

    decorated: Command = with_selection
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def selection_arguments(selection: Selection) -> list[str]:
    """Return the command line that gives another process the same filters, beside ``--model``."""
    several = {
        "--in": selection.folders,
        "--prompt-name": selection.prompts,
        "--captions-of": selection.models,
        "--flag": selection.flags,
        **judged_several(selection),
        "--cut": selection.cuts,
    }
    single = {
        "--since": selection.since,
        "--until": selection.until,
        "--min-duration": selection.min_duration_s,
        "--max-duration": selection.max_duration_s,
    }
    found = [f"{name}={each}" for name, some in several.items() for each in some]
    found += [f"{name}={each}" for name, each in single.items() if each is not None]
    flags = {
        "--no-flags": selection.no_flags,
        "--drop-duplicates": selection.drop_duplicates,
        "--include-rejected": selection.include_rejected,
    }
    return [*found, *(name for name, is_set in flags.items() if is_set)]


_LOOKING = (
    click.option(
        "--missing",
        type=click.Choice(["skip", "keep", "error"]),
        default="skip",
        show_default=True,
        help="What to do with captions whose video is gone or replaced: leave out and list, keep "
        "them, or end with an error.",
    ),
    click.option(
        "--no-check",
        is_flag=True,
        help="Do not look at the video files; assume that they have not changed.",
    ),
)
SHOWN = 20
"""Of what is left out, the most that are named one by one."""


def look_options(command: Command) -> Command:
    """Give a command ``look: Look``: how videos are found that have moved or changed."""

    @functools.wraps(command)
    def with_look(*args: Any, missing: Missing, no_check: bool, **given: Any) -> Any:
        from cogcache.catalog import Look

        return command(*args, look=Look(missing, not no_check), **given)

    decorated: Command = with_look
    for option in reversed(_LOOKING):
        decorated = option(decorated)
    return decorated


def print_absent(absent: Sequence[Absent]) -> None:
    """Name on stderr what was left out, with the reason."""
    for each in absent[:SHOWN]:
        number = f" ({each.number:,} rows)" if each.number > 1 else ""
        click.echo(f"left out: {printable(each.video)}: {each.reason}{number}", err=True)
    if len(absent) > SHOWN:
        click.echo(f"... and {len(absent) - SHOWN:,} more", err=True)


def say_unknown_names(catalog: Path, selection: Selection) -> None:
    """Say on stderr which names were asked for that no caption has: nothing is listed then."""
    from cogcache.catalog import unknown_names

    if (unknown := unknown_names(catalog, selection)) is not None:
        click.echo("; ".join(unknown), err=True)


def catalog_of(cache: Path) -> Path:
    """Return the catalog of a cache.

    Raises:
        CacheError: the folder is no cache.
        ConfigError: it has no catalog yet.
    """
    from cogcache.store import check_cache
    from cogcache.system import CachePaths

    check_cache(cache)
    if not CachePaths(cache).catalog.is_file():
        raise ConfigError(f"{cache} has no catalog yet", "make one with `cogcache extract`")
    return CachePaths(cache).catalog
