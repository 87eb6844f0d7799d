"""`demo`: both stages on clips whose true captions are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cogcache.demo import Demonstration


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Keep clips and cache there; else a temporary one.",
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
