"""Opens and ends a run, for every stage alike: it is announced, measured and written down."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cogcache.catalog import Catalog, notes_of, open_catalog, outdated, tidy
from cogcache.errors import CogcacheError
from cogcache.models import release_note
from cogcache.settings import Settings
from cogcache.stages.runs.progress import AtWork, announced, at_work
from cogcache.stages.runs.report import Counts, RunReport, Timings
from cogcache.store import FeatureStore, LiveRun
from cogcache.system import MemoryMonitor

logger = logging.getLogger(__name__)


@dataclass
class OpenedRun:
    """A run that others can see: its catalog, its timings, and its report once it has begun."""

    command: str
    settings: Settings
    catalog: Catalog
    live: LiveRun
    monitor: MemoryMonitor
    timings: Timings = field(default_factory=Timings)
    _report: RunReport | None = None

    @property
    def report(self) -> RunReport:
        """The report; there is one from `begin` on."""
        assert self._report is not None
        return self._report

    def warn_outdated(self, of: Literal["features", "captions"], family: str) -> None:
        """Warn of what is in the cache and would come out differently in this version."""
        for note in notes_of(outdated(self.catalog.path), of, family):
            logger.warning("%s", note)

    def begin(self, counts: Counts) -> RunReport:
        """Enter the run into the catalog, now that its work is listed.

        Args:
            counts: of the work that was found.
        """
        settings = self.settings
        number = self.catalog.runs.start(
            self.command, settings.model, settings.model_dump(mode="json")
        )
        share = settings.machines.shard
        self._report = RunReport(number, self.command, settings.model, counts, self.timings, share)
        self._report.fail_on_known = settings.limits.fail_on_known
        return self._report

    @contextmanager
    def working(self) -> Iterator[AtWork]:
        """Do the work in a `with` block: it stops at the run's limits and when it is asked to."""
        report = self.report
        with at_work(self.live, report, self.settings.limits, self.monitor.started_s) as at:
            yield at
        report.stopped, report.fault = at.stop.reason, at.stop.fault

    def finish(self) -> None:
        """Write what was measured into the run's row."""
        self.report.finish(self.monitor)
        self.catalog.runs.finish(self.report.run, self.report.end())

    def note_error(self, error: Exception) -> None:
        """Note in the catalog that the run ends with an error: it was not killed."""
        if self._report is None:
            return
        self.report.error = error.problem if isinstance(error, CogcacheError) else repr(error)
        with suppress(CogcacheError):  # it may be the catalog that fails
            self.finish()


@contextmanager
def open_run(
    command: str, cache: Path, settings: Settings, catalog_path: Path | None = None
) -> Iterator[OpenedRun]:
    """Show a run to others while a `with` block does it, and note how it ends.

    What dead processes left in the cache is cleared away first. A transformers that cogcache was
    never tried with is a warning.

    Args:
        command: `extract`, `caption`, `convert`, …
        cache: folder of the cache.
        settings: of the run; its row keeps them.
        catalog_path: catalog on this machine's own disk; None: that of the cache.

    Raises:
        CogcacheError: the cache or its catalog is not usable.

    Example:
        >>> with open_run("extract", cache, settings) as run:  # doctest: +SKIP
        ...     report = run.begin(Counts(found=1))
        ...     with run.working() as at:
        ...         report.counts.done += 1
    """
    if (note := release_note()) is not None:
        logger.warning("%s", note)
    tidy(FeatureStore.open(cache))
    # The run is announced before the catalog is opened: nobody must put that away meanwhile.
    with (
        announced(cache, command, settings) as live,
        open_catalog(cache, catalog_path, settings.machines.shard) as catalog,
    ):
        with MemoryMonitor() as monitor:
            run = OpenedRun(command, settings, catalog, live, monitor)
            try:
                yield run
            except Exception as error:
                run.note_error(error)
                raise
        run.finish()
