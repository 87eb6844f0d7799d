"""Names of files below a folder, made after videos whose paths may come from anybody.

A path in a catalog is only a text: it may contain `..`, be too long for a file system, or be the
name of something else in the folder. So new names are derived from it; it is never used directly.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from cogcache.errors import ConfigError
from cogcache.export.target import MARK
from cogcache.system import Location

MAX_PART_BYTES: Final = 180
"""Of one name: file systems take 255, and an ending comes behind it."""
MAX_PARTS: Final = 24
"""Most parts of a path below the export's folder; only the last parts of longer paths are kept."""
_TAKEN: Final = {MARK, "con", "prn", "aux", "nul"}
"""Reserved names: the export's own file, and devices of Windows."""


def names_below(paths: Sequence[Location], ending: str) -> list[Path]:
    """Return a path below a folder for each of ``paths``, each once, and none a folder of another.

    They keep the names below the folder that all have in common, without suffixes where
    these are not needed to tell them apart.

    Args:
        paths: where the videos lie, or are said to.
        ending: what is put behind each name, such as ``.txt``.

    Example:
        >>> names_below([Path("/v/a.mp4"), Path("/v/b/c.mp4")], ".txt")
        [PosixPath('a.txt'), PosixPath('b/c.txt')]
    """
    parts = _below_common([_parts(path) for path in paths])
    stems = [(*folders, PurePosixPath(name).stem or name) for *folders, name in parts]
    counts = Counter(map(_folded, stems))
    chosen = [
        stem if counts[_folded(stem)] == 1 else whole
        for stem, whole in zip(stems, parts, strict=True)
    ]
    return _told_apart(chosen, ending)


def _parts(path: Location) -> tuple[str, ...]:
    """Return the names on the way to a path: ``..`` goes up, and stops at the top."""
    parts: list[str] = []
    for part in (path.as_posix() if isinstance(path, Path) else path.url).split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(_clean(part))
    return (*parts[-MAX_PARTS:],) or ("video",)


def _clean(part: str) -> str:
    shown = "".join("_" if unicodedata.category(c) == "Cc" else c for c in part)
    # Bytes that are not UTF-8 stay as they are: as a path they are sound.
    data = shown.encode(errors="surrogateescape")
    if len(data) > MAX_PART_BYTES:
        begin = data[: MAX_PART_BYTES - 20].decode(errors="ignore")
        shown = f"{begin}-{hashlib.sha256(data).hexdigest()[:12]}"
    return f"_{shown}" if shown.partition(".")[0].lower() in _TAKEN or shown == MARK else shown


def _below_common(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    common = 0
    while all(len(path) > common + 1 for path in paths) and len({p[common] for p in paths}) == 1:
        common += 1
    return [path[common:] for path in paths]


def _folded(parts: tuple[str, ...]) -> tuple[str, ...]:
    # Some file systems take "A" and "a" for one.
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)


def _told_apart(names: Sequence[tuple[str, ...]], ending: str) -> list[Path]:
    folders = {_folded(name[:end]) for name in names for end in range(1, len(name))}
    taken: set[tuple[str, ...]] = set()
    found = []
    for *above, name in names:
        number, chosen = 1, (*above, f"{name}{ending}")
        while _folded(chosen) in taken | folders:
            number += 1
            chosen = (*above, f"{name}-{number}{ending}")
        taken.add(_folded(chosen))
        found.append(Path(*chosen))
    return found


def check_below(folder: Path, path: Path) -> None:
    """Refuse a path that does not lie below a folder, whatever links are on the way.

    Raises:
        ConfigError: it does not.
    """
    if not path.resolve().is_relative_to(folder.resolve()) or path.resolve() == folder.resolve():
        raise ConfigError(f"{path} does not lie in {folder}", "name another folder")
