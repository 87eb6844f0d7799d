"""One worker process at a time, seen from its parent: handed jobs, watched, ended, replaced."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final

from cogcache.errors import CogcacheError
from cogcache.system import CONTEXT, Bug, ending, signals_blocked
from cogcache.video.workers.limits import Lost, resident_bytes
from cogcache.video.workers.process import Program, work

START_TIMEOUT_S: Final = 300.0
"""A worker that imports torch from a slow disk is not ready at once."""
LOOK_EVERY_S: Final = 0.05
"""Between looks at a worker's memory, which grows by some 100 MB meanwhile at worst."""
NEAR_LIMIT: Final = 0.75
"""Share of its memory beyond which a crash is put down to it: what cannot be had crashes too."""


class DecodeWorker:
    """One process at a time, started when there is a first job, replaced when it is lost."""

    def __init__(self, program: Program) -> None:
        self.program, self.limits = program, program.limits
        self.closed = False
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._jobs_done = 0
        self._fresh_bytes = self._seen_bytes = 0

    def run(self, job: object) -> object:
        """Return the task's result, a ClipError, or a Bug."""
        try:
            outcome = self._exchange(job)
        except Exception as error:  # noqa: BLE001 - else it would end a thread unseen
            return Bug(error)
        if isinstance(outcome, Lost):
            return self.program.explain(outcome, self.limits)
        return outcome

    def _exchange(self, job: object) -> object:
        data = ForkingPickler.dumps(job)
        if self._is_worn():
            self.stop()
        try:
            pipe = self._hand_over(data)
        except (EOFError, OSError):
            # It was killed while it had nothing to do: the job is not to blame.
            self.stop()
            pipe = self._hand_over(data)
        try:
            return self._answer(pipe)
        except (EOFError, OSError):
            return self._crashed(self.stop())

    def _answer(self, pipe: Connection[Any, Any]) -> object:
        """Wait for the answer, for as long and as much memory as the job may take."""
        end_s = time.monotonic() + self.limits.timeout_s
        while True:
            left_s = end_s - time.monotonic()
            if pipe.poll(max(min(left_s, LOOK_EVERY_S), 0)):
                self._jobs_done += 1
                return pipe.recv()
            if self._look() > (self.limits.memory_bytes or float("inf")):
                self.stop()
                return Lost("memory")
            if left_s <= 0:
                self.stop()
                return Lost("time")

    def _look(self) -> int:
        """Return the memory that the process has in use."""
        if self._process is not None and self._process.pid is not None:
            self._seen_bytes = resident_bytes(self._process.pid)
        return self._seen_bytes

    def _is_worn(self) -> bool:
        """Say whether the process is to be replaced, though nothing has gone wrong yet."""
        if self._pipe is None:
            return False
        grown = self._look() - self._fresh_bytes > self.limits.growth_bytes
        return grown or self._jobs_done == self.limits.jobs

    def _hand_over(self, data: memoryview) -> Connection[Any, Any]:
        """Return the pipe of a process that has taken the job up."""
        pipe = self._ready()
        pipe.send_bytes(data)
        pipe.recv()
        return pipe

    def _ready(self) -> Connection[Any, Any]:
        """Return the pipe of a process that waits for a job; start one if there is none."""
        if self._pipe is not None:
            return self._pipe
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=work, args=(theirs, self.program), daemon=True)
        with self._lock:
            if self.closed:
                raise CogcacheError("the workers are closed")
            with signals_blocked():
                process.start()
            self._process, self._pipe = process, ours
        theirs.close()  # so that its end is seen here
        said = self._first_word(ours)
        if isinstance(said, Bug):
            raise said.error
        self._jobs_done, self._fresh_bytes = 0, self._look()
        return ours

    def _first_word(self, pipe: Connection[Any, Any]) -> object:
        with suppress(EOFError, OSError):
            if pipe.poll(START_TIMEOUT_S):
                return pipe.recv()
        raise CogcacheError(
            f"a worker process could not be started: {ending(self.stop())}",
            "see its message above; a script that uses cogcache needs `if __name__ == '__main__':`",
        )

    def stop(self) -> int | None:
        """End the process for certain; return its exit code."""
        with self._lock:
            process, pipe = self._process, self._pipe
            self._process = self._pipe = None
        if process is None or pipe is None:
            return None
        process.join(0.2)  # after a crash: learn how it ended before ending it
        process.kill()
        process.join()
        pipe.close()
        return process.exitcode

    def close(self) -> None:
        """Have the thread that drives this worker end; callable from any thread."""
        self.closed = True
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def _crashed(self, exit_code: int | None) -> Lost:
        if exit_code == -getattr(signal, "SIGXCPU", 0):
            return Lost("processor")
        limit = self.limits.memory_bytes
        if limit is not None and self._seen_bytes > NEAR_LIMIT * limit:
            return Lost("memory")
        is_killed = exit_code == -getattr(signal, "SIGKILL", 0)
        return Lost("crash", ending(exit_code), is_killed)
