"""A shard has its clips by their videos' digests, whatever else is listed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.settings.settings import load_settings
from cogcache.settings.work_share import WorkShare
from cogcache.stages.caption import caption
from cogcache.stages.extract import extract
from cogcache.stages.runs.report_lines import report_lines
from cogcache.stages.runs.status import shown

DIGESTS = [hashlib.sha256(bytes([n])).hexdigest() for n in range(200)]


def test_each_digest_is_in_one_shard():
    for digest in DIGESTS:
        assert sum(WorkShare(number, 7).has(digest) for number in range(1, 8)) == 1


def test_shards_are_of_like_size():
    sizes = [sum(map(WorkShare(number, 4).has, DIGESTS)) for number in range(1, 5)]
    assert sum(sizes) == 200
    assert min(sizes) > 30


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "3", "1/2/3", "-1/4", "a/b"])
def test_what_is_no_shard_is_refused_with_what_to_write(text):
    with pytest.raises(ConfigError, match="I from 1 to N"):
        load_settings(None, {"shard": text})


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder of clips, extracted and captioned by three shards of one cache, one by one."""
    root = tmp_path_factory.mktemp("sharded")
    (root / "videos").mkdir()
    for number in range(5):
        write_clip(draw_scene(np.random.default_rng(number), 4), root / f"videos/{number}.mp4")
    (root / "videos/bad.mp4").write_bytes(b"")
    reports = []
    given = {"max_frames": 2, "max_new_tokens": 2, "quantization": "none", "decode_workers": 1}
    for number in range(1, 4):
        settings = load_settings(None, {**given, "shard": f"{number}/3"})
        reports.append(extract([root / "videos"], root / "cache", settings))
    for number in range(1, 4):
        settings = load_settings(None, {**given, "shard": f"{number}/3"})
        reports.append(caption(root / "cache", settings))
    return root, reports


def test_shards_do_each_clip_once_and_note_each_failure_once(sharded):
    _, reports = sharded
    assert sum(report.counts.done for report in reports[:3]) == 5
    assert [report.counts.cached for report in reports] == [0] * 6
    assert sum(report.counts.failed for report in reports[:3]) == 1


def test_a_video_is_in_the_same_shard_in_both_stages(sharded):
    _, reports = sharded
    made = [report.counts.done for report in reports]
    assert made[:3] == made[3:]


def test_a_video_keeps_its_shard_when_the_list_grows(sharded):
    root, reports = sharded
    (root / "videos/aa.mp4").write_bytes(b"sorted before all others, and not a video")
    settings = load_settings(None, {"max_frames": 2, "decode_workers": 1, "shard": "2/3"})
    again = extract([root / "videos"], root / "cache", settings)
    assert again.counts.cached == reports[1].counts.done


def test_the_shard_is_in_report_and_status(sharded):
    root, reports = sharded
    assert report_lines(reports[1])[0].startswith("extract, shard 2/3: ")
    with Catalog(root / "cache/catalog.sqlite") as catalog:
        row = next(
            row for row in catalog.runs.rows() if row["settings"]["machines"]["shard"] == "1/3"
        )
    assert row["report"]["shard"] == "1/3"
    assert "shard" not in shown({**row, **row["counts"], "state": ""})["command"]
    assert shown({**row, **row["counts"], "state": ""})["command"] == "extract 1/3"


def test_run_takes_the_option(tmp_path):
    assert "--shard" in CliRunner().invoke(main, ["run", "--help"]).output
