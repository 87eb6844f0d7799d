"""`export` and `import`: captions out of the catalog, and edited ones back into it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import NamedPath, cache_option
from cogcache.cli.filters import (
    SHOWN,
    catalog_of,
    look_options,
    print_absent,
    selection_options_of_users,
)
from cogcache.cli.judged import sort_option
from cogcache.errors import ConfigError
from cogcache.units import printable

if TYPE_CHECKING:
    from cogcache.catalog import Selection
    from cogcache.export import Exported, Options

Command = Callable[..., Any]


_OPTIONS = (
    click.option(
        "--media",
        type=click.Choice(["copy", "link"]),
        default="copy",
        help="Copy whole MP4 videos, or link to them; clips are always cut.",
    ),
    click.option("--prefix", default="", metavar="TEXT", help="Put this before each caption."),
    click.option("--suffix", default="", metavar="TEXT", help="Put this after each caption."),
    click.option("--trigger", default="", metavar="WORD", help="Begin each caption with a word."),
    click.option(
        "--captions-per-clip",
        metavar="HOW",
        help="If a clip has several captions: all, best:SCORE or random:SEED. Without it, formats "
        "with room for one caption refuse such clips.",
    ),
    sort_option,
    click.option("--overwrite", is_flag=True, help="Replace an earlier export."),
)


def _writing_options(command: Command) -> Command:
    """Give a command the options of how to write, as one argument ``options: Options``."""

    @functools.wraps(command)
    def with_options(*args: Any, **given: Any) -> Any:
        from cogcache.export import Options, Wording

        wording = Wording(*(given.pop(name) for name in ("prefix", "suffix", "trigger")))
        names = ("media", "overwrite", "look", "captions_per_clip", "sort")
        options = Options(wording, *(given.pop(name) for name in names))
        return command(*args, options=options, **given)

    decorated: Command = look_options(with_options)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


@dataclass(frozen=True, slots=True)
class Form:
    """In which form captions are written, and where if that is not OUT."""

    format_: str | None
    """None: as the suffix of OUT says."""
    beside: str | None
    """Form of the files beside the videos."""
    features: bool
    """Whether the clips' features are packed in place of their captions."""


def _form_options(command: Command) -> Command:
    """Give a command ``form: Form``."""

    @functools.wraps(command)
    def with_form(*args: Any, **given: Any) -> Any:
        form = Form(*(given.pop(name) for name in ("format_", "beside", "features")))
        return command(*args, form=form, **given)

    options = (
        click.option(
            "--format", "format_", metavar="NAME", help="Format; else told by OUT's suffix."
        ),
        click.option(
            "--beside",
            type=click.Choice(["txt", "vtt", "srt"]),
            help="Write beside each video, no OUT.",
        ),
        click.option(
            "--features", is_flag=True, help="Pack the clips' features into one HDF5 file."
        ),
    )
    decorated: Command = with_form
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


@click.command()
@click.argument("out", type=NamedPath(path_type=Path), required=False)
@cache_option
@_form_options
@click.option("--json", "json_", is_flag=True, help="Print what was written as one JSON object.")
@_writing_options
@selection_options_of_users
def export(
    out: Path | None,
    cache: Path,
    form: Form,
    json_: bool,
    options: Options,
    selection: Selection,
) -> None:
    """Write captions for others: rows, subtitles, or a folder that a trainer reads.

    Formats: jsonl, csv, parquet; txt, vtt, srt; videofolder, cogvideox, finetrainers, musubi,
    diffusion-pipe, ai-toolkit, simpletuner, ltx, webdataset. `export - --format jsonl` writes to
    standard output.
    """
    from cogcache.export import export as write
    from cogcache.export import export_beside, format_of

    if (out is None) == (form.beside is None):
        raise ConfigError("it is not clear where to write", "name OUT, or give --beside vtt")
    catalog = catalog_of(cache)
    if out is None:
        _finish(export_beside(catalog, str(form.beside), selection, options), json_=json_)
    elif str(out) == "-":
        _to_stdout(catalog, form.format_, selection, options)
    elif form.features:
        from cogcache.catalog import still_missing
        from cogcache.export import pack

        packed = pack(cache, out, selection, overwrite=options.overwrite, look=options.look)
        click.echo(f"{packed.clips:,} clips packed")
        print_absent(packed.absent)
        raise SystemExit(1 if still_missing(packed.absent) else 0)
    else:
        _finish(write(catalog, out, format_of(out, form.format_), selection, options), json_=json_)


def _to_stdout(catalog: Path, format_: str | None, selection: Selection, options: Options) -> None:
    """Write to standard output, once the whole export is there: what fails writes nothing."""
    import shutil
    import sys

    from cogcache.export import ON_STDOUT
    from cogcache.export import export as write
    from cogcache.system import scratch_folder

    if format_ not in ON_STDOUT:
        raise ConfigError("`export -` writes rows or subtitles", f"--format {'|'.join(ON_STDOUT)}")
    with scratch_folder() as folder:
        path = folder / f"out.{format_}"
        done = write(catalog, path, format_, selection, options)
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.flush()
    raise SystemExit(0 if done.is_whole else 1)


def _finish(done: Exported, *, json_: bool = False) -> None:
    if json_:
        told = {"captions": done.captions, "empty": done.empty, "left_out": done.left_out}
        told["rejected"] = done.rejected
        told |= {"absent": [str(each) for each in done.absent], "notes": done.notes}
        click.echo(json.dumps(told, default=str))
        raise SystemExit(0 if done.is_whole else 1)
    click.echo(f"{done.captions:,} caption{'s' * (done.captions != 1)} written")
    if done.rejected:
        click.echo(f"{done.rejected:,} rejected captions left out (--include-rejected)", err=True)
    if done.empty:
        click.echo(f"{done.empty:,} empty captions left out", err=True)
    print_absent(done.absent)
    for video, reason in done.left_out[:SHOWN]:
        click.echo(f"left out: {video}: {reason}", err=True)
    if len(done.left_out) > SHOWN:
        click.echo(f"... and {len(done.left_out) - SHOWN:,} more", err=True)
    for note in done.notes:
        click.echo(note)
    raise SystemExit(0 if done.is_whole else 1)


@click.command("import")
@click.argument("source", type=NamedPath(exists=True, path_type=Path))
@cache_option
@click.option("--set", "set_", required=True, metavar="NAME", help="Name of the caption set.")
@click.option("--overwrite", is_flag=True, help="Replace captions that the set has already.")
@click.option(
    "--skip-unmatched", is_flag=True, help="Import the others where some fit no clip of the cache."
)
@click.option("--json", "json_", is_flag=True, help="Print what was taken as one JSON object.")
def import_(
    source: Path, cache: Path, set_: str, overwrite: bool, skip_unmatched: bool, json_: bool
) -> None:
    """Import captions from SOURCE as a separate set: JSONL, CSV, or a folder of .txt files.

    Each line names its clip as an export does: by feature_key, by video_digest, or by video, which
    may be relative, with start_s and end_s. A .txt file belongs to the video of the same name.
    Existing captions stay; the set is listed beside them, like a model of that name.
    """
    from dataclasses import asdict

    from cogcache.export import import_captions

    done = import_captions(
        source, catalog_of(cache), set_, overwrite=overwrite, skip_unmatched=skip_unmatched
    )
    if json_:
        click.echo(json.dumps({"set": set_, **asdict(done)}))
        raise SystemExit(1 if done.unmatched else 0)
    click.echo(f"{done.written:,} captions imported as {set_!r}, {done.same:,} were there already")
    if done.reviews:
        click.echo(f"{done.reviews:,} versions of reviews came with them")
    for each in done.unmatched[:SHOWN]:
        click.echo(f"left out: {printable(each)}", err=True)
    if len(done.unmatched) > SHOWN:
        click.echo(f"... and {len(done.unmatched) - SHOWN:,} more", err=True)
    raise SystemExit(1 if done.unmatched else 0)
