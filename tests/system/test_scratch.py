"""What waits on the disk goes with its process, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cogcache.system.scratch import Scratch, sweep

HOLD = "from cogcache.system import Scratch; s = Scratch(); print(s.path, flush=True); input()"
LONG_AGO_S = time.time() - 3600


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder():
    """Another process with a folder of its own, as old as if it had run for an hour."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        process.folder = Path(process.stdout.readline().strip())
        (process.folder / "parked").write_bytes(b"weights")
        os.utime(process.folder, (LONG_AGO_S, LONG_AGO_S))
        yield process
        process.kill()


def test_a_folder_in_use_is_left_alone(holder):
    sweep()
    assert (holder.folder / "parked").exists()


def test_what_a_killed_process_left_is_removed_by_the_next(holder):
    holder.kill()
    holder.wait()
    Scratch().close()
    assert not holder.folder.exists()


def test_a_folder_that_has_no_lock_yet_is_left_alone(temporary):
    (temporary / "cogcache-half-new").mkdir()
    sweep()
    assert (temporary / "cogcache-half-new").exists()


def test_a_link_is_not_followed(temporary):
    (temporary / "theirs").mkdir()
    os.utime(temporary / "theirs", (LONG_AGO_S, LONG_AGO_S))
    (temporary / "cogcache-half-link").symlink_to("theirs")
    sweep()
    assert list((temporary / "theirs").iterdir()) == []


def test_closing_removes_the_folder(temporary):
    scratch = Scratch()
    (scratch.path / "parked").write_bytes(b"weights")
    scratch.close()
    assert list(temporary.iterdir()) == []
