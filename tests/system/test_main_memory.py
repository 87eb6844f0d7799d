"""How much main memory is free: of the machine, and of the control groups around this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cogcache.system.free_memory import available_bytes
from cogcache.units import MIB

GROUPS = Path("/sys/fs/cgroup/memory")


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def write_v2(folder: Path, limit: str, used: int, inactive: int = 0, active: int = 0) -> None:
    stat = f"anon 5\ninactive_file {inactive}\nactive_file {active}\n"
    write_group(folder, memory__max=limit, memory__current=f"{used}", memory__stat=stat)


def test_without_a_group_it_is_what_the_machine_has(tmp_path):
    found, free = available_bytes(tmp_path / "none"), psutil.virtual_memory().available
    assert abs(found - free) < 500 * MIB


def test_a_group_leaves_its_limit_less_what_it_holds_besides_pages_of_files(tmp_path):
    (tmp_path / "own").write_text("0::/job\n")
    write_v2(tmp_path / "groups/job", f"{64 * MIB}", 40 * MIB, inactive=5 * MIB, active=3 * MIB)
    assert available_bytes(tmp_path / "own", tmp_path / "groups") == 32 * MIB


def test_the_tightest_of_the_groups_around_it_counts(tmp_path):
    (tmp_path / "own").write_text("0::/slice/job\n")
    write_v2(tmp_path / "groups/slice", f"{8 * MIB}", 2 * MIB)
    write_v2(tmp_path / "groups/slice/job", "max", 2 * MIB)
    assert available_bytes(tmp_path / "own", tmp_path / "groups") == 6 * MIB


def test_a_container_finds_its_group_at_the_root(tmp_path):
    (tmp_path / "own").write_text("7:cpu,cpuacct:/docker/1\n5:memory:/docker/1\n")
    write_group(
        tmp_path / "groups/memory",
        memory__limit_in_bytes=f"{9 * MIB}",
        memory__usage_in_bytes=f"{4 * MIB}",
        memory__stat=f"total_inactive_file {MIB}\ntotal_active_file 0\nactive_file 77\n",
    )
    assert available_bytes(tmp_path / "own", tmp_path / "groups") == 6 * MIB


def test_a_group_that_is_full_leaves_nothing(tmp_path):
    (tmp_path / "own").write_text("0::/\n")
    write_v2(tmp_path / "groups", f"{MIB}", 3 * MIB)
    assert available_bytes(tmp_path / "own", tmp_path / "groups") == 0


def test_auto_sees_the_limit_of_a_real_group():
    if not os.access(GROUPS, os.W_OK):
        pytest.skip("control groups of version 1 cannot be made here")
    group = GROUPS / f"cogcache-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(f"{300 * MIB}")
        ask = "from cogcache.system.free_memory import available_bytes; print(available_bytes())"
        join = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c '{ask}'"
        found = int(subprocess.check_output(["sh", "-c", join]))
    finally:
        group.rmdir()
    assert 150 * MIB < found < 300 * MIB
