"""Standard streams that may be closed, full or gone, and names with control characters."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from cogcache.system.starter import end_with_starter
from cogcache.units import printable

REPORTED = logging.getLogger("cogcache.stages.runs.progress")
"""Reports progress in log files, where there is no progress bar."""
_DAMAGE = logging.getLogger("cogcache.damage")
"""Reports each damaged row of a catalog that was left out."""

CHOSEN = logging.getLogger("cogcache.models.quantization.automatic")
"""Tells what `--quantization auto` stands for where that is another kind than everybody has."""


def make_ready(*, verbose: bool) -> None:
    """Make the standard streams usable, and have the library log to stderr."""
    _open_what_is_closed()
    end_with_starter()
    _keep_compiled()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is no bug
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING)
    for told in (REPORTED, CHOSEN):
        told.setLevel(logging.INFO)
    _DAMAGE.filters[:] = [DAMAGED_ROWS]
    DAMAGED_ROWS.told.clear()


def say(text: str, color: str) -> None:
    """Print on stderr, in colour where that is a terminal; without, where ``NO_COLOR`` is set.

    If the terminal is gone, nothing is said: the work goes on, or ends by its signal.
    """
    with suppress(OSError):
        click.echo(click.style(text, fg=color), err=True, color=_colors_wanted())


def _colors_wanted() -> bool | None:
    """Return False where ``NO_COLOR`` forbids them, see https://no-color.org; else None."""
    return False if os.environ.get("NO_COLOR") else None


def _keep_compiled() -> None:
    """Have torch keep compiled code in the user's cache folder; by default it uses ``TMPDIR``."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{home}/cogcache/torchinductor")


class DamagedRows(logging.Filter):
    """Counts the damaged rows that the library has told of; each is shown once a command."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a row has not been shown yet."""
        message = record.getMessage()
        is_new = message not in self.told
        self.told.add(message)
        return is_new


DAMAGED_ROWS = DamagedRows()


def _open_what_is_closed() -> None:
    """Open the null device where a standard stream is closed.

    Else a feature file or the catalog would get its number, and what libraries print its bytes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


class _Printable(logging.Formatter):
    """Control characters in a file's name would be commands to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable_lines(super().formatMessage(record))


def printable_lines(text: str) -> str:
    """Return a text whose lines hold nothing that a terminal would obey."""
    return "\n".join(map(printable, text.split("\n")))
