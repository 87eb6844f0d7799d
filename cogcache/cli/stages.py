"""`extract`, `caption`, and `run`, which is both."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from cogcache.catalog import STAGES
from cogcache.cli.options import as_arguments, cache_option, settings_options
from cogcache.settings import Settings
from cogcache.video import WHOLE, Span

if TYPE_CHECKING:
    from cogcache.stages import RunReport

COLUMNS = ("stage", "before_loading_bytes", "planned_peak_bytes", "measured_peak_bytes")
peaks_option = click.option(
    "--peaks",
    "peaks_path",
    type=click.Path(dir_okay=False, path_type=Path),
    hidden=True,
    help="Write what was planned and measured here, for the process that runs both stages.",
)


def write_peaks(report: RunReport, path: Path) -> None:
    """Write a stage's row of the table; nothing where no half was loaded."""
    row = report.row()
    if row["planned_peak_bytes"] is None:
        return
    peaks = {name: row[name] for name in ("planned_peak_bytes", "measured_peak_bytes")}
    told = {"stage": report.command, "before_loading_bytes": report.base_bytes, **peaks}
    path.write_text(json.dumps(told), "utf-8")


def peak_lines(paths: Sequence[Path]) -> list[str]:
    """Return the table of what stages wrote; nothing where none of them loaded anything."""
    from cogcache.cli.tables import as_table

    rows = list(_rows(paths))
    return ["", *as_table(rows, COLUMNS).splitlines()] if rows else []


def _rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        if path.exists():
            yield json.loads(path.read_text("utf-8"))


logger = logging.getLogger(__name__)

STAGE_ONE = ("model", "sampling", "clips", "vision", "limits", "machines")
STAGE_TWO = (
    "model",
    "sampling",
    "clips",
    "vision",
    "language",
    "generation",
    "summary",
    "limits",
    "machines",
)


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
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the catalog here, on this machine's own disk, and a copy of it in the cache: for a"
    " cache that several machines share. `cogcache merge` puts the copies together.",
)
features_option = click.option(
    "--features",
    metavar="URL",
    help="Prefix of an object store, such as s3://bucket/features, where a new cache keeps its"
    " features; it is remembered.",
)
videos_argument = click.argument("videos", nargs=-1, required=True, type=str)


@click.command()
@videos_argument
@cache_option
@clip_option
@retry_option
@catalog_option
@features_option
@peaks_option
@settings_options(*STAGE_ONE)
def extract(
    videos: tuple[str, ...],
    cache: Path,
    spans: tuple[Span, ...],
    retry_failed: bool,
    catalog_path: Path | None,
    features: str | None,
    peaks_path: Path | None,
    settings: Settings,
) -> None:
    """Stage one: encode VIDEOS with the vision half and cache the features.

    VIDEOS are files, folders, patterns, or @list.txt with a path a line.
    """
    from cogcache.stages.extract import extract as run

    _finish(
        run(
            videos, cache, settings,
            spans=spans, retry_failed=retry_failed, catalog_path=catalog_path, features=features,
        ),
        peaks_path,
    )  # fmt: skip


@click.command()
@click.argument("videos", nargs=-1, type=str)
@cache_option
@click.option("--follow", is_flag=True, help="Wait for clips that a running extract still adds.")
@clip_option
@catalog_option
@peaks_option
@settings_options(*STAGE_TWO, prompts=True)
def caption(
    videos: tuple[str, ...],
    cache: Path,
    follow: bool,
    spans: tuple[Span, ...],
    catalog_path: Path | None,
    peaks_path: Path | None,
    settings: Settings,
) -> None:
    """Stage two: caption from the cache with the language half alone.

    VIDEOS choose among the cached ones; none given captions all. So do --clip, and --segment and
    --scenes, among the clips of a video.
    """
    from cogcache.stages.caption import caption as run

    _finish(
        run(
            cache, settings,
            videos=videos or None, follow=follow, catalog_path=catalog_path, spans=spans,
        ),
        peaks_path,
    )  # fmt: skip


@click.command()
@videos_argument
@cache_option
@clip_option
@retry_option
@catalog_option
@features_option
@settings_options(*dict.fromkeys(STAGE_ONE + STAGE_TWO), prompts=True)
def run(
    videos: tuple[str, ...],
    cache: Path,
    spans: tuple[Span, ...],
    retry_failed: bool,
    catalog_path: Path | None,
    features: str | None,
    settings: Settings,
) -> None:
    """Both stages, each in a process of its own.

    VIDEOS are files, folders, patterns, or @list.txt with a path a line.
    """
    with TemporaryDirectory(prefix="cogcache-run-") as folder:
        peaks = [Path(folder, stage) for stage in STAGES]
        status = _both(videos, cache, spans, retry_failed, catalog_path, features, settings, peaks)
        _print(peak_lines(peaks))
    raise SystemExit(status)


def _both(
    videos: tuple[str, ...],
    cache: Path,
    spans: tuple[Span, ...],
    retry_failed: bool,
    catalog_path: Path | None,
    features: str | None,
    settings: Settings,
    peaks: Sequence[Path],
) -> int:
    """Run the stages, which write their peaks to `peaks`; return the exit status."""
    from cogcache.stages import Hours, run_stage, second_limits

    hours = Hours(settings.limits.max_hours)
    retry = ["--retry-failed"] if retry_failed else []
    retry += [f"--features={features}"] if features else []
    own = [f"--catalog={catalog_path}"] if catalog_path else []
    common = [f"--cache={cache}", *own]
    one = as_arguments(settings, *STAGE_ONE)
    clips = _clip_arguments(spans)
    first = run_stage(
        ["extract", *common, f"--peaks={peaks[0]}", *clips, *retry, *one, "--", *videos]
    )
    if first not in (0, 1):
        return first
    if hours.are_over:
        click.echo("caption: not begun, as --max-hours are over; run the same command to go on")
        return first
    limits = second_limits(settings, hours)
    two = as_arguments(settings.model_copy(update={"limits": limits}), *STAGE_TWO, prompts=True)
    # What is whole in this run is not to be captioned in the pieces of another one.
    cut = spans or settings.clips.segment_s or settings.clips.scenes
    clips = _clip_arguments(spans if cut else [WHOLE])
    second = run_stage(["caption", *common, f"--peaks={peaks[1]}", *clips, *two, "--", *videos])
    return max(first, second)


def _clip_arguments(spans: Sequence[Span]) -> list[str]:
    return [f"--clip={start}:{'' if end is None else end}" for start, end in spans]


def _finish(report: RunReport, peaks_path: Path | None) -> None:
    """Print a stage's report and end with its exit status."""
    from cogcache.stages import report_lines

    _print(report_lines(report))
    if peaks_path is not None:
        write_peaks(report, peaks_path)
    raise SystemExit(report.exit_status)


def _print(lines: Sequence[str]) -> None:
    """Print; where that cannot be, the work is done all the same, and `run` has to go on."""
    try:
        for line in lines:
            click.echo(line)
    except OSError as error:
        logger.warning("the report cannot be printed: %s; see `cogcache ls runs`", error.strerror)
        _let_go_of_stdout()


def _let_go_of_stdout() -> None:
    """Drop what waits to be written: Python would try again at its end, and call it an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
