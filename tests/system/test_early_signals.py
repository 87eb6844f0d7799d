"""Signals in the first moments of a command, while its modules are imported, end it in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.caches import make_cache

PROGRAM = """
import os, signal, sys

module, number, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]

class AtImport:
    def find_spec(self, name, path=None, target=None):
        if name != module:
            return None
        sys.meta_path.remove(self)
        try:
            os.kill(os.getpid(), number)
        except SystemExit as end:
            if how == "hidden":
                raise ImportError("an error that a library makes of it") from end
            raise
        return None

sys.meta_path.insert(0, AtImport())
arguments, sys.argv[0] = sys.argv[4:], "cogcache"
from cogcache.cli import main
sys.argv[1:] = arguments
main()
"""


def ended_at_import(
    module: str, number: int, how: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that gets a signal when it imports a module for the first time."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, module, str(int(number)), how, *arguments],
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def extraction(cache: Path) -> list[str]:
    video = cache.with_name("odd.mp4")
    video.write_bytes(b"no video")
    return ["extract", f"{video}", "--cache", f"{cache}", "--model", "tiny"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["click", "cogcache.stages", "torch"])
def test_a_signal_while_modules_are_imported_ends_a_command_without_a_traceback(
    number, module, tmp_path
):
    cache = tmp_path / "cache"
    done = ended_at_import(module, number, "plain", *extraction(cache))
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    assert not [*cache.glob("working/*"), *cache.glob("claims/*")]


def test_a_signal_that_a_library_takes_for_its_own_error_is_not_hidden(tmp_path):
    cache = tmp_path / "cache"
    done = ended_at_import("torch", signal.SIGTERM, "hidden", *extraction(cache))
    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
    assert not [*cache.glob("working/*"), *cache.glob("claims/*")]


def served(cache: Path) -> tuple[subprocess.Popen[str], str]:
    """Start `serve`; return it and its address, as soon as that is said."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cogcache", "serve", f"--cache={cache}", "--port=18484"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().split()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_well_by_a_signal_under_load(number, tmp_path):
    make_cache(tmp_path, 3)
    process, address = served(tmp_path / "cache")
    ended, answered = threading.Event(), threading.Event()

    def ask() -> None:
        while not ended.is_set():
            with suppress(OSError), urllib.request.urlopen(f"{address}", timeout=5) as page:
                page.read()
                answered.set()

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    try:
        assert answered.wait(60)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        ended.set()
        process.kill()
        for client in clients:
            client.join()
    assert (process.returncode, "Traceback" in told) == (0, False)


def test_serve_ends_well_by_a_signal_as_soon_as_its_address_is_said(tmp_path):
    make_cache(tmp_path, 1)
    process, _ = served(tmp_path / "cache")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "")
