"""The front for notebooks: str or Path, one path or several, rows and tensors."""

from __future__ import annotations

import pytest
from scenes import settings, write_scene

import cogcache
from cogcache.api.cache import as_names
from cogcache.errors import CogcacheError, ConfigError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    write_scene(folder / "a.mp4", 0, num_frames=10)
    made = cogcache.Cache(str(folder / "cache"))
    report = made.extract(str(folder / "a.mp4"), model="tiny", max_frames=2, decode_workers=1)
    assert (report["done"], report["failed"], report["exit_status"]) == (1, 0, 0)
    return made


def test_captions_come_back_as_rows_and_settings_are_those_of_the_cache(cache):
    rows = cache.caption({"short": "What colour?"}, max_new_tokens=3, retry=False)
    assert [(row["prompt_name"], row["model"]) for row in rows] == [("short", "tiny")]
    assert [row["caption"] for row in cache.captions(prompt_name="short")] == [rows[0]["caption"]]
    assert list(cache.captions().to_pandas()["prompt_name"]) == ["short"]


def test_features_are_tensors(cache):
    features = cache.features(cache.folder.parent / "a.mp4")
    assert {name: str(each.dtype) for name, each in features.items()} == {
        "features": "torch.bfloat16"
    }
    assert features["features"].shape[0] == 2
    with pytest.raises(ConfigError, match="no sets of features"):
        cache.features("nothing.mp4")


def test_a_stage_that_cannot_do_its_work_is_an_error(cache):
    with pytest.raises(CogcacheError, match="extract ended with exit status 2"):
        cache.extract("nothing.mp4", decode_workers=1)


def test_a_cache_without_a_model_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.delenv("COGCACHE_MODEL")
    with pytest.raises(ConfigError, match="no model was named"):
        cogcache.Cache(tmp_path / "new").extract("a.mp4")


def test_a_single_text_is_one_path(tmp_path):
    assert as_names("abc") == as_names(["abc"]) == ("abc",)
    write_scene(tmp_path / "a.mp4", 0, num_frames=4)
    asked = settings(model="tiny", max_frames=1)
    done = cogcache.extract(str(tmp_path / "a.mp4"), str(tmp_path / "cache"), asked)
    assert done.counts.done == 1
