"""Care of a cache: `status`, `verify`, `gc`, `rebuild` and `merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import NamedPath, cache_option
from cogcache.cli.printing import json_option, print_rows
from cogcache.cli.times import as_players_show

if TYPE_CHECKING:
    from cogcache.catalog import Outdated


@click.command()
@cache_option
@json_option
def status(cache: Path, json_: bool) -> None:
    """Show the runs at work on a cache: how far, how fast, how much memory."""
    from cogcache.stages import shown, statuses

    rows = statuses(cache)
    columns = ("command", "state", "progress", "failed", "rate", "left", "memory", "started_at")
    print_rows(rows if json_ else [shown(row) for row in rows], columns, json_=json_)


@click.command()
@cache_option
@click.option("--fix", is_flag=True, help="Move damaged files away and correct the catalog.")
@json_option
def verify(cache: Path, fix: bool, json_: bool) -> None:
    """Check every feature file against its checksum and against the catalog.

    Features and captions that an earlier version made differently are listed too, with the reason.

    Exit status: 0 if all is well, was mended, or was only made by an earlier version; 1 if not.
    """
    from dataclasses import asdict

    from cogcache.catalog import outdated
    from cogcache.catalog import verify as find
    from cogcache.system import CachePaths
    from cogcache.video import look_at

    found = find(cache, fix=fix, look=look_at)
    rows = [asdict(each) for each in found]
    catalog = CachePaths(cache).catalog
    if not any(each.problem == "catalog_damaged" for each in found):
        rows += [_outdated_row(each, catalog) for each in outdated(catalog)]
    if rows or json_:
        print_rows(rows, ("problem", "path", "message", "fixed"), json_=json_)
    else:
        click.echo("all is well")
    raise SystemExit(0 if all(each.fixed for each in found) else 1)


def _outdated_row(found: Outdated, catalog: Path) -> dict[str, Any]:
    of = found.change.of
    return {
        "problem": f"outdated_{of}",
        "feature_key": found.key if of == "features" else None,
        "caption_key": found.key if of == "captions" else None,
        "path": catalog,
        "message": found.message,
        "fixed": found.made_again,
    }


@click.command()
@cache_option
@click.option("--dry-run", is_flag=True, help="Only list; this is the default.")
@click.option("--yes", is_flag=True, help="Delete what is listed, for good. Captions stay.")
@json_option
def gc(cache: Path, dry_run: bool, yes: bool, json_: bool) -> None:
    """List cached features whose video is gone or replaced.

    Mount all disks first: videos on a disk that is not mounted look as if they were gone.
    """
    from dataclasses import asdict

    from cogcache.catalog import collect
    from cogcache.units import format_bytes

    remove = yes and not dry_run
    unused = collect(cache, remove=remove)
    columns = ("video", "start_s", "end_s", "size_bytes", "feature_key")
    found = [asdict(each) for each in unused]
    print_rows(found if json_ else as_players_show(found), columns, json_=json_)
    if unused and not json_:
        size = format_bytes(sum(each.size_bytes for each in unused))
        click.echo(f"{size} deleted" if remove else f"{size}; --yes deletes them for good")


@click.command()
@cache_option
@click.option(
    "--from-backup",
    is_flag=True,
    help="Take rows that cannot be read from the backup that the last successful run made.",
)
def rebuild(cache: Path, from_backup: bool) -> None:
    """Rebuild the catalog from the feature files, and keep every undamaged caption.

    Exit status: 0, or 1 if a part of the old catalog could not be read.
    """
    from cogcache.catalog import rebuild as make

    made = make(cache, from_backup=from_backup)
    saved = ", ".join(f"{count} {table}" for table, count in made.saved.items())
    click.echo(f"{made.clips} clips from their files; from the old catalog: {saved or 'nothing'}")
    if made.left_out:
        click.echo(f"{made.left_out} damaged files left out: run `cogcache verify --fix`")
    if lost := [f"{count} {table}" for table, count in made.lost.items() if count]:
        click.echo(f"could not be read: {', '.join(lost)}")
    if made.uncounted:
        click.echo("so much is damaged that it is not known how many rows there were")
    if made.backup:
        click.echo(f"{made.backup} is of an earlier run: `cogcache rebuild --from-backup` adds it")
    if made.old:
        click.echo(f"the old catalog is {made.old}")
    raise SystemExit(0 if made.is_whole else 1)


@click.command()
@click.argument("sources", nargs=-1, type=NamedPath(exists=True, path_type=Path))
@click.option(
    "--into",
    type=NamedPath(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the cache to merge into; made if absent.",
)
@json_option
def merge(sources: tuple[Path, ...], into: Path, json_: bool) -> None:
    """Merge other caches into one; SOURCES are left unchanged.

    SOURCES are folders of caches, or catalogs over the features of the cache to merge into. None:
    the copies that runs with --catalog have left there. Of captions that differ, the one made
    first is kept, and the other is listed.

    Exit status: 0, or 1 where a damaged feature file was not taken.
    """
    from dataclasses import asdict

    from cogcache.catalog import merge as run

    merged = run(sources, into)
    rows = [asdict(each) for each in merged.conflicts]
    if rows or json_:
        columns = ("video", "start_s", "prompt_name", "kept", "dropped")
        print_rows(rows if json_ else as_players_show(rows), columns, json_=json_)
    if not json_:
        for line in merged.lines():
            click.echo(line)
    raise SystemExit(1 if merged.damaged else 0)
