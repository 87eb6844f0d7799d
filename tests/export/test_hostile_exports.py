"""A stranger's catalog may name any path: nothing is written outside OUT, no file is followed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from exported import add_caption, add_video

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.holders import Look
from cogcache.catalog.search.selection import Selection
from cogcache.errors import CogcacheError
from cogcache.export.exporting import FORMATS, Options, export, export_beside
from cogcache.export.names import names_below
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.store.store import FeatureStore

ALL = Selection()
UNCHECKED = Options(look=Look(missing="keep", check=False))
"""Names of a catalog are believed: the way on which they could do harm."""
PATHS = (
    "../escaped.mp4",
    "../../escaped.mp4",
    "../../../../../../../../tmp/cogcache-escaped.mp4",
    "a/../../escaped.mp4",
    "/../escaped.mp4",
    "/a/b/../../../../escaped.mp4",
    "..",
    ".",
    "",
    "/",
    "./",
    "a/..",
    "../",
    "...",
    "~/escaped.mp4",
    "$HOME/escaped.mp4",
    "-rf.mp4",
    "a\nb.mp4",
    "a\x1b[31m.mp4",
    "file:%2e%2e/%2e%2e/escaped.mp4",
    "file:%00.mp4",
    "file:///../escaped.mp4",
    "..\\..\\escaped.mp4",
    "C:\\Windows\\escaped.mp4",
    "con.mp4",
    ".cogcache-export",
    ".cogcache-export/a.mp4",
    "x.txt/y.mp4",
    "x.mp4",
    f"{'n' * 400}.mp4",
    "/".join(["deep"] * 900) + ".mp4",
    "\u202egnp.mp4",
    "s3://../../escaped.mp4",
    "İ.mp4",
    "i̇.mp4",
    "A.mp4",
    "a.mp4",
)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    import numpy as np

    return write_clip(draw_scene(np.random.default_rng(0)), path) or path


@pytest.fixture
def cache(tmp_path, film):
    """Make a cache whose captions are of one film, under many names."""
    root = tmp_path / "theirs" / "cache"
    FeatureStore.create_or_open(root)
    with Catalog(root / "catalog.sqlite") as catalog:
        add_video(catalog, film)
        add_caption(catalog, film, 0.5, 1.0, "A caption of the film.")
        claim(catalog, PATHS, catalog.clips.rows()[0]["feature_key"])
    return root


@pytest.fixture
def unseen(tmp_path):
    """Make a cache whose captions are of videos that nobody has seen: their paths are taken."""
    root = tmp_path / "theirs" / "cache"
    FeatureStore.create_or_open(root)
    with Catalog(root / "catalog.sqlite") as catalog:
        claim(catalog, PATHS)
    return root


def claim(catalog: Catalog, paths: Sequence[str], feature_key: str = "f" * 64) -> None:
    """Add a caption of each path, and no clip."""
    rows = []
    for number, path in enumerate(paths):
        row = {"caption_key": f"claim {number}", "feature_key": feature_key, "video": path}
        row |= {"start_s": 0.0, "end_s": None, "prompt_name": "default", "prompt": "Describe."}
        row |= {"caption": f"Caption {number}.", "model": "tiny", "quantization": "nf4"}
        rows.append(row | {"flags": [], "num_tokens": 7, "seconds": 0.5, "settings": {}})
    catalog.captions.add(rows)


def files_below(folder: Path) -> set[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {name for name in names if not name.startswith(("theirs/cache", "cache"))}


@pytest.mark.parametrize("format_", FORMATS)
def test_no_path_of_a_catalog_leads_out_of_the_export(cache, tmp_path, format_):
    out = tmp_path / "ours" / "deep" / "OUT"
    before = files_below(tmp_path)
    with suppress(CogcacheError):
        export(cache / "catalog.sqlite", out, format_, ALL, UNCHECKED)
    after = {name for name in files_below(tmp_path) if not name.startswith("ours/deep/OUT")}
    assert after - {"ours", "ours/deep"} <= before
    assert not Path("/tmp/cogcache-escaped.txt").exists()
    if out.is_dir():
        assert all(p.resolve().is_relative_to(out.resolve()) for p in out.rglob("*"))


@pytest.mark.parametrize("format_", FORMATS[:6])
def test_nor_does_one_that_nobody_has_seen(unseen, tmp_path, format_):
    out = tmp_path / "ours" / "deep" / "OUT"
    before = files_below(tmp_path)
    with suppress(CogcacheError):
        export(unseen / "catalog.sqlite", out, format_, ALL, UNCHECKED)
    after = {name for name in files_below(tmp_path) if not name.startswith("ours/deep/OUT")}
    assert after - {"ours", "ours/deep"} <= before


def test_each_video_has_a_name_of_its_own():
    names = names_below([Path(path) for path in PATHS], ".txt")
    assert len({str(name).casefold() for name in names}) == len(PATHS)
    assert not any(name.is_absolute() or ".." in name.parts for name in names)


def test_names_are_those_of_the_videos_where_these_are_harmless():
    paths = [Path("/v/a.mp4"), Path("/v/b/c.mp4"), Path("/v/b/c.mkv")]
    assert [str(n) for n in names_below(paths, ".txt")] == ["a.txt", "b/c.mp4.txt", "b/c.mkv.txt"]
    assert names_below([Path("/v/a.mp4")], ".txt") == [Path("a.txt")]


@pytest.mark.parametrize("format_", ["txt", "vtt", "srt"])
@pytest.mark.parametrize("name", ["notes.conf", "none.mp4", "folder.mp4", ".."])
def test_nothing_is_written_beside_what_is_no_video(tmp_path, film, name, format_):
    root = tmp_path / "cache"
    FeatureStore.create_or_open(root)
    (tmp_path / "notes.conf").write_text("mine")
    (tmp_path / "folder.mp4").mkdir()
    with Catalog(root / "catalog.sqlite") as catalog:
        claim(catalog, [str(tmp_path / name)])
    before = files_below(tmp_path)
    with suppress(CogcacheError):
        export_beside(root / "catalog.sqlite", format_, ALL, replace(UNCHECKED, overwrite=True))
    assert files_below(tmp_path) == before


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{}'\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
DASH = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>
<AdaptationSet><Representation id="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet>
</Period></MPD>"""


def follows(text: str, name: str):
    def make(folder: Path, film: Path) -> Path:
        path = folder / name
        path.write_text(text.format(film))
        return path

    return make


def link_to_a_text(folder: Path, film: Path) -> Path:
    (folder / "secret").write_text("a secret\n" * 99)
    path = folder / "film.mp4"
    path.symlink_to(folder / "secret")
    return path


@pytest.mark.parametrize("format_", ["videofolder", "webdataset"])
@pytest.mark.parametrize(
    "make",
    [
        follows(PLAYLIST, "list.m3u8"),
        follows(PLAYLIST, "list.mp4"),
        follows(PLAYLIST, "list.mkv"),
        follows(CONCAT, "list.mp4"),
        follows(CONCAT, "list.ffconcat"),
        follows(SDP, "list.sdp"),
        follows(DASH, "list.mpd"),
        link_to_a_text,
    ],
)
def test_what_is_no_video_is_neither_copied_nor_followed(tmp_path, film, make, format_):
    here = tmp_path / "films"
    here.mkdir()
    shutil.copyfile(film, here / "other.mp4")
    os.utime(here / "other.mp4")
    path = make(here, here / "other.mp4")
    FeatureStore.create_or_open(tmp_path / "cache")
    with Catalog(tmp_path / "cache" / "catalog.sqlite") as catalog:
        claim(catalog, [str(path)])
    with suppress(CogcacheError):
        export(tmp_path / "cache" / "catalog.sqlite", tmp_path / "OUT", format_, ALL, UNCHECKED)
    assert not (tmp_path / "OUT").exists()
