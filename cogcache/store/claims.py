"""Claims, by which several runs divide the clips of one cache among them.

A claim on a clip is a file ``claims/KEY.1``, made with O_EXCL, that names its run; the run's own
file (`live`) says whether it lives. What a dead run held is claimed as ``KEY.2``, and so on: no
file is ever taken from another run, and of two living claims the lower number counts.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from cogcache.store.live import LiveRun, clock_s, forget_dead, is_alive
from cogcache.system import CachePaths, make_folder


class Claims:
    """The claims of one run.

    Args:
        run: as whom to claim.
    """

    def __init__(self, run: LiveRun) -> None:
        self._run = run
        self._folder = CachePaths(run.root).claims
        self._held: dict[str, Path] = {}
        make_folder(self._folder)

    def take(self, key: str) -> bool:
        """Claim a clip; return whether it is now this run's to make."""
        if key in self._held:
            return True
        for number in count(1):
            path = self._folder / f"{key}.{number}"
            if _create(path, self._run.name):
                break
            if self._others(path):
                return False
        # A lower number may have been swept away and claimed anew since it was looked at.
        if any(self._others(self._folder / f"{key}.{lower}") for lower in range(1, number)):
            path.unlink(missing_ok=True)
            return False
        self._held[key] = path
        return True

    def is_free(self, key: str) -> bool:
        """Say whether a clip could be claimed now, without doing so."""
        return not any(self._others(path) for path in self._folder.glob(f"{key}.*"))

    def release(self, key: str) -> None:
        """Give a clip back: it is made, or is to be made by another."""
        if path := self._held.pop(key, None):
            path.unlink(missing_ok=True)

    def release_all(self) -> None:
        """Give back all that is held."""
        for key in [*self._held]:
            self.release(key)

    def _others(self, path: Path) -> bool:
        return _lives(self._run.root, path, clock_s(self._run.root))


def remove_dead_claims(root: Path) -> list[Path]:
    """Remove the claims and files of runs that are dead; return the claims removed."""
    claims = [path for path in CachePaths(root).claims.glob("*") if path.is_file()]
    now_s = clock_s(root) if claims else 0.0
    dead = [path for path in claims if not _lives(root, path, now_s)]
    for path in dead:
        path.unlink(missing_ok=True)
    forget_dead(root)  # not before: a claim whose run has no file is a dead one
    return dead


def _lives(root: Path, path: Path, now_s: float) -> bool:
    try:
        # What somebody else has put there names no run.
        name = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError):
        return False
    # An empty claim is one that is being written, or whose writer died at it.
    return is_alive(root, name, now_s) if name else _is_fresh(path, now_s)


def _is_fresh(path: Path, now_s: float) -> bool:
    try:
        return abs(now_s - path.stat().st_mtime) < 2.0  # the clock may have been set back
    except FileNotFoundError:
        return False


def _create(path: Path, name: str) -> bool:
    make_folder(path.parent)  # somebody may have removed it meanwhile
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, name.encode())
    except OSError:  # a full disk: an empty claim would be nobody's
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True
