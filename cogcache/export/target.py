"""Where an export goes: a file or folder that is whole or absent.

It is built under a temporary name in the same folder and renamed at the end. An existing target is
replaced only with `--overwrite`, and a folder only if an export made it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cogcache.errors import CacheError, ConfigError
from cogcache.system import make_folder, noted, put_right, replace, sync_folder, temporary_name

MARK: Final = ".cogcache-export"
"""A hidden file in each folder that an export made."""


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that exists, unless it may be replaced.

    Raises:
        ConfigError: it may not.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        problem = f"{out} exists already"
        raise ConfigError(problem, "name another place, or replace it with --overwrite")
    if out.is_dir() and (out.is_symlink() or not (out / MARK).is_file()):
        raise ConfigError(f"{out} was not made by an export", "name another place")


@contextmanager
def whole_file(out: Path, *, overwrite: bool, cache: Path | None = None) -> Iterator[Path]:
    """Give a path to write to; the file is at ``out`` once the block has ended well.

    What is unfinished is noted in ``cache``, so that a later command can remove it.

    Raises:
        CacheError: the disk is full or cannot be written.
        ConfigError: ``out`` may not be replaced.
    """
    check_free(out, overwrite=overwrite)
    if out.is_dir():
        raise ConfigError(f"{out} is a folder", "name a file")
    with _built(out, cache) as partial:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        check_free(out, overwrite=overwrite)
        partial.replace(out)


@contextmanager
def whole_folder(out: Path, *, overwrite: bool, cache: Path | None = None) -> Iterator[Path]:
    """Give a folder to fill; it is at ``out`` once the block has ended well.

    It is exchanged in one step for one that is there, where the file system can do that. What is
    unfinished is noted in ``cache``, so that a later command can remove it.

    Raises:
        CacheError: the disk is full or cannot be written.
        ConfigError: ``out`` may not be replaced.
    """
    check_free(out, overwrite=overwrite)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", "name a folder")
    with _built(out, cache) as partial:
        partial.mkdir()
        (partial / MARK).write_text("Made by `cogcache export`, which may replace this folder.\n")
        yield partial
        _sync(partial)
        check_free(out, overwrite=overwrite)
        replace(partial, out)


@contextmanager
def _built(out: Path, cache: Path | None) -> Iterator[Path]:
    partial = temporary_name(out)
    try:
        make_folder(out.parent)
        put_right(out)
        with noted(cache, "temporary", paths=[str(partial.absolute())]):
            yield partial
        sync_folder(out.parent)
    except OSError as error:
        problem = f"cannot write {out}: {error.strerror or error}"
        raise CacheError(problem, "mend it and export again") from error
    finally:  # not `except`: Ctrl-C must leave nothing behind either
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
