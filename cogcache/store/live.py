"""Who is at work on a cache right now: a small file for each run, renewed every few seconds.

The file tells `cogcache status` how far the run is, and its age tells other runs whether it lives.
No locks: a shared folder may have none. What is not covered: a run that stands still for longer
than `EXPIRY_S` and then goes on; what it does is then done twice, to the same result.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from cogcache.system import CachePaths, machine, make_folder

logger = logging.getLogger(__name__)

BEAT_S: Final = 3.0
EXPIRY_S: Final = 60.0
"""Silence after which a run on another machine is taken for dead."""
_NAME: Final = re.compile(r"(?P<host>[^./\x00]{,150})\.(?P<pid>\d{1,18})\.[0-9a-f]{,32}", re.ASCII)
RunFacts = Mapping[str, Any]


class LiveRun:
    """This process at work on a cache.

    Args:
        root: folder of the cache.
        facts: is called at each beat, in a thread; what `cogcache status` shows.
    """

    def __init__(self, root: Path, facts: Callable[[], RunFacts]) -> None:
        self.root, self._facts = root, facts
        self._writing = threading.Lock()
        self.name = f"{machine()}.{os.getpid()}.{uuid4().hex}"
        self.path = CachePaths(root).working / f"{self.name}.json"
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")

    @contextmanager
    def beating(self) -> Iterator[LiveRun]:
        """Keep the file fresh while a `with` block runs, then remove it."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat_until, args=(stop,), daemon=True)
        try:
            self.beat()
            thread.start()
            yield self
        finally:
            stop.set()
            if thread.is_alive():
                thread.join()
            self.path.unlink(missing_ok=True)

    def show(self, facts: Callable[[], RunFacts]) -> None:
        """Show other facts from now on, see `LiveRun`."""
        self._facts = facts
        self.beat()

    def _beat_until(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_S):
            with suppress(OSError):  # a full disk is noticed where it matters
                self.beat()

    def beat(self) -> None:
        """Write the file anew, whole or not at all."""
        facts = {"pid": os.getpid(), "host": platform.node(), "started_at": self.started_at}
        text = json.dumps({**facts, **self._facts()}, default=str)
        make_folder(self.path.parent)  # somebody may have removed it meanwhile
        fresh = self.path.with_suffix(".new")
        with self._writing:  # the thread's beat, and one that shows something else
            try:
                fresh.write_text(text, encoding="utf-8")
                fresh.replace(self.path)
            finally:  # a full disk leaves it half written
                fresh.unlink(missing_ok=True)


def clock_s(root: Path) -> float:
    """Return the time by the clock of the machine that holds the cache.

    Of one that cannot be written, which nobody is at work on, it is that of this machine.
    """
    working = CachePaths(root).working
    try:
        make_folder(working)
        os.utime(working)
    except OSError:
        return time.time()
    return working.stat().st_mtime


def is_alive(root: Path, name: str, now_s: float) -> bool:
    """Say whether the run of this name is still at work.

    Args:
        root: folder of the cache.
        name: of a `LiveRun`.
        now_s: the time by the clock of the machine that holds the folder.
    """
    if not (known := _NAME.fullmatch(name)):
        return False
    try:
        # Opened, not only asked for: a network file system then asks its server anew, where it
        # would else tell what it has known for up to a minute.
        with (CachePaths(root).working / f"{name}.json").open("rb") as file:
            silent_s = now_s - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return False
    # A time that is yet to come is one from before the clock was set back, or from where a copy of
    # the cache was made: whoever lives has the right one at the next beat.
    beats = abs(silent_s) < EXPIRY_S
    return beats and (known["host"] != machine() or _runs(int(known["pid"])))


def live_runs(root: Path) -> list[dict[str, Any]]:
    """Return what each run at work on a cache says of itself, the oldest first."""
    rows, paths = [], [*CachePaths(root).working.glob("*.json")]
    now_s = clock_s(root) if paths else 0.0
    for path in paths:
        with suppress(OSError, RecursionError, ValueError):  # whatever lies there
            row = json.loads(path.read_text(encoding="utf-8"))
            silent_s = max(now_s - path.stat().st_mtime, 0.0)
            state = "at work" if is_alive(root, path.stem, now_s) else "dead"
            if isinstance(row, dict) and "started_at" in row:  # else no run has written it
                rows.append({**row, "state": state, "silent_s": round(silent_s, 1)})
    return sorted(rows, key=lambda row: str(row["started_at"]))


def forget_dead(root: Path) -> list[str]:
    """Remove what dead runs have left of themselves; return their names."""
    files = CachePaths(root).working.glob("*.*.*.*")
    names = {path.stem for path in files if path.suffix in (".json", ".new")}
    now_s = clock_s(root) if names else 0.0
    dead = sorted(
        name for name in names if not is_alive(root, name, now_s) and not _begins(root, name, now_s)
    )
    for name in dead:
        for suffix in (".json", ".new"):
            (CachePaths(root).working / (name + suffix)).unlink(missing_ok=True)
    return dead


def _begins(root: Path, name: str, now_s: float) -> bool:
    """Say whether a run is writing its file for the first time just now."""
    known = _NAME.fullmatch(name)
    if known and known["host"] == machine() and not _runs(int(known["pid"])):
        return False  # it was killed while it wrote
    try:
        return abs(now_s - (CachePaths(root).working / f"{name}.new").stat().st_mtime) < 2 * BEAT_S
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
