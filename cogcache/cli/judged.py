"""The options that choose among captions by what people and scores say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cogcache.errors import ConfigError

if TYPE_CHECKING:
    from cogcache.catalog import Selection

STATES = ("accepted", "rejected", "edited", "unreviewed")

min_motion_option = click.option(
    "--min-motion", type=float, metavar="X", help="Only clips whose score `motion` is at least X."
)
drop_duplicates_option = click.option(
    "--drop-duplicates", is_flag=True, help="Only one clip of each group of near-duplicates."
)
JUDGED = (
    click.option(
        "--prefer",
        metavar="A,B",
        help="If a clip has several captions for a prompt, only those of the first of these models "
        "or sets that has one, such as reviewed,MODEL.",
    ),
    click.option(
        "--state",
        "states",
        type=click.Choice(STATES),
        multiple=True,
        help="Only captions that a review left in this state. Repeatable.",
    ),
    click.option(
        "--tag",
        "tags",
        multiple=True,
        metavar="TAG",
        help="Only captions that a review gave this tag. Repeatable.",
    ),
    click.option(
        "--min-score",
        "min_scores",
        multiple=True,
        metavar="NAME=X",
        help="Only captions whose score NAME, or their clip's, is at least X. Repeatable.",
    ),
    min_motion_option,
    drop_duplicates_option,
)
include_rejected_option = click.option(
    "--include-rejected",
    is_flag=True,
    help="Take captions that a reviewer rejected, too; else they are left out.",
)
"""Of a command that leaves them out."""
needless_rejected_option = click.option(
    "--include-rejected", is_flag=True, hidden=True, help="They are taken in any case."
)
"""Of a command to which this makes no difference."""
sort_option = click.option(
    "--sort", metavar="NAME", help="Sort by this score, lowest first; -NAME: highest first."
)
"""``--sort NAME``, handed to the command as ``sort: str | None``."""
JUDGED_NAMES = (
    "prefer",
    "states",
    "tags",
    "min_scores",
    "min_motion",
    "drop_duplicates",
)


def judged(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Selection` for the values of these options.

    Raises:
        ConfigError: a score is not written as NAME=X.
    """
    fields = dict(given)
    if "prefer" not in fields:  # a listing of what nobody judges
        return fields
    names = (name.strip() for name in (fields["prefer"] or "").split(","))
    fields["prefer"] = tuple(name for name in names if name)
    least = [_least(text) for text in fields["min_scores"]]
    if (motion := fields.pop("min_motion")) is not None:
        least.append(("motion", motion))
    return fields | {"min_scores": tuple(least)}


def _least(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        hint = "write it like --min-score grounding=0.5"
        raise ConfigError(f"--min-score {text!r} is not NAME=X", hint) from None


def judged_several(selection: Selection) -> dict[str, tuple[str, ...]]:
    """Return the options, that another process is given, with their values."""
    scores = tuple(f"{name}={value!r}" for name, value in selection.min_scores)
    prefer = (",".join(selection.prefer),) if selection.prefer else ()
    named = {"--state": selection.states, "--tag": selection.tags}
    return {**named, "--min-score": scores, "--prefer": prefer}
