"""Listings of what is in a cache, and of the models there are."""

from __future__ import annotations

import difflib
import functools
import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    selection_options_of_failures,
)
from cogcache.cli.judged import sort_option
from cogcache.cli.numbers import Whole
from cogcache.cli.printing import json_option, print_rows
from cogcache.errors import ConfigError
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from cogcache.catalog import Absent, Catalog, Listed, Look, Selection, Stage

_WHERE_THERE_IS_ANY = ("outdated", "state", "tags")
"""Columns that a table shows only if some row has a value in them."""
_SAME = {
    "captions": ("id",),
    "clips": ("feature_key",),
    "failures": ("video_digest", "start_s", "end_s", "stage"),
}
"""Columns that identify a clip or caption; several files with the same bytes share them."""
_COLUMNS = {
    "captions": ("video", "start_s", "end_s", "prompt_name", "caption", "model", "flags"),
    "clips": (
        "video", "start_s", "end_s", "num_frames", "size_bytes", "model", "cuts", "note",
    ),
    "runs": (
        "run", "command", "model", "started_at", "status",
        "planned_peak_bytes", "measured_peak_bytes",
    ),
}  # fmt: skip
"""Columns of each listing, for a reader; --json has all."""


_AT_A_TIME = 64
"""Number of rows whose files are checked at a time, if only a few rows are wanted."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Which part of a listing to show, and in which form."""

    limit: int | None
    columns: tuple[str, ...]
    json_: bool
    sort: str | None = None
    """Name of a score, the lowest first; `-NAME`: the highest."""
    """Whether a program reads it."""

    def chosen(self, rows: Sequence[Any]) -> list[Any]:
        """Return the first rows, with the columns that were asked for alone.

        Raises:
            ConfigError: there is no such column.
        """
        found = list(rows[: self.limit])
        if not self.columns or not found:
            return found
        if absent := [name for name in self.columns if name not in found[0]]:
            known = ", ".join(found[0])
            near = difflib.get_close_matches(absent[0], [*found[0]], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {known}"
            raise ConfigError(f"there is no column {absent[0]!r}", hint)
        return [{name: row[name] for name in self.columns} for row in found]


def shown_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a listing ``--limit``, ``--columns`` and ``--json``, as one ``shown: Shown``."""

    @functools.wraps(command)
    def with_shown(
        *args: Any, limit: int | None, columns: str | None, json_: bool, **given: Any
    ) -> Any:
        names = [name.strip() for name in (columns or "").split(",")]
        shown = Shown(limit, tuple(filter(None, names)), json_)
        return command(*args, shown=shown, **given)

    decorated: Callable[..., Any] = click.option(
        "--columns", metavar="A,B", help="Show these columns, of those that --json has."
    )(json_option(with_shown))
    return click.option("--limit", type=Whole(1), metavar="N", help="List at most this many.")(
        decorated
    )


def _sortable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a listing ``--sort``, as a part of its ``shown: Shown``."""

    @functools.wraps(command)
    def with_sort(*args: Any, sort: str | None, shown: Shown, **given: Any) -> Any:
        return command(*args, shown=replace(shown, sort=sort), **given)

    decorated: Callable[..., Any] = sort_option(with_sort)
    return decorated


@click.command()
@click.argument("what", type=click.Choice(["captions", "clips", "runs"]), default="captions")
@cache_option
@click.option(
    "--flagged", is_flag=True, help="Only captions with a flag: empty, looping, cut off, …"
)
@click.option(
    "--side-by-side", is_flag=True, help="A row a clip, with the newest caption of each prompt."
)
@shown_options
@_sortable
@selection_options
@look_options
def ls(
    what: str,
    cache: Path,
    flagged: bool,
    side_by_side: bool,
    selection: Selection,
    look: Look,
    shown: Shown,
) -> None:
    """List captions (the default), clips or runs.

    Each row shows where its video is now. Rows whose video is gone or replaced are left out and
    listed on stderr.
    """
    if (flagged or side_by_side) and what != "captions":
        raise click.UsageError("--flagged and --side-by-side are for captions")
    if side_by_side and shown.columns:
        raise click.UsageError("--side-by-side has columns of its own: leave out --columns")
    if selection.where()[0] and what == "runs":
        raise click.UsageError("these filters choose among captions and clips: leave out runs")

    if what == "runs":
        _list(cache, _run_rows, _COLUMNS[what], shown)
        return

    from cogcache.cli.times import with_notes

    def rows(catalog: Catalog) -> list[Any]:
        found = _found(catalog, what, selection)
        found = [row for row in found if row["flags"]] if flagged else found
        if what == "clips":
            found = with_notes(catalog, found)
        found = _with_cuts(catalog, _with_outdated(catalog, found))
        found = _with_reviews(catalog, found) if what == "captions" else found
        limit = None if shown.sort or side_by_side else shown.limit
        placed = _placed(catalog, found, _SAME[what], look, limit)
        return catalog.scores.order(placed, shown.sort) if shown.sort else placed

    if side_by_side:
        _print_side_by_side(cache, rows, shown)
    else:
        _list(cache, rows, _COLUMNS[what], shown)


@click.command()
@cache_option
@click.option("--stage", type=click.Choice(["extract", "caption"]), help="Only of this stage.")
@click.option("--reason", metavar="NAME", help="Only with this reason, such as not_a_video.")
@shown_options
@selection_options_of_failures
@look_options
def failures(
    cache: Path,
    stage: Stage | None,
    reason: str | None,
    selection: Selection,
    look: Look,
    shown: Shown,
) -> None:
    """List clips that failed, with the reason."""
    from cogcache.catalog import passing

    columns = ("video", "start_s", "end_s", "stage", "reason", "message", "tries")

    def rows(catalog: Catalog) -> list[Any]:
        rows = catalog.failures.rows(stage=stage)
        found = passing(catalog.path, "failures", selection, rows)
        found = [row for row in found if reason in (None, row["reason"])]
        return _placed(catalog, found, _SAME["failures"], look, shown.limit)

    _list(cache, rows, columns, shown)


def _run_rows(catalog: Catalog) -> list[Any]:
    """Return the runs, with the progress of those that are still running."""
    from cogcache.stages import state_of
    from cogcache.store import live_runs

    live = live_runs(catalog.path.parent)
    return [{**row, "status": state_of(row, live)} for row in catalog.runs.rows()]


def _found(catalog: Catalog, what: str, selection: Selection) -> list[Any]:
    """Return the clips or captions that pass the filters."""
    from cogcache.catalog import passing

    listed: Listed = "clips" if what == "clips" else "captions"
    found = [*passing(catalog.path, listed, selection, getattr(catalog, what).rows())]
    if not found and listed == "captions":
        say_unknown_names(catalog.path, selection)
    return found


def _with_cuts(catalog: Catalog, rows: list[Any]) -> list[Any]:
    """Add to captions or clips how their videos were cut, if that is known."""
    cuts = catalog.cuts.of({row["feature_key"] for row in rows})
    for row in rows:  # they are this listing's own
        row["cuts"] = cuts.get(row["feature_key"], [])
    return rows


def _with_outdated(catalog: Catalog, rows: list[Any]) -> list[Any]:
    """Add the column `outdated`: why this version would make the row differently, or None."""
    from cogcache.catalog import outdated, why_outdated

    why = why_outdated(outdated(catalog.path))
    for row in rows:  # they are this listing's own
        row["outdated"] = why.get(row.get("caption_key") or row["feature_key"])
    return rows


def _with_reviews(catalog: Catalog, rows: list[Any]) -> list[Any]:
    """Add the reviews of captions: ``state`` and ``tags``."""
    said = catalog.edits.reviewed()
    for row in rows:
        edit = said.get(row["caption_key"])
        row["state"], row["tags"] = (edit["state"], edit["tags"]) if edit else ("", [])
    return rows


def _placed(
    catalog: Catalog, rows: list[Any], same: tuple[str, ...], look: Look, limit: int | None
) -> list[Any]:
    """Return rows under the names that their videos have now; say which are left out.

    Args:
        catalog: knows the files.
        rows: under the names that they bore.
        same: columns by which a row is told that several files share.
        look: how files are looked at.
        limit: so many rows are enough, the first by the names that they bore; None: all.
    """
    from cogcache.catalog import Placing

    placing = Placing(catalog.holders(check=look.check), look)
    if limit is None:
        placed = placing.each(rows, same)
        print_absent(placed.absent)
        return sorted(placed.rows, key=_order)
    rows = sorted(rows, key=_order)
    found: dict[tuple[object, ...], Any] = {}
    absent: list[Absent] = []
    for first in range(0, len(rows), max(limit, _AT_A_TIME)):
        placed = placing.each(rows[first : first + max(limit, _AT_A_TIME)], same)
        absent += placed.absent
        for row in placed.rows:
            found.setdefault((row["video"], *(row[name] for name in same)), row)
        if len(found) >= limit:
            break
    print_absent(absent)
    return sorted(found.values(), key=_order)


def _order(row: Any) -> tuple[str, float]:
    return row["video"] or "", row["start_s"]


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--revision", metavar="TEXT", help="Commit, tag or branch of a hub id.")
@click.option("--frames", type=Whole(1), default=24, show_default=True, help="Frames of the clip.")
@click.option(
    "--size",
    metavar="WIDTHxHEIGHT",
    default="640x360",
    show_default=True,
    help="Size of the clip's frames.",
)
@json_option
def models(
    checkpoint: str | None, revision: str | None, frames: int, size: str, json_: bool
) -> None:
    """List the families of models, or say what CHECKPOINT is and what a clip of it takes.

    CHECKPOINT is a folder, a hub id or `tiny`; of a hub id only the small files are fetched.
    """
    from dataclasses import asdict

    from cogcache.models import describe

    if checkpoint is None:
        columns = ("family", "models", "tested", "vision half", "language half")
        families = describe.families()
        shown = families if json_ else [_with_units(row) for row in families]
        print_rows(shown, columns, json_=json_)
        return
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if match is None:
        raise ConfigError(f"--size {size} is not WIDTHxHEIGHT", "write it like 640x360")
    found = describe.describe(
        checkpoint, revision=revision, num_frames=frames, size=(int(match[2]), int(match[1]))
    )
    if json_:
        print_rows([asdict(found)], (), json_=True)
        return
    click.echo(f"{found.model}: {found.family} ({found.architecture})")
    click.echo(f"  shown by: {found.tested}")
    for half in ("vision", "language"):
        size_bytes = format_bytes(getattr(found, f"{half}_bytes"))
        parameters = getattr(found, f"{half}_parameters")
        click.echo(f"  {half + ' half':13} {parameters:,} parameters, {size_bytes} in bfloat16")
    click.echo(f"  cached of {frames} frames of {found.frame_size}:")
    for name, shape in found.cached.items():
        click.echo(f"    {name:28} {shape}")
    click.echo(f"    together {format_bytes(found.cached_bytes)} before compression")


def _with_units(row: dict[str, Any]) -> dict[str, Any]:
    named = {f"{half} half": row[f"{half}_bytes"] for half in ("vision", "language")}
    return row | {name: value and format_bytes(value) for name, value in named.items()}


def _print_side_by_side(cache: Path, rows: Callable[[Catalog], list[Any]], how: Shown) -> None:
    from cogcache.catalog import Catalog
    from cogcache.cli.tables import side_by_side
    from cogcache.cli.times import as_players_show

    with Catalog(catalog_of(cache)) as catalog:
        found = rows(catalog)
    clips = side_by_side(found if how.json_ else as_players_show(found))[: how.limit]
    prompts = dict.fromkeys(name for clip in clips for name in clip["captions"])
    shown = [
        {**clip, **{f"{name}:": text for name, text in clip["captions"].items()}} for clip in clips
    ]
    columns = ("video", "start_s", "end_s", *(f"{name}:" for name in prompts))
    print_rows(clips if how.json_ else shown, columns, json_=how.json_)


def _list(
    cache: Path,
    rows: Callable[[Catalog], list[Any]],
    columns: tuple[str, ...],
    shown: Shown,
) -> None:
    from cogcache.catalog import Catalog
    from cogcache.cli.times import as_players_show

    with _uncollected():
        with Catalog(catalog_of(cache)) as catalog:
            listed = rows(catalog)
        found = shown.chosen(listed if shown.json_ else as_players_show(listed))
        columns = (*columns, *(n for n in _WHERE_THERE_IS_ANY if any(row.get(n) for row in found)))
        print_rows(found, shown.columns or columns, json_=shown.json_)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Have nobody look for rings of objects while a `with` block runs.

    The rows of a large catalog are millions of objects, and none is in a ring: to look through
    them again and again takes a tenth of a listing's time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
