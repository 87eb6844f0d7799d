"""Planned and measured memory of the stages of one `cogcache run`, in one table at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cogcache.stages.runs.report import RunReport

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
    from cogcache.tables import as_table

    rows = list(_rows(paths))
    return ["", *as_table(rows, COLUMNS).splitlines()] if rows else []


def _rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        if path.exists():
            yield json.loads(path.read_text("utf-8"))
