"""Kills each command that writes, runs it again, and checks that the result is that of one run.

    python -m benchmarks.torture_commands --kills 50
    python -m benchmarks.torture_commands gc merge --kills 10
    python -m benchmarks.torture_commands run train --kills 10 --ask

Half of the kills fall at random moments, the other half, where there is strace, at calls that
write, spread over all that one run makes. A command joins by a line in `commands.COMMANDS`.
Commands run in children that are forked from this process, so that libraries are imported once.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from benchmarks.commands import COMMANDS, Command, make_cache

WRITES = "write,pwrite64,rename,renameat,renameat2,unlink,unlinkat,mkdir,fsync,fdatasync"
CATALOG = "catalog.sqlite"
_OF_TIMES = {f"{CATALOG}-state", "catalog.backup.sqlite"}
"""Files whose bytes hold times."""
_ROWS = {
    "captions": "SELECT caption_key, video, caption, model FROM captions ORDER BY 1",
    "clips": "SELECT feature_key, video, size_bytes FROM clips ORDER BY 1",
    "failures": "SELECT video, reason FROM failures ORDER BY 1, 2",
    "edits": "SELECT DISTINCT caption_key, state, text, tags, set_name FROM edits ORDER BY 1, 2, 3",
    "forgotten": "SELECT caption_key, video, caption FROM forgotten ORDER BY 1",
    "scores": "SELECT name, feature_key, caption_key, score FROM scores ORDER BY 1, 2, 3",
}
_LIBRARIES = (
    "torch", "transformers", "torchvision", "bitsandbytes", "accelerate", "h5py", "hdf5plugin",
    "av", "matplotlib.pyplot", "pyarrow.parquet", "jinja2", "starlette", "uvicorn", "cogcache.cli",
    "cogcache.stages.extract", "cogcache.stages.caption", "cogcache.stages.train",
    "cogcache.stages.distill", "cogcache.web.report", "cogcache.selftest.demonstration",
)  # fmt: skip
_LEFT = ("*.partial*", "*.old", "*.note", "*.new", "*-journal", "claims/*", "working/*", "tmp/*")
_SUBREAPER = 36
"""``PR_SET_CHILD_SUBREAPER`` of prctl(2): whom a dead child leaves comes to this process."""


def rows_of_catalog(path: Path, folder: Path) -> dict[str, str]:
    """Return what a catalog says, without the times."""
    with closing(sqlite3.connect(path)) as conn:
        return {
            table: repr(conn.execute(sql).fetchall()).replace(str(folder), "")
            for table, sql in _ROWS.items()
        }


def tree(folder: Path, passed_by: tuple[str, ...] = ()) -> dict[str, str]:
    """Return what lies in a folder: the digests of files, and the rows of catalogs.

    Args:
        folder: the folder.
        passed_by: patterns of files whose bytes differ from run to run; they must be there.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in _OF_TIMES or path.name.endswith(("-wal", "-shm")):
            continue  # the last are SQLite's own; an idle one is empty
        if path.suffix == ".sqlite":
            found |= {f"{name}: {t}": rows for t, rows in rows_of_catalog(path, folder).items()}
        elif "quarantine" in path.parts:  # each attempt keeps what it replaced
            found["quarantine"] = "something"
        elif any(path.match(pattern) for pattern in passed_by):
            found[name] = "there"
        else:
            content = path.read_bytes().replace(os.fsencode(folder), b"")
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def left(folder: Path) -> list[str]:
    """Return what a command left that should not lie there."""
    return sorted(str(path.relative_to(folder)) for some in _LEFT for path in folder.rglob(some))


def import_libraries() -> None:
    """Import what commands import, once and not in each child."""
    import_module("torch").set_num_threads(1)
    for name in _LIBRARIES:
        with suppress(ImportError):  # of an extra
            import_module(name)
    sys.modules["__main__"].__spec__ = None  # workers would import all of it for nothing
    if hasattr(sys.modules["__main__"], "__file__"):
        del sys.modules["__main__"].__file__


def in_child(work: Callable[[], None], *, traced: bool = False) -> int:
    """Start a piece of work in a child of its own process group; return its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        forget_exit()
        while traced and "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
            time.sleep(0.001)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - shown
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(status)


def forget_exit() -> None:
    """Have the end of this child do what it asked for itself alone, and nothing of its parent's."""
    atexit._clear()
    for each in [*weakref.finalize._registry]:  # type: ignore[attr-defined]
        each.detach()
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]


def type_in(folder: Path, arguments: list[str], told: Path) -> None:
    """Be the command line, with all its temporary files within reach; ``told`` gets its errors."""
    from tqdm import tqdm

    from cogcache.cli import main
    from cogcache.system import scratch

    tqdm.set_lock(threading.RLock())  # its own one is shared, and may have died held
    os.environ |= {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    os.environ.pop("COGCACHE_MODEL", None)
    tempfile.tempdir = None
    scratch.settle_temporary_place()  # as a program does where it begins
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number, target in ((0, null), (1, null), (2, errors)):
        os.dup2(target, number)
    # Those of this process may be somebody's that keeps what is said.
    sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
    sys.argv = ["cogcache", *arguments]
    main()


@dataclass
class Torture:
    """One command over copies of one folder."""

    name: str
    folder: Path
    """Where it works, and what is compared."""
    aside: Path
    """A folder on a disk with room, for all else."""
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    kills: int = 0

    @property
    def command(self) -> Command:
        """What is killed."""
        return COMMANDS[self.name]

    def fresh(self) -> Path:
        """Return the folder that the command works in, as it is before it is typed."""
        begin, made = self.aside / "begin", self.aside / ("real" if self.command.real else "small")
        if not made.exists():  # once for all commands
            self._kept(made, lambda: make_cache(self.folder, real=self.command.real))
        if not begin.exists():
            self._kept(begin, lambda: self.command.prepare(self.folder), made)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(begin, self.folder, symlinks=True)
        return self.folder

    def _kept(self, place: Path, work: Callable[[], None], begin: Path | None = None) -> None:
        """Do some work in the folder, in a child, and keep what it makes of it elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if begin is None:
            (self.folder / "tmp").mkdir(parents=True)
        else:
            shutil.copytree(begin, self.folder, symlinks=True)
        assert ended(in_child(work)) == 0, f"{self.name}: its beginning cannot be made"
        shutil.move(self.folder, place)

    def typed(self, *, traced: bool = False) -> int:
        """Start the command; return the number of its process."""
        arguments = [*self.command.arguments(self.folder)]
        told = self.aside / "told"
        return in_child(lambda: type_in(self.folder, arguments, told), traced=traced)

    def told(self) -> str:
        """Return what the last command that was typed said of errors."""
        return (self.aside / "told").read_text(errors="replace")

    def undisturbed(self) -> tuple[dict[str, str], float]:
        """Run the command as it is; return what it leaves, and the seconds that it takes."""
        shutil.rmtree(self.aside / "begin", ignore_errors=True)
        self.fresh()
        began_s = time.monotonic()
        status = ended(self.typed())
        whole_s = time.monotonic() - began_s
        assert status == 0, f"ends with {status}: {self.told()}"
        return tree(self.folder, self.command.passed_by), whole_s

    def run(self, kills: int) -> None:
        """Kill the command so many times, each from the same beginning.

        Raises:
            AssertionError: what is there after the second time is not what one run leaves.
        """
        expected, whole_s = self.undisturbed()
        writes = self._writes() if shutil.which("strace") else 0
        at_writes = [1 + n * writes // (kills // 2 or 1) for n in range(kills // 2)]
        for number in range(kills):
            self.fresh()
            if writes and number % 2:
                self._kill_at_write(at_writes.pop())
            else:
                self._signal_after(self.rng.uniform(0.0, 1.0) * whole_s, signal.SIGKILL)
            self._type_again(expected)

    def ask_to_end(self, times: int) -> None:
        """Ask the command to end so many times, by SIGTERM and SIGINT in turn, at random moments.

        Raises:
            AssertionError: it ends otherwise than the signal says, with a traceback, or leaves what
                is half done; or, typed again, it does not leave what one run leaves.
        """
        expected, whole_s = self.undisturbed()
        for number in range(times):
            self.fresh()
            asked = (signal.SIGTERM, signal.SIGINT)[number % 2]
            delay_s = self.rng.uniform(0.0, 1.0) * whole_s
            status = self._signal_after(delay_s, asked)
            what = f"{self.name}, {asked.name} after {delay_s:.2f} s: {self.told()}"
            assert status in (128 + asked, 0), f"{status}: {what}"
            assert "Traceback" not in self.told(), what
            assert not (lies := left(self.folder)), f"{lies}: {what}"
            self._type_again(expected)

    def _type_again(self, expected: dict[str, str]) -> None:
        self.kills += 1
        again = ended(self.typed())
        found = tree(self.folder, self.command.passed_by)
        differing = sorted(found.items() ^ expected.items())
        assert not differing, f"{self.name}, kill {self.kills}: {differing[:4]} {self.told()}"
        assert again == 0, f"{self.name}: again {again}: {self.told()}"

    def _signal_after(self, delay_s: float, number: int) -> int:
        """Send a signal to the command so long after it was typed; return its exit status."""
        pid, end_s = self.typed(), time.monotonic() + delay_s
        while time.monotonic() < end_s:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(pid, number)
        return ended(pid)

    def _kill_at_write(self, nth: int) -> None:
        self._traced("-o", os.devnull, "-e", f"inject={WRITES}:signal=KILL:when={nth}")

    def _writes(self) -> int:
        """Return how many calls that write the command makes."""
        self.fresh()
        log = self.aside / "calls"
        self._traced("-o", str(log))
        return len(log.read_text(errors="replace").splitlines())

    def _traced(self, *how: str) -> None:
        pid = self.typed(traced=True)
        arguments = ["strace", "-f", "-qq", "-e", f"trace={WRITES}", *how, "-p", str(pid)]
        tracer = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ended(pid)
        tracer.wait()


def ended(pid: int) -> int:
    """Wait for a child and whom it left; return its exit status, 128 and more for a signal."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:  # what it had started ends with it, or is put to an end
        try:
            os.waitpid(-pid, os.WNOHANG)
        except ChildProcessError:
            break
        time.sleep(0.005)
    else:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        raise AssertionError("a process that a killed command had started works on")
    return status if status >= 0 else 128 - status


def adopt_orphans() -> None:
    """Have the children of killed children come to this process, so that their end is seen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", default=[*COMMANDS])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--add", type=Path, help="add the numbers to those of this file")
    parser.add_argument("--ask", action="store_true", help="by SIGTERM and SIGINT in place of -9")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    adopt_orphans()
    import_libraries()
    faults = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.commands:
            aside = Path(temporary)
            torture = Torture(name, aside / "work", aside, random.Random(given.seed))
            fault = None
            try:
                (torture.ask_to_end if given.ask else torture.run)(given.kills)
            except AssertionError as error:
                fault = str(error)
                faults += 1
            print(
                f"{name}: {torture.kills} kills, {fault or 'nothing lost, nothing left'}",
                flush=True,
            )
            if given.add:
                counts = json.loads(given.add.read_text()) if given.add.exists() else {}
                kills, found = counts.get(name, (0, 0))
                counts[name] = (kills + torture.kills, found + (fault is not None))
                given.add.write_text(json.dumps(counts, indent=1))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
