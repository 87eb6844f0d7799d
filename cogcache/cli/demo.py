"""`demo`: both stages on clips whose true captions are known."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from cogcache.cli.cache_option import NamedPath
from cogcache.errors import ConfigError

if TYPE_CHECKING:
    from cogcache.selftest import Demonstration


NEXT = """To try on your own videos, of which tiny knows nothing:
  {cogcache} configs                           models and settings to start from
  {cogcache} plan clips/ --config qwen2.5-vl   what one takes on this machine
  {cogcache} run clips/ --cache cache --config qwen2.5-vl"""


def what_next() -> str:
    """Return three commands to go on with, as they can be typed here.

    `make demo` installs to a folder where a shell does not look: there the path is part of them.
    """
    own = sys.argv[0]
    is_found = shutil.which("cogcache") or Path(own).name != "cogcache"
    return NEXT.format(cogcache="cogcache" if is_found else quote(own))


@click.command()
@click.option(
    "--folder",
    type=NamedPath(file_okay=False, path_type=Path),
    default=None,
    help="Keep clips and cache there; else a temporary one.",
)
@click.option("--only-clips", is_flag=True, help="Make the clips in --folder, and no more.")
def demo(folder: Path | None, only_clips: bool) -> None:
    """Caption a dozen made-up clips in two stages and compare with the truth."""
    from cogcache.selftest import demonstrate, make_clips
    from cogcache.system import scratch_folder

    if only_clips:
        if folder is None:
            raise ConfigError("--only-clips makes clips to keep", "say where: --folder demo")
        clips = make_clips(folder / "clips")
        click.echo(f"{len(clips)} clips in {folder / 'clips'}")
        click.echo(f"  next: cogcache run {folder / 'clips'} --cache cache --model tiny")
        return
    with scratch_folder() as temporary:
        shown = demonstrate(folder or temporary)
    _print_demonstration(shown)
    raise SystemExit(0 if shown.passed else 1)


def _print_demonstration(shown: Demonstration) -> None:
    from cogcache.cli.tables import as_table
    from cogcache.selftest import MIN_SHARE
    from cogcache.units import format_seconds

    click.echo("\n" + as_table(_rows(shown), ("clip", "asked for", "said", "true")))
    click.echo(f"\nExact answers over all clips (least that passes: {MIN_SHARE:.0%}):")
    click.echo("  " + ", ".join(f"{name} {share:.0%}" for name, share in shown.shares().items()))
    click.echo(
        "\nPeak memory of each process; base_bytes: memory used before weights are loaded:\n"
    )
    columns = ("process", "peak_bytes", "base_bytes", "weights_bytes")
    click.echo(as_table(shown.memory(), columns) + "\n")
    click.echo("Where the time went:")
    for row in shown.runs:
        split = {part: float(str(seconds)) for part, seconds in row["split"].items()}
        parts = ", ".join(f"{part} {format_seconds(s)}" for part, s in split.items())
        click.echo(f"  {row['command']}: {parts}")
    click.echo(f"\n{what_next()}")


def _rows(shown: Demonstration) -> list[dict[str, str]]:
    """Two rows a clip: the sentence, and the short answers in one line."""
    rows = []
    for video in dict.fromkeys(answer.video for answer in shown.answers):
        of_clip = [answer for answer in shown.answers if answer.video == video]
        for asked, answers in (("a sentence", of_clip[:1]), ("short answers", of_clip[1:])):
            said, truth = (
                " ".join(texts) for texts in zip(*((a.said, a.truth) for a in answers), strict=True)
            )
            truth = "the same" if said == truth else truth
            rows.append({"clip": video, "asked for": asked, "said": said, "true": truth})
    return rows
