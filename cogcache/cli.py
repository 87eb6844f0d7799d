"""The command line: a command parses, makes one call into the library and prints.

Exit status: 0 all done, 1 some videos failed, 2 misuse.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.config import Settings
from cogcache.errors import CogcacheError, ConfigError
from cogcache.options import as_arguments, cache_option, settings_options

if TYPE_CHECKING:
    from cogcache.demo import Demonstration
    from cogcache.runs import RunReport

Span = tuple[float, float | None]
STAGE_ONE = ("model", "sampling", "clips", "vision")
STAGE_TWO = ("model", "sampling", "vision", "language", "generation")
FOLDER = click.Path(file_okay=False, path_type=Path)


class _Shown(click.ClickException):
    exit_code = 2


class CogcacheGroup(click.Group):
    """Shows our own errors as one message; any other error is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; the one place where our errors become click's."""
        try:
            return super().invoke(ctx)
        except CogcacheError as error:
            raise _Shown(str(error)) from error


class SpanType(click.ParamType[Span]):
    """`10:20`, `10:` or `:20`, in seconds of the video."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Span:
        """Return begin and end; None ends with the video."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+\.?\d*)?:(\d+\.?\d*)?", str(value))
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
json_option = click.option("--json", "json_", is_flag=True, help="Print one JSON array.")
videos_argument = click.argument("videos", nargs=-1, required=True, type=str)


@click.group(cls=CogcacheGroup)
@click.version_option(package_name="cogcache")
@click.option("--verbose", "-v", is_flag=True, help="Log what is done on the way.")
def main(verbose: bool) -> None:
    """Caption videos in two stages: encode once, caption for ever."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbose else logging.WARNING)


@main.command()
@videos_argument
@cache_option
@clip_option
@retry_option
@settings_options(*STAGE_ONE)
def extract(
    videos: tuple[str, ...],
    cache: Path,
    spans: tuple[Span, ...],
    retry_failed: bool,
    settings: Settings,
) -> None:
    """Stage one: encode VIDEOS with the vision half and cache the features.

    VIDEOS are files, folders, patterns, or @list.txt with a path a line.
    """
    from cogcache.extract import extract as run

    _finish(run(videos, cache, settings, spans=spans, retry_failed=retry_failed))


@main.command()
@click.argument("videos", nargs=-1, type=str)
@cache_option
@settings_options(*STAGE_TWO, prompts=True)
def caption(videos: tuple[str, ...], cache: Path, settings: Settings) -> None:
    """Stage two: caption from the cache with the language half alone.

    VIDEOS choose among the cached ones; none given captions all.
    """
    from cogcache.caption import caption as run

    _finish(run(cache, settings, videos=videos or None))


@main.command()
@videos_argument
@cache_option
@clip_option
@retry_option
@settings_options(*dict.fromkeys(STAGE_ONE + STAGE_TWO), prompts=True)
def run(
    videos: tuple[str, ...],
    cache: Path,
    spans: tuple[Span, ...],
    retry_failed: bool,
    settings: Settings,
) -> None:
    """Both stages, each in a process of its own.

    VIDEOS are files, folders, patterns, or @list.txt with a path a line.
    """
    from cogcache.stages import run_stage

    clips = [f"--clip={start}:{'' if end is None else end}" for start, end in spans]
    retry = ["--retry-failed"] if retry_failed else []
    common = [f"--cache={cache}"]
    first = run_stage(
        ["extract", *common, *clips, *retry, *as_arguments(settings, *STAGE_ONE), "--", *videos]
    )
    if first > 1:
        raise SystemExit(first)
    second = run_stage(
        ["caption", *common, *as_arguments(settings, *STAGE_TWO, prompts=True), "--", *videos]
    )
    raise SystemExit(max(first, second))


@main.command()
@click.argument("what", type=click.Choice(["captions", "clips", "runs"]), default="captions")
@cache_option
@json_option
def ls(what: str, cache: Path, json_: bool) -> None:
    """List captions (the default), clips or runs."""
    columns = {
        "captions": ("video", "start_s", "end_s", "prompt_name", "caption", "flags"),
        "clips": ("video", "start_s", "end_s", "num_frames", "size_bytes", "model", "decoder"),
        "runs": ("run", "command", "model", "started_at", "status", "measured_peak_bytes"),
    }
    _list(cache, lambda catalog: getattr(catalog, what)(), columns[what], json_=json_)


@main.command()
@cache_option
@json_option
def failures(cache: Path, json_: bool) -> None:
    """List what could not be done, with the reason."""
    columns = ("video", "start_s", "end_s", "stage", "reason", "message", "tries")
    _list(cache, lambda catalog: catalog.failures(), columns, json_=json_)


@main.command()
@json_option
def models(json_: bool) -> None:
    """List the families of models and what is known of each."""
    from dataclasses import asdict

    from cogcache.models.registry import FAMILIES

    _print([asdict(entry) for entry in FAMILIES], ("name", "models", "tested"), json_=json_)


@main.command()
@click.option("--cache", type=FOLDER, metavar="DIR", help="Folder whose disk is looked at.")
@json_option
def doctor(cache: Path | None, json_: bool) -> None:
    """Check the installation, decoders, 4-bit arithmetic, disk and device."""
    from dataclasses import asdict

    from cogcache.doctor import examine

    rows = [asdict(check) for check in examine(cache)]
    shown = rows if json_ else [row | {"ok": "ok" if row["ok"] else "FAULT"} for row in rows]
    _print(shown, ("check", "ok", "found"), json_=json_)
    raise SystemExit(0 if all(row["ok"] for row in rows) else 1)


@main.command()
@click.option(
    "--folder", type=FOLDER, default=None, help="Keep clips and cache there; else a temporary one."
)
def demo(folder: Path | None) -> None:
    """Caption a dozen made-up clips in two stages and compare with the truth."""
    import tempfile

    from cogcache.demo import demonstrate

    with tempfile.TemporaryDirectory(prefix="cogcache-demo-") as temporary:
        shown = demonstrate(folder or Path(temporary))
    _print_demonstration(shown)
    raise SystemExit(0 if shown.passed else 1)


def _print_demonstration(shown: Demonstration) -> None:
    from cogcache.demo import MIN_SHARE
    from cogcache.tables import as_table
    from cogcache.units import format_bytes, format_seconds

    rows = [
        {
            "clip": a.video,
            "asked for": a.question,
            "said": a.said,
            "true": "" if a.right else a.truth,
        }
        for a in shown.answers
    ]
    click.echo(as_table(rows, ("clip", "asked for", "said", "true")))
    click.echo("\nExact answers over all clips (least that passes: " + f"{MIN_SHARE:.0%}):")
    click.echo("  " + ", ".join(f"{name} {share:.0%}" for name, share in shown.shares().items()))
    click.echo("\nPeak memory of each process, libraries included:")
    named = {"extract": "vision half", "caption": "language half"}
    for row in shown.runs:
        click.echo(f"  {named[row['command']]:14} {format_bytes(row['measured_peak_bytes'] or 0)}")
    click.echo(f"  {'whole model':14} {format_bytes(shown.whole['host_bytes'])}")
    click.echo("Where the time went:")
    for row in shown.runs:
        split = {part: float(str(seconds)) for part, seconds in row["split"].items()}
        parts = ", ".join(f"{part} {format_seconds(s)}" for part, s in split.items())
        click.echo(f"  {row['command']}: {parts}")


def _finish(report: RunReport) -> None:
    """Print a stage's report and end with its exit status."""
    for line in report.lines():
        click.echo(line)
    raise SystemExit(1 if report.counts.failed or report.counts.skipped else 0)


def _list(
    cache: Path, rows: Callable[[Any], list[dict[str, Any]]], columns: Sequence[str], *, json_: bool
) -> None:
    from cogcache.catalog import Catalog
    from cogcache.store import FeatureStore

    FeatureStore.open(cache)
    if not (cache / "catalog.sqlite").is_file():
        raise ConfigError(f"{cache} has no catalog yet", "make one with `cogcache extract`")
    with Catalog(cache / "catalog.sqlite") as catalog:
        _print(rows(catalog), columns, json_=json_)


def _print(rows: Sequence[Any], columns: Sequence[str], *, json_: bool) -> None:
    from cogcache.tables import as_json, as_table

    click.echo(as_json(rows) if json_ else as_table(rows, columns))
