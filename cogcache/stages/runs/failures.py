"""Noting clips that could not be done."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cogcache.catalog import Catalog, Failure
from cogcache.stages.runs.report import RunReport
from cogcache.system import Location
from cogcache.units import printable

logger = logging.getLogger(__name__)


def note_failure(
    catalog: Catalog, report: RunReport, videos: Sequence[Location], failure: Failure
) -> None:
    """Note that a clip could not be done, under each file that holds it.

    Args:
        catalog: takes a row for each file.
        report: counts one more clip that failed.
        videos: the files.
        failure: which clip, and why.
    """
    for video in videos:
        catalog.failures.add(failure.row(video, report.run))
    report.counts.failed += 1
    logger.warning("%s", printable(failure.error.problem))
