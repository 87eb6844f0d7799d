"""Videos that change during a run, and digests of a run that is broken off."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from scenes import catalog_of, settings
from videos import write_video

from cogcache.catalog.catalog import Catalog
from cogcache.errors import VideoError
from cogcache.settings.work_share import WorkShare
from cogcache.stages.clips.digests import DigestReader
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore
from cogcache.system.spool import Spool
from cogcache.video.file_state import check_unchanged, file_digest


def append_once_at_work(cache: Path, video: Path) -> threading.Thread:
    """Have a video grow when the run over it has its digest and decodes nothing yet."""

    def wait() -> None:
        until_s = time.monotonic() + 60
        with catalog_of(cache) as catalog:
            while (
                not catalog.files.digests_of({video: video.stat()}) and time.monotonic() < until_s
            ):
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
    FeatureStore.create_or_open(cache)
    thread = append_once_at_work(cache, grown)
    report = extract([still, grown], cache, settings())
    thread.join()
    assert (report.counts.done, report.counts.failed) == (1, 1)
    with catalog_of(cache) as catalog:
        (row,) = catalog.failures.rows()
        assert (row["video"], row["reason"]) == (os.fspath(grown), "changing")
    again = extract([still, grown], cache, settings())
    assert (again.counts.done, again.counts.cached, again.counts.failed) == (1, 1, 0)
    with catalog_of(cache) as catalog:
        assert not catalog.failures.rows()


def test_a_file_that_was_only_touched_has_not_changed(tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=5)
    digest = file_digest(video)
    check_unchanged(video, digest, (video.stat().st_size, 0))
    with pytest.raises(VideoError, match="has changed"):
        check_unchanged(video, "0" * 64, (video.stat().st_size, 0))


def test_digests_that_were_read_before_a_run_was_broken_off_are_remembered(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", num_frames=1) for number in range(3)]
    stats = {path: path.stat() for path in paths}
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        reader = DigestReader(stats, catalog, WorkShare(), Spool(tmp_path, 0))
        with reader:
            taken = dict(reader.take(60.0))
        assert taken
        assert catalog.files.digests_of(stats) == taken


def test_a_long_file_is_read_no_further_once_the_run_ends(tmp_path):
    path = tmp_path / "long.mp4"
    with path.open("wb") as file:
        file.truncate(40 << 30)  # a minute and more to read, of which nothing lies on the disk
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        with DigestReader({path: path.stat()}, catalog, WorkShare(), Spool(tmp_path, 0)) as reader:
            assert reader.take(0.1) == []
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 5
        assert reader.num_left == 1
