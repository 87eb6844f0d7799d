"""A caption goes out with the bytes that it was made of, whatever their file is called by now."""

from __future__ import annotations

import csv
import json
import os
import re
import tarfile
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from click.testing import CliRunner

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.holders import GONE, REPLACED, Look
from cogcache.catalog.placed import EARLIER
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import MissingVideosError
from cogcache.export.exporting import Options, export, export_beside
from cogcache.selftest.shapes import draw_scene, write_clip
from cogcache.store.store import FeatureStore
from tests.support.exported import add_caption, add_features, add_video

ALL = Selection()
TRAINERS = ("cogvideox", "finetrainers", "musubi", "diffusion-pipe", "videofolder")


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@cache
def film(number: int) -> bytes:
    """Return the bytes of a video; each number has its own."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "film.mp4")
        write_clip(draw_scene(np.random.default_rng(number)), path)
        return path.read_bytes()


class Films:
    """Three videos whose captions say which bytes they were made of."""

    def __init__(self, root: Path) -> None:
        self.folder, self.cache, self.out = root / "films", root / "cache", root / "out"
        self.folder.mkdir()
        FeatureStore.create_or_open(self.cache)
        for number, name in enumerate("abc"):
            self.path(name).write_bytes(film(number))
            self.see(name, caption=True)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.mp4"

    def see(self, name: str, *, caption: bool = False) -> None:
        """Do what `extract` does with the digest of a file."""
        path = self.path(name)
        with Catalog(self.cache / "catalog.sqlite") as catalog:
            catalog.files.remember_digests([(path, path.stat(), digest(path))])
            catalog.files.forget_gone([digest(path)])
            if caption:
                add_video(catalog, path)
                add_caption(catalog, path, 0.0, None, f"bytes {digest(path)}")

    def swap(self, one: str, other: str) -> None:
        self.path(one).rename(self.path("t"))
        self.path(other).rename(self.path(one))
        self.path("t").rename(self.path(other))

    def replace(self, name: str) -> None:
        self.path(name).unlink()
        self.path(name).write_bytes(film(99))

    def run(self, *arguments: str) -> object:
        return CliRunner().invoke(main, [*arguments, "--cache", str(self.cache)])

    def rows(self, *arguments: str) -> list[dict]:
        return json.loads(self.run(*arguments, "--json").stdout)

    def export(self, format_: str, selection: Selection = ALL, **options: object):
        catalog = self.cache / "catalog.sqlite"
        return export(catalog, self.out, format_, selection, Options(**options))


@pytest.fixture
def films(tmp_path):
    return Films(tmp_path)


def assert_true(rows: list[dict], count: int) -> None:
    """See that each caption stands beside the name of the bytes that it was made of."""
    assert len(rows) == count
    for row in rows:
        assert row["caption"] == f"bytes {digest(Path(row['video']))}"


# ---- names that were exchanged -----------------------------------------------------------------


@pytest.fixture(params=["seen again", "not seen again", "without a time of change"])
def swapped(films, request):
    """Two names exchanged, with and without another `extract`."""
    for name in "ab":
        os.utime(films.path(name), ns=(10**18, 10**18))
        films.see(name)
    films.swap("a", "b")
    if request.param == "seen again":
        for name in "ab":
            films.see(name)
    return films


def test_rows_name_the_file_that_has_the_bytes(swapped):
    swapped.export("jsonl")
    assert_true([json.loads(line) for line in swapped.out.read_text().splitlines()], 3)
    swapped.export("csv", overwrite=True)
    with swapped.out.open(newline="") as file:
        assert_true([*csv.DictReader(file)], 3)


@pytest.mark.parametrize("format_", TRAINERS)
@pytest.mark.parametrize("media", ["copy", "link"])
def test_trainers_get_the_bytes_that_were_captioned(swapped, format_, media):
    swapped.export(format_, media=media)
    videos = sorted(swapped.out.rglob("*.mp4"))
    if format_ == "cogvideox":
        texts = (swapped.out / "prompts.txt").read_text().splitlines()
    elif format_ == "videofolder":
        lines = (swapped.out / "train" / "metadata.jsonl").read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
    else:
        texts = [video.with_suffix(".txt").read_text().strip() for video in videos]
    assert texts == [f"bytes {digest(video)}" for video in videos]


def test_tars_hold_the_bytes_that_were_captioned(swapped):
    swapped.export("webdataset")
    with tarfile.open(swapped.out / "00000.tar") as tar:
        for number in range(3):
            video = tar.extractfile(f"{number:08}.mp4").read()
            text = tar.extractfile(f"{number:08}.txt").read().decode()
            assert text == f"bytes {sha256(video).hexdigest()}"


def test_subtitles_are_named_by_the_file_that_has_the_bytes(swapped):
    swapped.export("txt")
    for name in "abc":
        text = (swapped.out / f"{name}.txt").read_text().strip()
        assert text == f"bytes {digest(swapped.path(name))}"
    export_beside(swapped.cache / "catalog.sqlite", "srt", ALL, Options())
    for name in "abc":
        assert digest(swapped.path(name)) in swapped.path(name).with_suffix(".srt").read_text()


def test_listings_name_the_file_that_has_the_bytes(swapped):
    assert_true(swapped.rows("ls"), 3)
    assert_true(swapped.rows("search", "bytes"), 3)
    clips = swapped.rows("ls", "clips")
    assert all(row["video_digest"] == digest(Path(row["video"])) for row in clips)
    pairs = swapped.rows("diff", "default", "default", "--all")
    assert all(row["a"] == f"bytes {digest(Path(row['video']))}" for row in pairs)


@pytest.mark.parametrize("command", [("review", "list"), ("forget", "--since", "2000-01-01")])
def test_captions_to_review_or_forget_are_named_by_the_file_that_has_the_bytes(swapped, command):
    assert_true(swapped.rows(*command), 3)
    a = digest(swapped.path("a"))
    with Catalog(swapped.cache / "catalog.sqlite") as catalog:
        catalog.files.note_offset(a, 4.0)
    assert re.search(r"start_s +4", swapped.run(*command).stdout)


def test_a_folder_of_the_filter_is_where_the_bytes_are_now(swapped):
    chosen = ["--in", str(swapped.path("a"))]
    assert_true(swapped.rows("search", "bytes", *chosen), 1)
    swapped.export("jsonl", Selection(folders=(swapped.path("a"),)))
    (row,) = [json.loads(line) for line in swapped.out.read_text().splitlines()]
    assert row["video"] == str(swapped.path("a"))
    assert_true([row], 1)


def test_a_pack_names_the_file_that_has_the_bytes(swapped):
    import h5py

    add_features(swapped.cache)
    assert swapped.run("export", "--features", str(swapped.out)).exit_code == 0
    with h5py.File(swapped.out) as file:
        for group in file.values():
            said = json.loads(group["captions"][()].decode())[0]["caption"]
            assert said == f"bytes {digest(Path(group.attrs['video'].decode()))}"


def test_three_names_in_a_ring_are_followed_though_one_alone_is_asked_for(films):
    films.swap("a", "b")
    films.swap("b", "c")
    for name in "abc":
        found = films.rows("search", digest(films.path(name)))
        assert [row["video"] for row in found] == [str(films.path(name))]


# ---- bytes that are nowhere --------------------------------------------------------------------


def test_a_caption_is_not_put_beside_what_took_its_place(films):
    films.replace("b")
    done = films.run("export", str(films.out), "--format", "cogvideox")
    assert done.exit_code == 1
    assert f"left out: {films.path('b')}: {REPLACED}" in done.stderr
    assert_true(films.rows("ls"), 2)
    assert f"{films.path('b')}: {REPLACED}" in films.run("ls").stderr
    assert len(list(films.out.rglob("*.mp4"))) == 2


def test_a_replaced_video_that_was_captioned_anew_blocks_nothing(films):
    films.replace("b")
    films.see("b", caption=True)
    done = films.run("export", str(films.out), "--format", "cogvideox")
    assert done.exit_code == 0
    assert EARLIER in done.stderr
    assert_true(films.rows("ls"), 3)


def test_a_caption_whose_features_were_deleted_still_knows_its_bytes(films):
    films.replace("b")
    films.see("b", caption=True)
    with Catalog(films.cache / "catalog.sqlite") as catalog:
        catalog.clips.remove([row["feature_key"] for row in catalog.clips.rows()])
    assert_true(films.rows("ls"), 3)


@pytest.mark.parametrize("how", ["gone", "replaced"])
@pytest.mark.parametrize("format_", ["jsonl", "txt", "musubi"])
def test_what_is_missing_is_skipped_kept_or_an_error(films, how, format_):
    films.replace("b") if how == "replaced" else films.path("b").unlink()
    with pytest.raises(MissingVideosError, match=r"b\.mp4"):
        films.export(format_, look=Look("error"))
    assert not films.out.exists()
    skipped = films.export(format_, look=Look("skip"))
    assert (skipped.captions, skipped.is_whole) == (2, False)
    assert [(one.video, one.reason) for one in skipped.absent] == [
        (str(films.path("b")), GONE if how == "gone" else REPLACED)
    ]
    kept = films.export(format_, look=Look("keep"), overwrite=True)
    named = {"jsonl": 3, "txt": 3 if how == "gone" else 2, "musubi": 2}[format_]
    assert kept.captions == named
    if format_ == "jsonl":
        names = [json.loads(line)["video"] for line in films.out.read_text().splitlines()]
        assert (str(films.path("b")) in names) == (how == "gone")
        assert (None in names) == (how == "replaced")


def test_an_export_of_nothing_that_is_there_makes_nothing_and_ends_with_1(films):
    for name in "abc":
        films.path(name).unlink()
    done = films.run("export", str(films.out), "--format", "cogvideox")
    assert done.exit_code == 1
    assert not films.out.exists()
    assert "no file holds the bytes" in done.stderr


def test_a_name_is_not_left_to_a_caption_that_is_kept(films):
    films.replace("b")
    names = [row["video"] for row in films.rows("ls", "--missing", "keep")]
    assert names == [None, str(films.path("a")), str(films.path("c"))]


def test_without_a_look_what_was_seen_last_is_believed(films):
    films.path("b").unlink()
    assert len(films.rows("ls", "--no-check")) == 3
    assert len(films.rows("search", "bytes", "--no-check")) == 3
    done = films.run("export", str(films.out), "--format", "jsonl", "--no-check")
    assert (done.exit_code, len(films.out.read_text().splitlines())) == (0, 3)


def test_even_without_a_look_no_other_bytes_are_copied(films):
    films.replace("b")
    done = films.export("cogvideox", look=Look(check=False))
    assert [name for name, _ in done.left_out] == [str(films.path("b"))]
    assert done.captions == 2


# ---- copies and links --------------------------------------------------------------------------


def test_subtitles_are_put_beside_each_copy(films):
    (films.folder / "sub").mkdir()
    films.path("sub/a2").write_bytes(films.path("a").read_bytes())
    films.see("sub/a2")
    export_beside(films.cache / "catalog.sqlite", "srt", ALL, Options())
    assert sorted(path.name for path in films.folder.rglob("*.srt")) == [
        "a.srt", "a2.srt", "b.srt", "c.srt"
    ]  # fmt: skip


@pytest.mark.parametrize("letter", ["x", "\u00e9"])
def test_a_subtitle_may_have_as_long_a_name_as_the_disk_takes(films, letter):
    name = letter * (251 // len(letter.encode()))
    films.path("a").rename(films.path(name))
    films.see(name)
    export_beside(films.cache / "catalog.sqlite", "srt", ALL, Options())
    assert films.path(name).with_suffix(".srt").is_file()
    export(films.cache / "catalog.sqlite", films.out.with_name(name), "jsonl", ALL, Options())


def test_a_folder_of_the_filter_chooses_among_copies(films):
    (films.folder / "sub").mkdir()
    films.path("sub/a2").write_bytes(films.path("a").read_bytes())
    films.see("sub/a2")
    films.export("jsonl", Selection(folders=(films.folder / "sub",)))
    (line,) = films.out.read_text().splitlines()
    assert json.loads(line)["video"] == str(films.path("sub/a2"))


def test_a_copy_takes_the_place_of_one_that_is_gone(films):
    films.path("d").write_bytes(films.path("a").read_bytes())
    films.see("d")
    films.path("a").unlink()
    rows = films.rows("ls")
    assert_true(rows, 3)
    assert str(films.path("d")) in [row["video"] for row in rows]


@pytest.mark.parametrize("same_state", [True, False])
def test_a_link_that_leads_elsewhere_by_now_is_not_followed(films, tmp_path, same_state):
    for name in ("within", "secret"):
        (tmp_path / name).mkdir()
    films.path("b").rename(tmp_path / "within" / "b.mp4")
    films.path("b").symlink_to(tmp_path / "within" / "b.mp4")
    films.see("b")
    secret = tmp_path / "secret" / "b.mp4"
    secret.write_bytes(bytes(films.path("b").stat().st_size))
    films.path("b").unlink()
    films.path("b").symlink_to(secret)
    if same_state:
        # Another disk may give a file the number, size and time of the one that was captioned.
        with Catalog(films.cache / "catalog.sqlite") as catalog:
            row = catalog.captions.rows(video=str(films.path("b")))[0]
            stat = films.path("b").stat()
            catalog.files.remember_digests([(films.path("b"), stat, row["video_digest"])])
    done = films.export("cogvideox", media="copy")
    assert done.captions == 2
    assert not done.is_whole
    assert all(digest(path) != digest(secret) for path in films.out.rglob("*.mp4"))


# ---- failures and pages ------------------------------------------------------------------------


def test_a_failure_is_listed_under_the_file_that_has_the_bytes(films):
    failure = {"start_s": 0.0, "end_s": None, "stage": "extract", "reason": "decode_failed"}
    failure |= {"message": "", "feature_key": "f" * 64}
    with Catalog(films.cache / "catalog.sqlite") as catalog:
        for name in "ab":
            path = films.path(name)
            catalog.failures.add(
                {**failure, "video": str(path), "video_digest": digest(path), "message": name}
            )
        nowhere = {"video": "/nowhere.mp4", "reason": "missing", "feature_key": None}
        catalog.failures.add({**failure, **nowhere})
    a = digest(films.path("a"))
    films.path("a").rename(films.path("moved"))
    films.see("moved")
    films.replace("b")
    listed = films.run("failures", "--json")
    rows = json.loads(listed.stdout)
    assert {row["video"] for row in rows} == {str(films.path("moved")), "/nowhere.mp4"}
    assert next(row for row in rows if row["message"] == "a")["video_digest"] == a
    assert f"{films.path('b')}: {REPLACED}" in listed.stderr


def test_a_gallery_shows_what_is_there(films):
    add_features(films.cache)
    films.swap("a", "b")
    films.path("c").unlink()
    page = films.out.with_suffix(".html")
    done = films.run("gallery", str(page))
    assert done.exit_code == 1
    assert f"{films.path('c')}: {GONE}" in done.stderr
    cards = page.read_text().split("<article")[1:]
    assert len(cards) == 2
    for card in cards:
        name = "a" if "a.mp4" in card else "b"
        assert digest(films.path(name)) in card


# ---- captions that come back -------------------------------------------------------------------


def test_an_edited_caption_goes_to_the_bytes_that_bear_its_name_now(swapped):
    edited = swapped.cache / "edited.jsonl"
    rows = [
        {"video": str(swapped.path(n)), "caption": f"bytes {digest(swapped.path(n))}"} for n in "ab"
    ]
    edited.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert swapped.run("import", str(edited), "--set", "mine").exit_code == 0
    assert_true(swapped.rows("search", "bytes", "--model", "mine"), 2)


def test_an_edited_caption_of_bytes_that_are_gone_is_not_given_to_those_at_its_name(films):
    films.export("jsonl")
    films.replace("b")
    films.see("b", caption=True)
    with Catalog(films.cache / "catalog.sqlite") as catalog:
        old = [row["feature_key"] for row in catalog.clips.rows(video=str(films.path("b")))]
        now = digest(films.path("b"))
        catalog.clips.remove([key for key in old if not key.startswith(now[:32])])
    done = films.run("import", str(films.out), "--set", "mine")
    assert done.exit_code == 2
    assert "the cache has no such clip" in done.stderr


def test_only_the_files_of_the_rows_that_are_shown_are_looked_at(films, monkeypatch):
    monkeypatch.setattr("cogcache.cli.listings._AT_A_TIME", 1)
    films.path("b").unlink()
    films.path("c").unlink()
    listed = films.run("ls", "--limit", "1", "--json")
    assert_true(json.loads(listed.stdout), 1)
    assert GONE not in listed.stderr
    assert GONE in films.run("ls", "--limit", "2", "--json").stderr
