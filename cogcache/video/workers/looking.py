"""A look at many files, to know how they are read; each costs a worker at worst."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogcache.errors import ClipError
from cogcache.settings import Vision
from cogcache.video.scenes import Film, measure
from cogcache.video.workers.limits import decode_limits
from cogcache.video.workers.pool import map_unordered


def look_at(files: Mapping[str, Path]) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """Go through the packets of files, decoding none.

    Args:
        files: by the digests of their bytes.

    Yields:
        Each digest with what is to be remembered of how its file is read; None where it cannot be.
    """
    vision = Vision()
    jobs = (Film(path, digest, _seen(path)) for digest, path in files.items())
    results = map_unordered(
        measure,
        jobs,
        workers=min(vision.decode_workers, max(len(files), 1)),
        limits=decode_limits(vision),
        ahead=2 * vision.decode_workers,
    )
    for each in tqdm(results, "look at videos", len(files), unit="video", disable=None):
        if each is not None:
            job, found = each
            yield job.digest, None if isinstance(found, ClipError) else found.reading


def _seen(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
