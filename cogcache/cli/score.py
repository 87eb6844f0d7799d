"""`score`: which captions and clips to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import cache_option
from cogcache.cli.filters import catalog_of, selection_options_beside_model
from cogcache.cli.numbers import Whole
from cogcache.cli.options import settings_options
from cogcache.cli.printing import json_option, print_rows
from cogcache.cli.search import DEFAULT_MODEL
from cogcache.cli.stages import catalog_option
from cogcache.settings import Settings

if TYPE_CHECKING:
    from cogcache.catalog import Selection

SCORED = ("model", "sampling", "vision", "language", "limits")


@click.command()
@click.argument("names", nargs=-1, metavar="[SCORE]...")
@cache_option
@catalog_option
@click.option(
    "--others", type=Whole(1), default=1, metavar="N",
    help="Clips before which `swap` puts each caption.",
)  # fmt: skip
@click.option(
    "--semantic-model", default=DEFAULT_MODEL, metavar="MODEL",
    help="What `consistency` compares captions with: a sentence-transformers model.",
)  # fmt: skip
@click.option(
    "--static", type=float, default=0.002, metavar="X",
    help="`motion` below which a clip counts as static.",
)  # fmt: skip
@click.option(
    "--alike", type=float, default=0.995, metavar="X",
    help="Cosine from which on two clips are near-duplicates.",
)  # fmt: skip
@click.option("--again", is_flag=True, help="Measure what was measured, too.")
@click.option("--show", "show_", is_flag=True, help="List the scores that there are; measure none.")
@click.option("--limit", type=Whole(1), default=20, help="With --show: list at most so many.")
@json_option
@selection_options_beside_model
@settings_options(*SCORED, prompts=True, model_needed=False, without=("limit",))
def score(
    names: tuple[str, ...],
    cache: Path,
    catalog_path: Path | None,
    selection: Selection,
    settings: Settings,
    json_: bool,
    **how: Any,
) -> None:
    """Score captions and clips: numbers that say which ones to look at. None is deleted.

    SCORE is text (words alone), clips (cached features alone), model (grounding and swap, with the
    language half), or the name of one score; text and clips if left out.
    """
    from cogcache.stages import ScoreRequest
    from cogcache.stages import score as run

    catalog = catalog_path or catalog_of(cache)
    show, limit = how.pop("show_"), how.pop("limit")
    request = ScoreRequest(names or ("text", "clips"), selection, **how)
    if show:
        _show(catalog, request.scores if names else (), limit, json_=json_)
        return
    done = run(cache, settings, request, catalog_path)
    click.echo("\n".join(done.lines), err=json_)
    for warning in done.report.warnings:
        click.echo(warning, err=True)
    if done.report.stopped:
        click.echo(f"stopped early ({done.report.stopped}); the same command goes on", err=True)
    if json_:
        _show(catalog, request.scores, None, json_=True)
    raise SystemExit(done.exit_status)


def _show(catalog: Path, names: tuple[str, ...], limit: int | None, *, json_: bool) -> None:
    """Print scores, the lowest first, each with what it is of."""
    from cogcache.catalog import Catalog

    with Catalog(catalog) as opened:
        rows = opened.scores.rows(names=names or None)
        videos = {row["feature_key"]: row["video"] for row in opened.clips.rows()}
        captions = {row["caption_key"]: row for row in opened.captions.rows()}
    shown = []
    for row in sorted(rows, key=lambda row: (row["name"], row["score"])):
        caption = captions.get(row["caption_key"])
        video = caption["video"] if caption else videos.get(row["feature_key"], "")
        text = caption["caption"] if caption else ""
        shown.append({**row, "video": video, "caption": text})
    print_rows(shown[:limit], ("name", "score", "video", "caption", "details"), json_=json_)
