"""Disks without room, and one that cannot be written any more while a run is at work on it.

The long form, of every command and ten sizes, is `benchmarks.full_disks`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.commands import COMMANDS
from benchmarks.full_disks import filled, hold, small_disk
from benchmarks.growth import write_clip
from benchmarks.made_up_cache import NUM_CLIPS, write_cache
from cogcache.catalog.upkeep.verify import verify

CLIPS = 40


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    try:
        mounted = small_disk(tmp_path / "disk")
        with mounted as folder:
            yield folder
    except PermissionError:
        pytest.skip("needs leave to mount a disk")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("gc", marks=pytest.mark.slow),
        "import",
        pytest.param("export csv", marks=pytest.mark.slow),
    ],
)
def test_a_command_on_a_full_disk_tells_so_leaves_nothing_and_goes_on_with_room(name, tmp_path):
    # In a process of its own: children of one that has threads, as tests leave them, may crash.
    command = [sys.executable, "-m", "benchmarks.full_disks", name, "--free=0", "--free=16384"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "are left out" in done.stdout:
        pytest.skip("needs leave to mount a disk")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: 2 sizes" in done.stdout


READERS = (
    ("ls", "--json"),
    ("ls", "clips"),
    ("search", "number"),
    ("status",),
    ("verify",),
    ("gc",),
    ("failures",),
)


def files_of(disk: Path) -> list[Path]:
    """Return what lies on a disk, but for the index of the log, which SQLite may make empty."""
    return sorted(path for path in disk.rglob("*") if not path.name.endswith("-shm"))


@pytest.mark.timeout(600)
def test_what_only_reads_needs_no_room_with_a_log_beside_the_catalog(disk, tmp_path):
    cache = disk / "cache"
    write_cache(disk)
    (cache / "working").mkdir(exist_ok=True)  # every run leaves it
    with closing(sqlite3.connect(cache / "catalog.sqlite")) as conn:
        conn.execute("UPDATE clips SET size_bytes = size_bytes")
        conn.commit()
        for part in cache.glob("catalog.sqlite*"):  # as a killed run leaves them
            shutil.copy(part, disk / f"{part.name}.kept")
    for part in disk.glob("*.kept"):
        part.rename(cache / part.stem)
    (cache / "catalog.sqlite-shm").unlink()
    assert (cache / "catalog.sqlite-wal").stat().st_size
    before = files_of(disk)
    with filled(disk, 0):
        for reader in (*READERS, ("export", f"{tmp_path / 'out.jsonl'}")):
            command = [sys.executable, "-m", "cogcache", *reader, f"--cache={cache}"]
            done = subprocess.run(command, cwd=disk, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{reader}: {done.stdout}{done.stderr}"
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == NUM_CLIPS
    assert files_of(disk) == before


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_bears_ten_sizes_of_free_room(name, disk, tmp_path):
    hold(name, disk, tmp_path)


@pytest.fixture
def failing_disk(tmp_path) -> Iterator[tuple[Path, Path]]:
    """A disk of its own, and the file by which it is told that it has a fault."""
    image, folder = tmp_path / "image", tmp_path / "failing"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    mount = ["mount", "-o", "loop,errors=remount-ro", str(image), str(folder)]
    for command in (["mkfs.ext4", "-q", str(image)], mount):
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs mkfs.ext4, and leave to mount a disk")
    try:
        found = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(folder)], capture_output=True, text=True, check=True
        )
        switch = Path("/sys/fs/ext4", Path(found.stdout.strip()).name, "trigger_fs_error")
        if not os.access(switch, os.W_OK):
            pytest.skip("needs a kernel that can be told of a fault of a disk")
        yield folder, switch
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.timeout(300)
def test_a_disk_that_turns_read_only_under_a_run_is_called_that(failing_disk, tmp_path):
    folder, switch = failing_disk
    (tmp_path / "clips").mkdir()
    for number in range(CLIPS):
        write_clip(tmp_path / "clips" / f"{number}.mp4", number)
    cache = folder / "cache"
    typed = ["extract", str(tmp_path / "clips"), f"--cache={cache}", "--model=tiny"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cogcache", *typed, "--min-free=0", "--decode-workers=1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not [*cache.glob("features/*/*.h5")]:
        time.sleep(0.01)
    switch.write_text("a fault")
    said, told = process.communicate(timeout=200)
    assert process.returncode == 2, said + told
    assert "Read-only file system" in told
    assert "Traceback" not in told
    assert "--min-free" not in said + told
    with pytest.raises(OSError, match="Read-only"):
        (folder / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "cogcache", "ls", "clips", f"--cache={cache}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # What was sealed last may have no row: the next run finds it by its file.
    assert {each.problem for each in verify(cache)} <= {"not_in_catalog"}
