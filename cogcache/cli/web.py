"""`serve`, `gallery` and `report`: what there is, to look at."""

from __future__ import annotations

import functools
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import NamedPath, cache_option
from cogcache.cli.filters import catalog_of, look_options, print_absent, selection_options_of_users
from cogcache.cli.numbers import Whole
from cogcache.errors import ConfigError
from cogcache.system import extra_hint

if TYPE_CHECKING:
    from cogcache.catalog import Look, Selection

EXTRAS = {"web": ("jinja2", "starlette", "uvicorn"), "plot": ("matplotlib",)}
PORT = 8484

_out = click.argument("out", type=NamedPath(dir_okay=False, path_type=Path))
_force = click.option(
    "--overwrite", "--force", "force", is_flag=True, help="Replace the file if there is one."
)


@click.command()
@cache_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=Whole(1, 65535), default=PORT, show_default=True, help="Port.")
@click.option(
    "--token",
    envvar="COGCACHE_TOKEN",
    metavar="TEXT",
    help="Token that visitors must give; required if others can reach the address.",
)
@click.option("--edit", is_flag=True, help="Let captions be reviewed in the pages; needs a token.")
@click.option(
    "--author", envvar="COGCACHE_AUTHOR", metavar="NAME", help="Who reviews; else the user's name."
)
def serve(
    cache: Path, host: str, port: int, token: str | None, edit: bool, author: str | None
) -> None:
    """Show clips, captions, failures, runs and figures in a browser.

    With --edit, captions can be reviewed in the browser; without --token, one is generated for it.
    """
    _need("web")
    from cogcache.web import Editing, address, serve

    catalog = catalog_of(cache)
    editing, where = None, address(host, port)
    if edit:
        if token is None:
            token = secrets.token_urlsafe(24)
            where = f"{where}review?token={token}"
        editing = Editing(token, author, exporter=functools.partial(_exported, catalog))
    # Not before a signal ends it in order: whoever reads the address may send one.
    serve(cache, host, port, token, lambda: click.echo(f"{where}  (Ctrl-C ends it)"), editing)


def _exported(catalog: Path, selection: Selection) -> list[dict[str, Any]]:
    """Return the rows that an export of captions has."""
    from cogcache.catalog import Look
    from cogcache.export import Wording, choose_items

    return [dict(item.row) for item in choose_items(catalog, selection, Wording(), Look()).items]


@click.command()
@_out
@cache_option
@click.option("--search", "text", metavar="TEXT", help="Only captions that this search finds.")
@click.option("--limit", type=Whole(1, 10_000), default=200, show_default=True, help="Most clips.")
@click.option("--title", default="Captions", show_default=True, help="Heading of the page.")
@_force
@selection_options_of_users
@look_options
def gallery(
    out: Path,
    cache: Path,
    force: bool,
    selection: Selection,
    look: Look,
    **page: Any,
) -> None:
    """Write captions beside their pictures into one HTML file, OUT, to send to others."""
    _need("web")
    from cogcache.catalog import still_missing
    from cogcache.web import write_gallery

    catalog_of(cache)
    _may_write(out, force=force)
    done = write_gallery(cache, out, selection, look=look, **page)
    click.echo(f"{out}: {done.clips} clips")
    print_absent(done.absent)
    raise SystemExit(1 if still_missing(done.absent) else 0)


@click.command()
@_out
@cache_option
@click.option(
    "--run",
    "runs",
    type=Whole(1),
    metavar="RUN",
    multiple=True,
    help="Run whose memory is drawn, as `cogcache ls runs` numbers them; one of each stage, in "
    "place of the last ones.",
)
@_force
def report(out: Path, cache: Path, runs: tuple[int, ...], force: bool) -> None:
    """Draw memory, time, throughput, lengths and failures into OUT: .png, .svg or .html."""
    _need("plot")
    from cogcache.web import write_report

    catalog_of(cache)
    _may_write(out, force=force)
    click.echo(write_report(cache, out, runs))


def _need(extra: str) -> None:
    if missing := [name for name in EXTRAS[extra] if find_spec(name) is None]:
        problem = f"this command needs {', '.join(missing)}"
        raise ConfigError(problem, extra_hint(extra))


def _may_write(out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        raise ConfigError(f"{out} exists", "name another file, or replace it with --overwrite")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {out.absolute().parent}", "make it first")
