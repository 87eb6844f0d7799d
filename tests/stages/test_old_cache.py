"""A cache that was made before the package was laid out in rooms stays valid as it is."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cogcache import caption, extract, load_settings
from cogcache.catalog.upkeep.verify import verify

OLD = Path(__file__).parents[1] / "data" / "cache_before_rooms"
PROMPTS = {"what": "What is it?", "how": "How many?"}
CAPTIONS = {
    "58888d3da39007dd2e51b22aeba512fddb0df457e775295203274492e5eb8c5e": "Two.",
    "08a6993e0bb0e7c91ab700e1fb55315b97b78f1e239e1188b3fa7523e2fed6f1": "Circle.",
    "7f98313226f63417fb753738b00403e3b7a3820bd5bcaaa3f505a75c2529b26a": "One.",
    "77011c6799e7670e69e386ab18783f74dde0638df1cab885fe15daa87ab58245": (
        "One cyan circle moves to the right."
    ),
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a folder with the old cache and its videos, as it would be moved to another disk."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def settings_of_then():
    return load_settings(None, {"model": "tiny", "quantization": "none", "prompts": PROMPTS})


def feature_files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache / "features").rglob("*.h5")}


def test_nothing_of_an_old_cache_is_made_anew(old):
    cache, before = old / "cache", feature_files(old / "cache")
    encoded = extract([old / "videos"], cache, settings_of_then())
    captioned = caption(cache, settings_of_then())
    assert (encoded.counts.found, encoded.counts.cached, encoded.counts.done) == (2, 2, 0)
    assert (captioned.counts.found, captioned.counts.cached, captioned.counts.done) == (4, 4, 0)
    assert feature_files(cache) == before


def test_a_new_prompt_is_captioned_from_old_features(old):
    asked = {"prompts": {"which": "What color?"}}
    settings = load_settings(None, {"model": "tiny", "quantization": "none", **asked})
    report = caption(old / "cache", settings)
    assert (report.counts.done, report.counts.failed) == (2, 0)


def test_an_old_catalog_is_read_and_found_in_order(old):
    cache = old / "cache"
    extract([old / "videos"], cache, settings_of_then())
    assert verify(cache) == []
    with sqlite3.connect(cache / "catalog.sqlite") as rows:
        assert dict(rows.execute("SELECT caption_key, caption FROM captions")) == CAPTIONS


def test_an_old_caption_that_was_tried_twice_is_whole_after_the_upgrade(old):
    cache = old / "cache"
    retried = {"reason": "looping", "repetition_penalty": 1.15}
    with closing(sqlite3.connect(cache / "catalog.sqlite")) as rows, rows:
        rows.execute(
            "UPDATE captions SET settings = json_set(settings, '$.retried', json(?)) WHERE id"
            " = (SELECT min(id) FROM captions)",
            [json.dumps(retried)],
        )
    before = feature_files(cache)
    again = caption(cache, settings_of_then())
    assert (again.counts.cached, again.counts.done) == (4, 0)
    assert verify(cache) == []
    assert feature_files(cache) == before
