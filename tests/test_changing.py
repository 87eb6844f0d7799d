"""Videos that change during a run, and digests of a run that is broken off."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenes import catalog_of, settings
from videos import write_video

from cogcache.catalog import Catalog
from cogcache.digesting import remembered
from cogcache.errors import VideoError
from cogcache.extract import extract
from cogcache.file_memory import Stat
from cogcache.inputs import check_unchanged, file_digest


def append_once_at_work(cache: Path, video: Path) -> threading.Thread:
    """Have a video grow when the run over it has its digest and decodes nothing yet."""

    def wait() -> None:
        until_s = time.monotonic() + 60
        while not [*cache.glob("working/*.json")] and time.monotonic() < until_s:
            time.sleep(0.002)
        with video.open("ab") as file:
            file.write(b"\0\0\0\x08free")

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_what_has_grown_since_its_digest_was_taken_is_not_sealed_under_it(tmp_path):
    cache = tmp_path / "cache"
    still = write_video(tmp_path / "a.mp4", num_frames=5)
    grown = write_video(tmp_path / "b.mp4", num_frames=6)
    thread = append_once_at_work(cache, grown)
    report = extract([still, grown], cache, settings())
    thread.join()
    assert (report.counts.done, report.counts.failed) == (1, 1)
    with catalog_of(cache) as catalog:
        (row,) = catalog.failures()
        assert (row["video"], row["reason"]) == (os.fspath(grown), "changing")
    again = extract([still, grown], cache, settings())
    assert (again.counts.done, again.counts.cached, again.counts.failed) == (1, 1, 0)
    with catalog_of(cache) as catalog:
        assert not catalog.failures()


def test_a_file_that_was_only_touched_has_not_changed(tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=5)
    digest = file_digest(video)
    check_unchanged(video, digest, (video.stat().st_size, 0))
    with pytest.raises(VideoError, match="has changed"):
        check_unchanged(video, "0" * 64, (video.stat().st_size, 0))


def test_digests_that_were_read_before_a_run_was_broken_off_are_remembered(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", num_frames=1) for number in range(3)]
    stats: dict[Path, Stat] = {path: path.stat() for path in paths}

    def interrupted() -> Iterator[str]:
        yield from ("aa" * 32, "bb" * 32)
        raise KeyboardInterrupt

    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        with pytest.raises(KeyboardInterrupt):
            list(remembered(paths, interrupted(), stats, catalog))
        assert catalog.digests_of(stats) == {paths[0]: "aa" * 32, paths[1]: "bb" * 32}
