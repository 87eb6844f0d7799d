"""Times that people are told are those that a player shows, where pictures begin behind the sound.

Clips count from a video's first frame. Programs get that, and `offset_s` to add to it.
"""

from __future__ import annotations

import csv
import json
import tarfile

import pytest
from click.testing import CliRunner
from kinds import SPECIAL
from starlette.testclient import TestClient

from cogcache.catalog.catalog import Catalog
from cogcache.cli import main
from cogcache.store.store import FeatureStore
from cogcache.video.file_state import file_digest
from cogcache.video.reading import measured
from cogcache.web.app import create_app
from tests.support.exported import add_caption, add_features, add_video

OFFSET_S = 1.5


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """A cache with the clip from 1 s to 2 s of a video that begins 1.5 s behind its sound."""
    root = tmp_path_factory.mktemp("late")
    video, cache = root / "late.mkv", root / "cache"
    SPECIAL["late.mkv"](video)
    FeatureStore.create_or_open(cache)
    with Catalog(cache / "catalog.sqlite") as catalog:
        add_video(catalog, video)
        catalog.files.note_offset(file_digest(video), measured(video).offset_s)
        add_caption(catalog, video, 1.0, 2.0, "A ball rolls.")
        failure = {"video": str(video), "video_digest": file_digest(video), "reason": "hang"}
        failure |= {"start_s": 1.0, "end_s": 2.0, "stage": "extract", "message": ""}
        catalog.failures.add({**failure, "feature_key": None})
    add_features(cache)
    return cache


def run(cache, *arguments: str) -> str:
    done = CliRunner().invoke(main, [*arguments, "--cache", str(cache)])
    assert done.exit_code == 0, done.output
    return done.stdout


LISTINGS = [
    ("ls",), ("ls", "clips"), ("ls", "--side-by-side"), ("ls", "--columns", "start_s,end_s"),
    ("failures",), ("search", "ball"), ("diff", "default", "default", "--all"),
]  # fmt: skip


@pytest.mark.parametrize("listing", LISTINGS, ids=" ".join)
def test_a_listing_shows_the_times_of_a_player_and_json_those_of_the_key(late, listing):
    told = run(late, *listing)
    assert "2.5" in told
    assert "3.5" in told
    if "--columns" not in listing:
        (row,) = json.loads(run(late, *listing, "--json"))
        assert (row["start_s"], row["end_s"]) == (1.0, 2.0)
        assert row["offset_s"] == pytest.approx(OFFSET_S, abs=0.1)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "videofolder", "webdataset"])
def test_exported_rows_tell_the_offset(late, form, tmp_path):
    out = tmp_path / f"out.{form}"
    run(late, "export", str(out), "--format", form)
    match form:
        case "jsonl":
            row = json.loads(out.read_text())
        case "csv":
            (row,) = csv.DictReader(out.read_text().splitlines())
        case "parquet":
            (row,) = pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
        case "videofolder":
            row = json.loads((out / "train" / "metadata.jsonl").read_text())
        case _:
            with tarfile.open(out / "00000.tar") as tar:
                row = json.load(tar.extractfile("00000000.json"))
    assert float(row["offset_s"]) == pytest.approx(OFFSET_S, abs=0.1)
    assert float(row["start_s"]) == 1.0


def test_subtitles_are_shown_when_a_player_shows_the_clip(late, tmp_path):
    run(late, "export", str(tmp_path / "out.srt"))
    assert "00:00:02,5" in (tmp_path / "out.srt").read_text()


def test_pages_tell_the_times_of_a_player_and_play_from_there(late, tmp_path):
    with Catalog(late / "catalog.sqlite") as catalog:
        (clip,) = catalog.clips.rows()
    with TestClient(create_app(late), base_url="http://127.0.0.1") as client:
        page = client.get(f"/clip/{clip['feature_key']}").text
        lists = [client.get(each).text for each in ("/", "/?q=ball", "/failures")]
    assert 'data-start="2.5' in page
    assert "#t=2.5" in page
    run(late, "gallery", str(tmp_path / "page.html"))
    for each in (page, *lists, (tmp_path / "page.html").read_text()):
        assert "0:02.5–0:03.5" in each  # noqa: RUF001  # a range
