"""Runs each command that writes on a nearly full disk, with ten sizes of free space.

    sudo python -m benchmarks.full_disks
    sudo python -m benchmarks.full_disks gc import

Its folder, and TMPDIR, lie on a small disk in memory, which is filled up to what is left free. The
command has to end as it always does, or with status 2 and a message; nothing half done may lie
there, and typed again, with room, it leaves what one undisturbed run leaves. Needs root, to mount.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.commands import COMMANDS
from benchmarks.torture_commands import Torture, adopt_orphans, ended, import_libraries, left, tree

DISK_BYTES = 96 << 20
FREE_BYTES = (0, *(4096 << n for n in range(9)))
"""Of free room: none, and 4 KiB to 1 MiB."""


@contextmanager
def small_disk(folder: Path, size_bytes: int = DISK_BYTES) -> Iterator[Path]:
    """Mount a disk in memory on a folder while a `with` block runs.

    Raises:
        PermissionError: this user may not mount.
    """
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError("needs leave to mount a disk") from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(disk: Path, free_bytes: int) -> Iterator[None]:
    """Have no more room on a disk while a `with` block runs."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(1 << 20)) == 1 << 20:
                pass
        with suppress(OSError):
            while file.write(bytes(4096)):
                pass
        size_bytes = file.tell() - free_bytes
        file.truncate(size_bytes)
    try:
        yield
    finally:
        filler.unlink()


def hold(name: str, disk: Path, aside: Path, sizes: Sequence[int] = FREE_BYTES) -> list[int]:
    """Hold that a command bears each size of free room; return the statuses that it ended with.

    Raises:
        AssertionError: it does not.
    """
    torture = Torture(name, disk / "work", aside)
    expected, _ = torture.undisturbed()
    statuses = []
    for free_bytes in sizes:
        torture.fresh()
        what = f"{name}, {free_bytes} bytes free"
        with filled(disk, free_bytes):
            status = ended(torture.typed())
            told = torture.told()
            lies = left(torture.folder)
        statuses.append(status)
        assert status in (0, 2), f"{what}: status {status}: {told}"
        assert "Traceback" not in told, f"{what}: {told}"
        assert status != 2 or "Error: " in told, f"{what}: no message: {told}"
        assert not lies, f"{what}: left {lies}: {told}"
        again = ended(torture.typed())
        assert again == 0, f"{what}: again {again}: {torture.told()}"
        differing = sorted(
            tree(torture.folder, torture.command.passed_by).items() ^ expected.items()
        )
        assert not differing, f"{what}: {differing[:4]}"
    return statuses


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", default=[*COMMANDS])
    parser.add_argument("--free", type=int, action="append", metavar="BYTES", help="size to try")
    given = parser.parse_args()
    sizes = given.free or FREE_BYTES
    if os.geteuid():
        print("full disks are left out: to mount one takes root")
        return
    adopt_orphans()
    import_libraries()
    faults = 0
    with tempfile.TemporaryDirectory() as temporary:
        aside = Path(temporary)
        for name in given.commands:
            try:
                with small_disk(aside / "disk") as disk:
                    statuses = hold(name, disk, aside, sizes)
                print(f"{name}: {len(statuses)} sizes, ended with {statuses}", flush=True)
            except AssertionError as error:
                faults += 1
                print(f"{name}: {error}", flush=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
