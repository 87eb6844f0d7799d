"""System calls that fail by the kernel's word, and disks that are really full.

The long form of the first is `make torture`.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from scenes import partial_files, write_scene

from cogcache.catalog.upkeep.verify import verify
from cogcache.cli import CogcacheGroup, main

ROOT = Path(__file__).parents[2]


def traces() -> bool:
    """Say whether strace is there and may look at other processes."""
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return tried.returncode == 0


def mounts(folder: Path, size: str) -> bool:
    """Mount a disk in memory on a folder, where that is allowed; return whether it was."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not traces(), reason="needs strace, and leave to trace")
def test_whichever_system_call_fails_nothing_is_lost_and_the_next_try_succeeds():
    command = [sys.executable, "-m", "benchmarks.faults", "--every=29"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is lost" in done.stdout


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounts(folder, "1m"):
        pytest.skip("needs leave to mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def here(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_a_run_that_fills_the_disk_ends_with_a_message_and_can_be_gone_on_with(
    small_disk, tmp_path
):
    for seed in range(3):
        write_scene(tmp_path / f"{seed}.mp4", seed)
    cache, filler = small_disk / "cache", small_disk / "filler"
    how = ["--cache", cache, "--min-free=0", "--decode-workers=1"]
    assert here("extract", tmp_path / "0.mp4", *how).exit_code == 0
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    full = here("extract", tmp_path, *how)
    assert full.exit_code == 2, full.stdout + full.stderr
    assert "Traceback" not in full.stderr
    filler.unlink()
    rest = here("extract", tmp_path, *how)
    assert "2 clips made, 1 there already" in rest.stdout, rest.stderr
    assert verify(cache) == []
    assert partial_files(cache) == []


def test_a_disk_with_less_than_is_to_stay_free_is_told_from_a_full_one(small_disk, tmp_path):
    write_scene(tmp_path / "a.mp4", 0)
    cache = small_disk / "cache"
    done = here("extract", tmp_path / "a.mp4", "--cache", cache, "--decode-workers=1")
    assert done.exit_code == 1
    assert "less than --min-free" in done.stdout
    assert "0 clips made" in done.stdout


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="reads what Linux lets none read")
def test_a_fault_of_the_system_is_a_message_and_no_bug():
    @click.group(cls=CogcacheGroup)
    def group() -> None:
        pass

    @group.command()
    def read() -> None:
        Path("/proc/self/mem").read_bytes()

    done = CliRunner().invoke(group, ["read"])
    assert done.exit_code == 2
    assert os.strerror(errno.EIO) in done.output
