"""Noting clips that could not be done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cogcache.catalog import Catalog, failure_row
from cogcache.errors import ClipError
from cogcache.stages.runs.report import RunReport
from cogcache.units import printable
from cogcache.video import Span

logger = logging.getLogger(__name__)


def note_failure(
    catalog: Catalog,
    report: RunReport,
    videos: Sequence[Path],
    span: Span,
    error: ClipError,
    key: str | None,
) -> None:
    """Note that a clip could not be done, under each file that holds it."""
    for video in videos:
        _add_failure(catalog, report, video, span, error, key)
    report.counts.failed += 1
    logger.warning("%s", printable(error.problem))


def _add_failure(
    catalog: Catalog, report: RunReport, video: Path, span: Span, error: ClipError, key: str | None
) -> None:
    catalog.failures.add(failure_row(video, span, "extract", error, run=report.run, key=key))
