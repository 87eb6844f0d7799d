"""What is written to be sent round: the gallery, and the report of the runs."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from collection import HOSTILE_NAME, SCRIPT, Collection, make_collection
from scenes import catalog_of

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.rows import RunEnd
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import ConfigError
from cogcache.store.store import FeatureStore
from cogcache.web.browse import Browser
from cogcache.web.figures import last_runs
from cogcache.web.gallery import write_gallery
from cogcache.web.report import find, whole_bytes, write_report


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("collection"))


def gallery(collection: Collection, folder: Path, **given) -> str:
    write_gallery(collection.cache, folder / "out.html", **given)
    return (folder / "out.html").read_text()


def test_a_gallery_has_every_clip_with_its_picture(collection, tmp_path):
    page = gallery(collection, tmp_path)
    assert page.count("<article") == 4
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert [base64.b64decode(each)[:2] for each in pictures] == [b"\xff\xd8"] * 4


def test_a_gallery_needs_nothing_else(collection, tmp_path):
    page = gallery(collection, tmp_path)
    links = re.findall(
        r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page.replace("src=x", "")
    )
    assert all(link.startswith("data:") for link in links)
    assert "<script" not in page.replace(SCRIPT, "")


def test_a_gallery_shows_hostile_texts_as_text(collection, tmp_path):
    page = gallery(collection, tmp_path)
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    assert HOSTILE_NAME not in page
    assert "default-src 'none'" in page


def test_a_gallery_does_not_tell_folders(collection, tmp_path):
    assert str(collection.videos[0].parent) not in gallery(collection, tmp_path)


def test_a_gallery_of_a_search_has_what_was_found(collection, tmp_path):
    page = gallery(collection, tmp_path, text="boat", title="Boats & more")
    assert page.count("<article") == 2
    assert "<title>Boats &amp; more</title>" in page


def test_a_gallery_takes_filters_and_a_limit(collection, tmp_path):
    page = gallery(collection, tmp_path, selection=Selection(prompts=("color",)), limit=1)
    assert page.count("<article") == 1
    assert "1 clip of more that fit" in page
    assert "default," not in page


def test_an_empty_gallery_is_refused(collection, tmp_path):
    with pytest.raises(ConfigError, match="no caption fits"):
        gallery(collection, tmp_path, text="zebra")
    assert not (tmp_path / "out.html").exists()


def test_the_same_gallery_is_the_same_bytes(collection, tmp_path):
    assert gallery(collection, tmp_path) == gallery(collection, tmp_path)


@pytest.mark.parametrize(
    ("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype html>")]
)
def test_a_report_is_a_picture_and_equal_ones_are_equal_bytes(collection, tmp_path, suffix, begin):
    paths = [write_report(collection.cache, tmp_path / f"{n}.{suffix}") for n in range(2)]
    one, other = (path.read_bytes() for path in paths)
    assert one.startswith(begin)
    assert one == other


def test_a_report_shows_what_there_is_to_show(collection, tmp_path):
    svg = write_report(collection.cache, tmp_path / "out.svg").read_text()
    for text in ("Memory over time", "no_video_stream", "extract, run 1: peak 176 MiB"):
        assert f"<!-- {text}" in svg
    assert "the whole model in one piece: 85.8 MiB" in svg


def test_a_report_stands_alone(collection, tmp_path):
    page = write_report(collection.cache, tmp_path / "out.html").read_text()
    assert re.findall(r'src="(data:image/svg)', page) == ["data:image/svg"]
    assert "<script" not in page


def test_the_whole_model_is_both_halves_and_the_libraries(collection):
    with Browser(collection.cache / "catalog.sqlite") as browser:
        assert whole_bytes(last_runs(browser)) == 400 + 600 + 90_000_000


def test_rates_are_what_was_made_a_second(collection):
    with Browser(collection.cache / "catalog.sqlite") as browser:
        assert find(browser).rates == {"run 2, captions": 2.0, "run 1, clips": 2.0}


def drawn(cache: Path, out: Path, *runs: int) -> str:
    options = [f"--run={run}" for run in runs]
    done = CliRunner().invoke(main, ["report", str(out), f"--cache={cache}", *options])
    return out.read_text() if done.exit_code == 0 else done.output


def test_a_report_draws_the_runs_that_are_asked_for(tmp_path):
    collection = make_collection(tmp_path)
    with catalog_of(collection.cache) as catalog:
        first = catalog.runs.rows()[0]
        again = catalog.runs.start("extract", first["model"], {})
        catalog.runs.finish(again, RunEnd("done", counts={"done": 1}, report=first["report"]))
    assert "<!-- extract, run 3: " in drawn(collection.cache, tmp_path / "last.svg")
    picture = drawn(collection.cache, tmp_path / "asked.svg", 2, 1)
    assert picture.index("<!-- extract, run 1: ") < picture.index("<!-- caption, run 2: ")
    assert "the whole model in one piece" in picture


@pytest.mark.parametrize(
    ("runs", "said"),
    [((9,), "--run 9: the catalog has no such run"), ((1, 3), "--run 1 and --run 3 are both"),
     ((4,), "--run 4: its memory was not recorded to its end (running)")],
)  # fmt: skip
def test_a_run_that_cannot_be_drawn_is_refused(tmp_path, runs, said):
    collection = make_collection(tmp_path)
    with catalog_of(collection.cache) as catalog:
        again = catalog.runs.start("extract", "m", {})
        timeline = catalog.runs.rows()[0]["report"]["timeline"]
        catalog.runs.finish(again, RunEnd("done", report={"timeline": timeline}))
        catalog.runs.start("extract", "m", {})
    assert said in drawn(collection.cache, tmp_path / "a.svg", *runs)
    assert not (tmp_path / "a.svg").exists()


def test_without_a_run_there_is_no_report(tmp_path):
    FeatureStore.create_or_open(tmp_path / "cache")
    Catalog(tmp_path / "cache" / "catalog.sqlite").close()
    with pytest.raises(ConfigError, match="no run has made anything"):
        write_report(tmp_path / "cache", tmp_path / "out.png")


def test_another_format_is_refused(collection, tmp_path):
    with pytest.raises(ConfigError, match="does not end in"):
        write_report(collection.cache, tmp_path / "out.gif")


@pytest.mark.parametrize(("command", "name"), [("gallery", "out.html"), ("report", "out.png")])
def test_nothing_is_overwritten_unasked(collection, tmp_path, command, name):
    out = tmp_path / name
    out.write_text("mine")
    arguments = [command, str(out), f"--cache={collection.cache}"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    assert out.read_text() == "mine"
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0
    assert out.read_bytes() != b"mine"
