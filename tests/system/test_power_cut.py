"""What a power cut, a failing disk or a kill leaves behind is found again whole, or is gone.

The long form of the kills is `make torture`.
"""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from caches import caption_of, key_of, make_cache, write_clip_features
from disk import Call, Disk, Files, states

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.upkeep.verify import verify
from cogcache.errors import CacheError
from cogcache.store.store import FeatureStore

ROOT = Path(__file__).parents[2]
VIDEO = Path("video.mp4")
KEY = key_of("ab" * 32)
SECTOR = 512


def seal(root: Path, disk: Disk) -> None:
    store = FeatureStore.open(root)
    with disk.attached():
        write_clip_features(store, VIDEO, KEY)


@pytest.fixture
def root(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def calls(root) -> list[Call]:
    disk = Disk(root)
    seal(root, disk)
    return disk.calls


def lay_out(folder: Path, files: Files) -> FeatureStore:
    shutil.rmtree(folder, ignore_errors=True)
    store = FeatureStore.create_or_open(folder)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return store


def faults(folder: Path, calls: list[Call], *, acknowledged: bool) -> set[str]:
    """Return what is wrong in the states that a power cut after ``calls`` may leave."""
    found = set()
    for files in states(calls):
        store = lay_out(folder, files)
        if KEY.digest not in store:
            found |= {"lost"} if acknowledged else set()
            continue
        try:
            store.prove(KEY.digest)
        except CacheError:
            found.add("damaged")
    return found


class TestEveryStateThatAPowerCutMayLeave:
    def test_the_calls_are_seen(self, calls):
        kinds = [call.kind for call in calls if call.kind != "mkdir"]
        assert kinds[-5:] == ["create", "write", "sync", "rename", "sync"]

    def test_holds_the_whole_file_or_none(self, calls, tmp_path):
        for number in range(len(calls) + 1):
            done = number == len(calls)
            found = faults(tmp_path / "after", calls[:number], acknowledged=done)
            assert not found, f"after {number} calls: {found}"

    def test_can_be_gone_on_from(self, calls, tmp_path):
        for number in range(len(calls) + 1):
            for files in states(calls[:number]):
                store = lay_out(tmp_path / "after", files)
                store.remove_unfinished()
                write_clip_features(store, VIDEO, KEY)
                store.prove(KEY.digest)

    @pytest.mark.parametrize(
        ("left_out", "fault"), [(".partial", "damaged"), (KEY.digest[:2], "lost")]
    )
    def test_would_not_do_so_without_each_sync(self, calls, tmp_path, left_out, fault):
        """Shows that the test can fail."""
        kept = [
            call for call in calls if call.kind != "sync" or not str(call.path).endswith(left_out)
        ]
        assert len(kept) < len(calls)
        assert fault in faults(tmp_path / "after", kept, acknowledged=True)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_whichever_call_fails_no_damaged_file_is_left_and_the_next_try_succeeds(tmp_path, error):
    for number in range(100):
        root = tmp_path / f"{error}-{number}"
        store = FeatureStore.create_or_open(root)
        disk = Disk(root, fail_at=number, error=error)
        try:
            seal(root, disk)
        except CacheError as raised:
            assert str(raised).count("\n") == 1  # noqa: PT017 - each of many
        if len(disk.calls) <= number:
            break
        if KEY.digest in store:
            store.prove(KEY.digest)
        assert not [*root.rglob("*.partial")], f"call {number}"
        write_clip_features(store, VIDEO, KEY)
        store.prove(KEY.digest)
    assert number >= 6


class TestACommitOfCaptions:
    """SQLite in WAL mode: a commit is what it adds to the log, synced before it is done."""

    @pytest.fixture
    def cut(self, tmp_path):
        """A function that returns the captions found after a cut in the middle of a commit."""
        make_cache(tmp_path, num_videos=1)
        cache = tmp_path / "cache"
        log = cache / "catalog.sqlite-wal"
        with Catalog(cache / "catalog.sqlite") as catalog:
            (clip,) = catalog.clips.rows()
            row = caption_of(clip)
            lengths = []
            for number in range(4):
                batch = [{**row, "caption_key": f"{number}-{i}"} for i in range(5)]
                catalog.captions.add(batch)
                lengths.append(log.stat().st_size)
            files = {name: (cache / name).read_bytes() for name in ("catalog.sqlite", log.name)}

        def after(kept: bytes) -> set[str]:
            folder = tmp_path / "after"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "catalog.sqlite").write_bytes(files["catalog.sqlite"])
            (folder / log.name).write_bytes(kept)
            with Catalog(folder / "catalog.sqlite") as catalog:
                assert catalog._file.query("PRAGMA integrity_check")[0][0] == "ok"
                return {caption["caption_key"] for caption in catalog.captions.rows()}

        return after, files[log.name], lengths

    def test_is_there_whole_or_not_at_all_whichever_sectors_of_it_are_lost(self, cut):
        after, log, lengths = cut
        start, stop = lengths[-2:]
        acknowledged = {f"{number}-{i}" for number in range(3) for i in range(5)}
        last = {f"3-{i}" for i in range(5)}
        rng = random.Random(0)
        seen = set()
        for trial in range(120):
            sectors = range(start, stop, SECTOR)
            lost = {s for s in sectors if rng.random() < (trial - 1) / 60}
            kept = bytearray(log)
            for sector in lost:
                kept[sector : min(sector + SECTOR, stop)] = bytes(min(SECTOR, stop - sector))
            end = rng.choice([stop, *sectors]) if trial > 1 else stop
            found = after(bytes(kept[:end]))
            assert acknowledged <= found
            assert found & last in (set(), last)
            seen.add(len(found & last))
        assert seen == {0, 5}

    def test_is_synced_before_it_is_acknowledged(self, tmp_path):
        make_cache(tmp_path, num_videos=1)
        with Catalog(tmp_path / "cache" / "catalog.sqlite") as catalog:
            (mode,), (sync,) = (
                catalog._file.query(f"PRAGMA {name}")[0] for name in ("journal_mode", "synchronous")
            )
        assert (mode, sync) == ("wal", 2)


@pytest.mark.parametrize("stage", ["extract", pytest.param("caption", marks=pytest.mark.slow)])
def test_a_stage_that_is_killed_at_any_moment_loses_nothing_and_makes_nothing_twice(
    stage, tmp_path
):
    command = [
        sys.executable,
        "-m",
        "benchmarks.torture",
        stage,
        "--kills=6",
        f"--folder={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kills" in done.stdout
    assert verify(tmp_path / "cache") == []
