"""Limits memory with a control group, as hard as a small GPU does. Needs Linux and root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GROUPS = Path("/sys/fs/cgroup/memory")
SAMPLE_EVERY_S = 0.1
FIRST_TO_DIE = 1000
"""Score by which the kernel chooses whom to end first when the machine runs out of memory."""


def run_limited(limit_bytes: int, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a module inside a control group and return what it said and what it took.

    Args:
        limit_bytes: of all memory that is charged to the group, mapped files included.
        module: prints one JSON line; is given `--inside` too.
        arguments: of its command line.
    """
    group = GROUPS / f"cogcache-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        command = [sys.executable, "-m", module, *arguments, "--inside"]
        join = f"echo $$ > {group}/cgroup.procs; echo {FIRST_TO_DIE} > /proc/self/oom_score_adj"
        process = subprocess.Popen(
            ["sh", "-c", f'{join}; exec "$@"', "sh", *command], stdout=subprocess.PIPE, text=True
        )
        peaks = {"rss": 0, "mapped_file": 0}
        while process.poll() is None:
            for name, value in _figures(group).items():
                peaks[name] = max(peaks[name], value)
            time.sleep(SAMPLE_EVERY_S)
        said = process.stdout.read() if process.stdout else ""
        found: dict[str, Any] = {
            "limit_bytes": limit_bytes,
            "exit_status": process.returncode,
            "group_peak_anonymous_bytes": peaks["rss"],
            "group_peak_mapped_bytes": peaks["mapped_file"],
            "limit_hits": int((group / "memory.failcnt").read_text()),
        }
        return found | (json.loads(said.splitlines()[-1]) if said else {})
    finally:
        group.rmdir()


def _figures(group: Path) -> dict[str, int]:
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return {name: int(value) for name, value in lines if name in ("rss", "mapped_file")}


def status(field: str) -> int:
    """Return a field of this process' status in bytes, as the kernel has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
