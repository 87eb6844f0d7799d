"""`extract`, `caption`, and `run`, which is both."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import NamedPath, cache_option
from cogcache.cli.options import settings_options
from cogcache.cli.toy import say_what_toy_knows
from cogcache.settings import Settings, leaves
from cogcache.units import format_clock, printable
from cogcache.video import Span

if TYPE_CHECKING:
    from cogcache.catalog import CaptionRow, Stage
    from cogcache.stages import RunReport, StageRequest, StageResult

COLUMNS = ("stage", "before_loading_bytes", "planned_peak_bytes", "measured_peak_bytes")
logger = logging.getLogger(__name__)

STAGE_ONE = ("model", "sampling", "clips", "vision", "limits", "machines")
STAGE_TWO = (
    "model",
    "sampling",
    "clips",
    "vision",
    "language",
    "inference",
    "generation",
    "summary",
    "quality",
    "limits",
    "machines",
)


IGNORED = tuple(
    leaf.name
    for leaf in leaves("vision")
    if leaf.name not in ("vision_dtype", "cache_point", "compile")
)
"""Settings of stage one that say how its work is done: stage two takes and ignores them."""


class SpanType(click.ParamType[Span]):
    """`10:20`, `10:` or `:20`, in seconds of the video."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Span:
        """Return begin and end; None ends with the video."""
        if isinstance(value, tuple):
            return value
        number = r"(\d+\.?\d*(?:e-?\d+)?)"
        match = re.fullmatch(rf"{number}?:{number}?", str(value))
        if match is None:
            self.fail(f"{value!r} is not START:END in seconds, such as 10:20 or 90:", param, ctx)
        start_s, end_s = float(match[1] or 0), float(match[2]) if match[2] else None
        if end_s is not None and end_s <= start_s:
            self.fail(f"{value!r} ends before it begins", param, ctx)
        return start_s, end_s


clip_option = click.option(
    "--clip",
    "spans",
    type=SpanType(),
    multiple=True,
    metavar="START:END",
    help="Take only this part of each video, in seconds; repeatable.",
)
retry_option = click.option(
    "--retry-failed", is_flag=True, help="Try again what failed in earlier runs."
)
catalog_option = click.option(
    "--catalog",
    "catalog_path",
    type=NamedPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the catalog here, on this machine's own disk, and a copy of it in the cache: for a"
    " cache that several machines share. `cogcache merge` puts the copies together.",
)
features_option = click.option(
    "--features-url",
    "--features",
    "features",
    metavar="URL",
    help="Prefix of an object store, such as s3://bucket/features, where a new cache keeps its"
    " features; it is remembered.",
)
report_option = click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
videos_argument = click.argument("videos", nargs=-1, required=True, type=str)


show_option = click.option(
    "--show/--no-show",
    default=None,
    help="Print captions as they come; as a rule, where there are ten or fewer.",
)


@click.command()
@videos_argument
@cache_option
@clip_option
@retry_option
@catalog_option
@features_option
@report_option
@settings_options(*STAGE_ONE, makes_clips=True)
def extract(
    videos: tuple[str, ...], cache: Path, settings: Settings, json_: bool, **asked: Any
) -> None:
    """Stage one: encode VIDEOS with the vision half and cache the features.

    VIDEOS are files, folders, patterns, or @list.txt with a path a line.
    """
    _say_begin("extract", settings, cache)
    request = _request(videos, cache, settings, asked, stage="extract")
    report = _done(request)
    say_what_toy_knows(settings, cache)
    _finish(report, request, json_=json_)


@click.command()
@click.argument("videos", nargs=-1, type=str)
@cache_option
@click.option("--follow", is_flag=True, help="Wait for clips that a running extract still adds.")
@clip_option
@catalog_option
@show_option
@report_option
@settings_options(*STAGE_TWO, prompts=True, ignored=IGNORED)
def caption(
    videos: tuple[str, ...], cache: Path, settings: Settings, json_: bool, **asked: Any
) -> None:
    """Stage two: caption from the cache with the language half alone.

    Without VIDEOS, all cached videos are captioned. --clip, --segment and --scenes choose among
    the clips of a video.
    """
    _say_begin("caption", settings, cache)
    say_what_toy_knows(settings, cache)
    request = _request(videos, cache, settings, asked, stage="caption")
    _finish(_done(request, quiet=json_), request, json_=json_)


@click.command()
@videos_argument
@cache_option
@clip_option
@retry_option
@catalog_option
@features_option
@show_option
@report_option
@settings_options(*dict.fromkeys(STAGE_ONE + STAGE_TWO), prompts=True, makes_clips=True)
def run(
    videos: tuple[str, ...],
    cache: Path,
    settings: Settings,
    json_: bool,
    **asked: Any,
) -> None:
    """Run both stages, each in its own process.

    VIDEOS are files, folders, patterns, or @list.txt with a path a line.
    """
    from cogcache.stages import run_both

    _say_begin("run", settings, cache)
    request = _request(videos, cache, settings, asked)
    reports: dict[str, dict[str, Any]] = {}

    def tell(stage: str, result: StageResult) -> None:
        if stage == "extract":
            say_what_toy_knows(settings, cache)
        if result.report:
            reports[stage] = result.report
            _print([] if json_ else result.report["told"]["lines"])

    status = run_both(request, tell, quiet=json_, verbose=_is_verbose())
    if json_:
        for row in reports.values():
            del row["told"]
        _print([json.dumps({"exit_status": status, **reports})])
    else:
        _print(_peak_lines(list(reports.values())))
        _print(_last_lines(list(reports.values())))
        if "caption" not in reports and status in (0, 1):
            _print(["caption: not begun, as --max-hours are over; run the same command to go on"])
    raise SystemExit(status)


@click.command(hidden=True)
@click.option("--result-fd", type=int, required=True, help="Where the report goes, as JSON.")
@click.option("--quiet", is_flag=True, help="Show no captions.")
def stage(result_fd: int, quiet: bool) -> None:
    """Do what the request on standard input asks for: a stage of `run`, in its own process."""
    from cogcache.stages import (
        StageRequest,
        failure_lines,
        next_lines,
        report_lines,
        report_object,
    )

    request = StageRequest.from_json(sys.stdin.read())
    report = _done(request, quiet=quiet)
    told = {
        "lines": report_lines(report, verbose=_is_verbose()),
        "failed": failure_lines(report, request.cache),
        "next": next_lines(report, request.cache),
    }
    with os.fdopen(result_fd, "w", encoding="utf-8") as pipe:
        json.dump({**report_object(report), "told": told}, pipe)
    raise SystemExit(report.exit_status)


def _request(
    videos: tuple[str, ...],
    cache: Path,
    settings: Settings,
    asked: dict[str, Any],
    stage: Stage = "extract",
) -> StageRequest:
    from cogcache.stages import StageRequest

    return StageRequest(stage=stage, videos=videos, cache=cache, settings=settings, **asked)


def _done(request: StageRequest, *, quiet: bool = False) -> RunReport:
    """Do one stage in this process."""
    from cogcache.stages.caption import Show
    from cogcache.stages.caption import caption as caption_stage
    from cogcache.stages.extract import extract as extract_stage

    common: dict[str, Any] = {"spans": request.spans, "catalog_path": request.catalog_path}
    if request.stage == "extract":
        return extract_stage(
            request.videos,
            request.cache,
            request.settings,
            retry_failed=request.retry_failed,
            features=request.features,
            **common,
        )
    return caption_stage(
        request.cache,
        request.settings,
        videos=request.videos or None,
        follow=request.follow,
        show=None if quiet else Show(_show, request.show),
        **common,
    )


def _show(row: CaptionRow, offset_s: float) -> None:
    """Print one caption, with the times of a player."""
    end = "" if row["end_s"] is None else f"-{format_clock(offset_s + row['end_s'])}"
    start = format_clock(offset_s + row["start_s"])
    part = f" {start}{end}" if row["start_s"] or end else ""
    video = min(row["video"], os.path.relpath(row["video"]), key=len)
    _print([printable(f"{video}{part} [{row['prompt_name']}] {row['caption']}")])


def _say_begin(command: str, settings: Settings, cache: Path) -> None:
    """Announce the work at once: importing the libraries takes seconds."""
    click.echo(f"{command}: {settings.model}, cache {cache}", err=True)


def _is_verbose() -> bool:
    return bool(click.get_current_context().find_root().params.get("verbose"))


def _finish(report: RunReport, request: StageRequest, *, json_: bool) -> None:
    """Print a stage's report and end with its exit status."""
    from cogcache.stages import report_lines, report_object

    if json_:
        _print([json.dumps(report_object(report))])
    else:
        _print(report_lines(report, request.cache, verbose=_is_verbose()))
    raise SystemExit(report.exit_status)


def _peak_lines(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of what was planned and measured; nothing where no half was loaded."""
    from cogcache.cli.tables import as_table

    rows = [
        {**row, "stage": row["command"]} for row in reports if row["planned_peak_bytes"] is not None
    ]
    return ["", *as_table(rows, COLUMNS).splitlines()] if rows else []


def _last_lines(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Return what to type next: where anything failed, and what follows the last stage."""
    failed = dict.fromkeys(line for row in reports for line in row["told"]["failed"])
    return [*failed, *(reports[-1]["told"]["next"] if reports else [])]


def _print(lines: Sequence[str]) -> None:
    """Print a report. If that fails, the work is done all the same, and `run` goes on."""
    try:
        for line in lines:
            click.echo(line)
    except OSError as error:
        logger.warning("the report cannot be printed: %s; see `cogcache ls runs`", error.strerror)
        _let_go_of_stdout()


def _let_go_of_stdout() -> None:
    """Drop buffered output: Python would try to write it at exit and report an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
