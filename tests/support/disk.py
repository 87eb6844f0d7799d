"""A disk that may lose what was not synced, and system calls that may fail, around `sealing`.

Every call by which `cogcache.system.atomic_files` changes the disk goes through one of six
functions. They are replaced by ones that note the call, or that fail the Nth.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Call:
    """One system call; paths are relative to the root of the disk."""

    kind: str
    path: Path
    content: bytes = b""
    target: Path | None = None


@dataclass
class Disk:
    """Notes the calls that change what is under ``root``, and fails the chosen one."""

    root: Path
    fail_at: int | None = None
    error: int = errno.EIO
    calls: list[Call] = field(default_factory=list)
    files: dict[int, Path] = field(default_factory=dict)

    def note(self, kind: str, path: Path, content: bytes = b"", target: Path | None = None) -> None:
        if self.fail_at == len(self.calls):
            self.calls.append(Call("failed", path))
            raise OSError(self.error, os.strerror(self.error), str(path))
        there = target.relative_to(self.root) if target else None
        self.calls.append(Call(kind, path.relative_to(self.root), content, there))

    @contextmanager
    def attached(self) -> Iterator[Disk]:
        """Put the disk under all of Python's ways to change a file that sealing takes."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in (
                (Path, "open"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"),
                (os, "fsync"), (os, "open"),
            ):  # fmt: skip
                patch.setattr(owner, name, self._wrapped(name, getattr(owner, name)))
            yield self

    def _wrapped(self, name: str, real: Any) -> Any:
        return getattr(self, f"_{name}_{'os' if real in (os.fsync, os.open) else 'path'}")(real)

    def _ours(self, path: Any) -> bool:
        return Path(path).is_relative_to(self.root)

    def _open_path(self, real: Any) -> Any:
        def open_(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
            if "x" not in mode or not self._ours(path):
                return real(path, mode, *more, **named)
            self.note("create", path)
            file = real(path, mode, *more, **named)
            self.files[file.fileno()] = path
            return _Written(file, self, path)

        return open_

    def _replace_path(self, real: Any) -> Any:
        def replace(path: Path, target: Path) -> Path:
            self.note("rename", path, target=Path(target))
            return real(path, target)

        return replace

    def _unlink_path(self, real: Any) -> Any:
        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path.exists():
                self.note("unlink", path)
            real(path, missing_ok)

        return unlink

    def _mkdir_path(self, real: Any) -> Any:
        def mkdir(path: Path, *more: Any, **named: Any) -> None:
            self.note("mkdir", path)
            real(path, *more, **named)

        return mkdir

    def _open_os(self, real: Any) -> Any:
        def open_(path: Any, *more: Any, **named: Any) -> int:
            descriptor: int = real(path, *more, **named)
            if self._ours(path) and Path(path).is_dir():
                self.files[descriptor] = Path(path)
            return descriptor

        return open_

    def _fsync_os(self, real: Any) -> Any:
        def fsync(descriptor: int) -> None:
            self.note("sync", self.files[descriptor])
            real(descriptor)

        return fsync


@dataclass
class _Written:
    """A file open for writing whose writes are noted."""

    file: Any
    disk: Disk
    path: Path

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: bytes) -> int:
        self.disk.note("write", self.path, bytes(content))
        return int(self.file.write(content))


Files = dict[Path, bytes]


def states(calls: list[Call]) -> Iterator[Files]:
    """Yield every state of the disk that a power cut after the last of ``calls`` may leave.

    What was written and not synced is there, absent, halved, or zeros; what was done to a folder
    and not synced is there or not, each for itself.
    """
    entries = [i for i, call in enumerate(calls) if call.kind in ("create", "rename", "unlink")]
    sure = {i for i in entries if _folder_synced(calls, i)}
    unsure = [i for i in entries if i not in sure]
    for kept in itertools.product((True, False), repeat=len(unsure)):
        done = sure | {i for i, keep in zip(unsure, kept, strict=True) if keep}
        for damage in ("whole", "none", "half", "zeros"):
            yield _replay(calls, done, damage)


def _folder_synced(calls: list[Call], index: int) -> bool:
    folder = calls[index].path.parent
    return any(call.kind == "sync" and call.path == folder for call in calls[index + 1 :])


def _replay(calls: list[Call], done: set[int], damage: str) -> Files:
    files: Files = {}
    contents: Files = {}
    for index, call in enumerate(calls):
        if call.kind == "write":
            synced = any(c.kind == "sync" and c.path == call.path for c in calls[index + 1 :])
            contents[call.path] = call.content if synced else _damaged(call.content, damage)
    for index, call in enumerate(calls):
        if index not in done:
            continue
        if call.kind == "create":
            files[call.path] = contents.get(call.path, b"")
        elif call.kind == "rename" and call.target:
            # The entry moves with its content, also where its creation was not yet on the disk.
            files[call.target] = files.pop(call.path, contents.get(call.path, b""))
        elif call.kind == "unlink":
            files.pop(call.path, None)
    return files


def _damaged(content: bytes, how: str) -> bytes:
    half = len(content) // 2
    return {
        "whole": content,
        "none": b"",
        "half": content[:half],
        "zeros": content[:half] + bytes(len(content) - half),
    }[how]
