"""Features that an earlier reader made of other frames: named, refused and made anew."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from scenes import catalog_of, settings
from videos import write_video

from cogcache.catalog.readings import readings
from cogcache.catalog.search.selection import Selection
from cogcache.catalog.upkeep.verify import verify
from cogcache.export.exporting import Options, export
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.identity import identify
from cogcache.models.registry import family_of
from cogcache.stages.caption import caption
from cogcache.stages.clips.worklist import Wanted
from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore
from cogcache.video.file_state import file_digest
from cogcache.video.workers.looking import look_at

SMALL = settings()


@dataclass
class Old:
    """A cache with one clip whose features an earlier reader made, and one that it read right."""

    root: Path
    other: Path
    same: Path
    keys: dict[Path, str]

    @property
    def cache(self) -> Path:
        return self.root / "cache"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Old:
    root = tmp_path_factory.mktemp("old")
    other = write_video(root / "other.mkv", num_frames=20, pixel_ratio="4/3")
    same = write_video(root / "same.mkv", num_frames=20)
    report = extract([other, same], root / "cache", SMALL)
    assert report.counts.done == 2
    keys = _take_back(root / "cache", [other, same])
    return Old(root, other, same, keys)


def _take_back(cache: Path, videos: list[Path]) -> dict[Path, str]:
    """Turn features into those that a reader without a number made; return the keys they have."""
    store = FeatureStore.open(cache)
    family = family_of(Checkpoint.open("tiny"))
    with catalog_of(cache) as catalog:
        wanted = Wanted(SMALL, family, identify(family, "vision", catalog.files))
        found = {row["video"]: row for row in catalog.clips.rows()}
        keys = {}
        for video in videos:
            row = found[str(video)]
            key = wanted.key(file_digest(video), (0.0, None))
            keys[video] = key.digest
            if key.digest == row["feature_key"]:
                continue
            held = store.read(row["feature_key"])
            attributes = {**held.attributes, **key.fields()}
            store.write(key.digest, held.tensors, attributes)
            store.path_of(row["feature_key"]).unlink()
            catalog.clips.remove([row["feature_key"]])
            fields = {"feature_key": key.digest, "settings": key.fields()}
            fields["size_bytes"] = store.size_bytes(key.digest)
            catalog.clips.add([{**row, **fields}])
        digests = [file_digest(video) for video in videos]
        catalog.files._file.delete("memory", "name", [f"reading {each}" for each in digests])
    return keys


@pytest.fixture
def old(made, tmp_path) -> Old:
    shutil.copytree(made.cache, tmp_path / "cache")
    return Old(tmp_path, made.other, made.same, made.keys)


def test_a_clip_that_was_read_right_keeps_its_key_and_another_gets_a_new_one(old):
    report = extract([old.other, old.same], old.cache, SMALL)
    assert (report.counts.done, report.counts.cached) == (1, 1)
    with catalog_of(old.cache) as catalog:
        rows = catalog.clips.rows(video=str(old.other))
    samplings = {row["feature_key"]: row["settings"]["sampling"].get("reader") for row in rows}
    assert samplings.pop(old.keys[old.other]) is None  # the old features stay
    assert [*samplings.values()] == [2]


def test_verify_names_old_features_and_no_others(old):
    (found,) = verify(old.cache, look=look_at)
    assert (found.problem, found.feature_key) == ("other_reading", old.keys[old.other])
    assert "not square" in found.message


def test_verify_says_nothing_of_old_features_once_they_are_made_anew(old):
    extract([old.other], old.cache, SMALL)
    assert verify(old.cache, look=look_at) == []


def test_caption_refuses_old_features_and_captions_new_ones(old):
    how = settings(quantization="none", max_new_tokens=3)
    report = caption(old.cache, how)
    assert (report.counts.done, report.counts.failed) == (1, 1)
    with catalog_of(old.cache) as catalog:
        (failure,) = catalog.failures.rows()
    assert (failure["video"], failure["reason"]) == (str(old.other), "old_features")
    extract([old.other], old.cache, SMALL)
    report = caption(old.cache, how)
    assert (report.counts.done, report.counts.failed) == (1, 0)
    with catalog_of(old.cache) as catalog:
        assert catalog.failures.rows() == []


def test_export_leaves_captions_of_old_features_out_and_names_them(old, tmp_path):
    with catalog_of(old.cache) as catalog:
        catalog.captions.add(_captions(catalog))
    done = export(
        old.cache / "catalog.sqlite", tmp_path / "o.jsonl", "jsonl", Selection(), Options()
    )
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["video"] for row in rows] == [str(old.same)]
    ((video, reason),) = done.left_out
    assert video == str(old.other)
    assert "not square" in reason


def _captions(catalog) -> list[dict[str, object]]:
    return [
        {
            "caption_key": row["feature_key"], "feature_key": row["feature_key"],
            "video": row["video"], "start_s": 0.0, "end_s": None, "prompt_name": "default",
            "prompt": "?", "caption": "Bars.", "model": "tiny", "quantization": "none", "flags": [],
            "num_tokens": 1, "seconds": 0.1, "settings": {},
        }
        for row in catalog.clips.rows()
    ]  # fmt: skip


def test_what_is_found_of_a_video_is_remembered_by_its_digest(old):
    verify(old.cache, look=look_at)
    with catalog_of(old.cache) as catalog:
        known = readings(catalog.files, [file_digest(old.other), file_digest(old.same)])
    assert known[file_digest(old.other)].was_other(None)
    assert not known[file_digest(old.same)].was_other(None)
    assert known[file_digest(old.same)].shown_s == [[0.0, pytest.approx(2.0)]]
