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
    key: str | None = None,
    video_digest: str | None = None,
) -> None:
    """Note that a clip could not be done, under each file that holds it."""
    run = report.run
    for video in videos:
        catalog.failures.add(
            failure_row(video, span, "extract", error, run=run, key=key, video_digest=video_digest)
        )
    report.counts.failed += 1
    logger.warning("%s", printable(error.problem))
