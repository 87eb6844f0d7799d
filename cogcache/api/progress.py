"""A progress bar in a notebook: the stage is in a process of its own, whose bar nobody sees there.

On a terminal the stage's own process draws its bar; in a script without one there is none.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cogcache.store import live_runs

if TYPE_CHECKING:
    from cogcache.catalog import Stage

LOOKED_EVERY_S: Final = 0.5
_SETTLED: Final = ("cached", "done", "failed", "skipped")
"""Counts of a run that together say how far it is."""


@dataclass
class ProgressBar:
    """The bar of one stage; without a bar of tqdm it shows nothing."""

    bar: Any = None

    def show(self, counts: Mapping[str, Any]) -> None:
        """Show how far a run is, by its counts."""
        if self.bar is not None and isinstance(counts.get("found"), int):
            self.bar.total = counts["found"]
            self.bar.n = sum(counts.get(name, 0) for name in _SETTLED)
            self.bar.refresh()

    def end(self, report: Mapping[str, Any] | None) -> None:
        """Show what a run came to; None where it ended with an error."""
        if report is not None:
            self.show(report)


@contextmanager
def progress_bar(cache: Path, stage: Stage) -> Iterator[ProgressBar]:
    """Show in a notebook how far a stage is, while a `with` block runs it.

    Args:
        cache: folder of the cache: the run says there how far it is.
        stage: which one.
    """
    if not in_notebook():
        yield ProgressBar()
        return
    from tqdm.auto import tqdm  # without ipywidgets it draws with letters, and says so

    unit = "caption" if stage == "caption" else "clip"
    over = threading.Event()
    earlier = {_name(row) for row in live_runs(cache)}
    with tqdm(desc=stage, unit=unit, total=0) as bar:
        shown = ProgressBar(bar)

        def follow() -> None:
            while not over.wait(LOOKED_EVERY_S):
                with suppress(OSError):
                    for row in live_runs(cache):
                        if row.get("command") == stage and _name(row) not in earlier:
                            shown.show(row)

        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield shown
        finally:
            over.set()
            thread.join()


def in_notebook() -> bool:
    """Say whether this process is the kernel of a notebook."""
    return "ipykernel.kernelapp" in sys.modules


def _name(row: Mapping[str, Any]) -> tuple[object, ...]:
    return row.get("host"), row.get("pid"), row.get("started_at")
