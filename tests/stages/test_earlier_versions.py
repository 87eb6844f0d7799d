"""Captions and features that an earlier version made otherwise are named, with the reason.

The caches are made by today's code with the epochs of before the changes, which is what stands in
their keys.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from published import Golden

from cogcache import keys
from cogcache.cli import main
from cogcache.errors import CacheError
from cogcache.settings import Settings
from cogcache.stages.caption import caption
from cogcache.stages.extract import _Extraction, extract

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about files of its releases

AMID = "the text behind a video of many frames stood amid the video's positions"
SMALLER = "frames were made smaller than published and blown up again"
LITTLE = {
    "device": "cpu",
    "sampling": {"max_frames": 2},
    "vision": {"decode_workers": 1, "vision_dtype": "float32"},
    "language": {"quantization": "none", "compute_dtype": "float32"},
    "generation": {"max_new_tokens": 4},
}


def settings(root: Path) -> Settings:
    return Settings(model=str(root / "checkpoint"), **LITTLE)


def made_before(root: Path, name: str, *, captioned: bool) -> Path:
    """Make a cache as an earlier version would have: with the keys of before all changes."""
    golden = Golden.read(name)
    golden.checkpoint(root / "checkpoint")
    shutil.copy(golden.folder / "short.mp4", root / "a.mp4")
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(keys, "CHANGES", ())
        extract([root / "a.mp4"], root / "cache", settings(root))
        if captioned:
            caption(root / "cache", settings(root))
    return root


@pytest.fixture(scope="module")
def captioned_before(tmp_path_factory) -> Path:
    return made_before(tmp_path_factory.mktemp("qwen2_vl"), "qwen2_vl", captioned=True)


@pytest.fixture
def captioned(captioned_before, tmp_path) -> Path:
    """A copy of the cache, whose captions were made with the wrong layout."""
    shutil.copytree(captioned_before / "cache", tmp_path / "cache")
    (tmp_path / "checkpoint").symlink_to(captioned_before / "checkpoint")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "1000"}).invoke(main, [str(each) for each in arguments])


def rows(*arguments: object) -> list[dict[str, object]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def test_ls_says_which_captions_are_of_the_wrong_layout_and_why(captioned):
    (row,) = rows("ls", "--cache", captioned / "cache", "--no-check")
    assert row["outdated"] == AMID
    assert AMID in run("ls", "--cache", captioned / "cache", "--no-check").stdout


def test_verify_says_which_captions_are_of_the_wrong_layout_why_and_what_mends_them(captioned):
    (row,) = rows("verify", "--cache", captioned / "cache")
    assert row["problem"] == "outdated_captions"
    assert row["caption_key"]
    assert str(row["message"]).endswith(f"{AMID}; `cogcache caption` makes it again")


def test_an_export_warns_of_captions_of_the_wrong_layout(captioned, caplog):
    with caplog.at_level(logging.WARNING):
        result = run("export", captioned / "out.jsonl", "--cache", captioned / "cache")
    assert result.exit_code == 0, result.output
    told = caplog.text + result.output
    assert f"1 of the 1 exported captions are of an earlier version: {AMID}" in told
    assert "`cogcache caption` makes them again" in told


def test_caption_makes_them_again_and_no_features(captioned, captioned_before, caplog):
    cache = captioned / "cache"
    with caplog.at_level(logging.WARNING):
        report = caption(cache, settings(captioned_before))
    assert report.counts.done == 1
    told = "1 captions of an earlier version do not serve, those asked for are made again"
    assert f"{told}: {AMID}" in caplog.text
    assert caption(cache, settings(captioned_before)).counts.done == 0
    features = {row["feature_key"] for row in rows("ls", "--cache", cache, "--no-check")}
    assert len(features) == 1
    assert "made again since" in str(rows("verify", "--cache", cache)[0]["message"])
    assert run("export", captioned / "out.jsonl", "--cache", cache).exit_code == 0
    assert len((captioned / "out.jsonl").read_text().splitlines()) == 1


def test_smolvlms_features_get_a_new_key_and_the_reason_is_told(tmp_path, caplog, monkeypatch):
    root = made_before(tmp_path, "smolvlm", captioned=False)
    (row,) = rows("verify", "--cache", root / "cache")
    assert row["problem"] == "outdated_features"
    assert str(row["message"]).endswith(f"{SMALLER}; `cogcache extract` makes it again")
    with pytest.raises(CacheError, match=SMALLER):
        caption(root / "cache", settings(root))
    begun: list[int] = []
    # Nothing is decoded: that the clip is taken up is enough.
    monkeypatch.setattr(_Extraction, "run", lambda self, work: begun.append(len(work.missing)))
    with caplog.at_level(logging.WARNING):
        extract([root / "a.mp4"], root / "cache", settings(root))
    assert begun == [1]
    assert SMALLER in caplog.text
