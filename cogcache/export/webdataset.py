"""WebDataset shards: tar files of a video, a text and a JSON object a sample."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from cogcache.export.trainer_folders import Placed

PER_TAR: Final = 1000


def write_tars(
    root: Path, count: int, place: Callable[[int, Path], Placed | None]
) -> Iterator[Placed]:
    """Write ``count`` samples into numbered tar files; yield each that is in.

    Nothing else may lie in that folder: readers would take it for data.

    Args:
        root: the folder.
        count: how many samples there are.
        place: puts the video file of a sample at a path; None leaves the sample out.
    """
    for first in range(0, count, PER_TAR):
        numbers = range(first, min(first + PER_TAR, count))
        yield from _tar(root, root / f"{first // PER_TAR:05}.tar", numbers, place)


def _tar(
    root: Path, path: Path, numbers: Sequence[int], place: Callable[[int, Path], Placed | None]
) -> Iterator[Placed]:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number in numbers:
            video = root / f".{number:08}.mp4"
            placed = place(number, video)
            if placed is not None:
                _add_sample(tar, f"{number:08}", video, placed)
                yield placed
            video.unlink(missing_ok=True)
        empty = not tar.getmembers()
    if empty:
        path.unlink()


def _add_sample(tar: tarfile.TarFile, key: str, video: Path, placed: Placed) -> None:
    # What TarInfo does not take from the file is the same for all: no dates, no owners.
    info = tarfile.TarInfo(f"{key}.mp4")
    info.size = video.stat().st_size
    with video.open("rb") as file:
        tar.addfile(info, file)
    text = json.dumps(_facts(key, placed), ensure_ascii=False, indent=4)
    for field, content in (("txt", placed.caption), ("json", text)):
        info, data = tarfile.TarInfo(f"{key}.{field}"), content.encode()
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _facts(key: str, placed: Placed) -> dict[str, object]:
    return {
        "key": key,
        "caption": placed.caption,
        "url": placed.item.row["video"],
        "status": "success",
        "error_message": None,
        **placed.about_clip(),
    }
