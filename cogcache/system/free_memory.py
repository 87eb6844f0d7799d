"""How much main memory this process may still take: of the machine, and of its control groups.

A container or a job of a cluster is a control group whose limit the machine's own figure does not
show; past it the kernel kills. Version 2 of them and version 1, whose files are named otherwise:
https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_OWN_GROUPS: Final = Path("/proc/self/cgroup")
_MOUNTS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _Files:
    """What a version calls its files, and the file pages among the memory that is in use."""

    limit: str
    usage: str
    pages: tuple[str, str]


_V1: Final = _Files(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2: Final = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_bytes(own_groups: Path = _OWN_GROUPS, mounts: Path = _MOUNTS) -> int:
    """Return how much more memory this process can have without swapping, in bytes.

    Args:
        own_groups: what the kernel lists this process' control groups in.
        mounts: where the groups' files are.
    """
    rooms = (_room(folder, files) for folder, files in _groups(own_groups, mounts))
    return max(0, min([int(psutil.virtual_memory().available), *rooms]))


def _groups(own_groups: Path, mounts: Path) -> Iterator[tuple[Path, _Files]]:
    """Yield the folders of this process' groups and of those around them that bound memory."""
    if not own_groups.exists():  # not Linux
        return
    for line in own_groups.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        files, mount = _V2, mounts
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            files, mount = _V1, mounts / "memory"
        # A container sees its own group as the root, whatever the kernel calls it.
        inner = mount / name.lstrip("/")
        for folder in (inner, *inner.parents):
            if (folder / files.limit).exists():
                yield folder, files
            if folder == mount:
                break


def _room(folder: Path, files: _Files) -> int:
    """Return what a group leaves; pages of files count as free, since the kernel drops them."""
    limit = (folder / files.limit).read_text().strip()
    used = int((folder / files.usage).read_text())
    lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    pages = sum(int(value) for name, value in lines if name in files.pages)
    return int(psutil.virtual_memory().total) if limit == "max" else int(limit) - used + pages
