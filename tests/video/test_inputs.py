from __future__ import annotations

import codecs
import hashlib
import os
from pathlib import Path

import pytest

from cogcache.errors import ConfigError, VideoError
from cogcache.video.file_state import file_digest
from cogcache.video.paths import find_videos


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with some files, most of them empty: finding does not open them."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.mp4",
        "a.MKV",
        "notes.txt",
        ".hidden.mp4",
        "sub/d.webm",
        "sub/c.gif",
        ".h/e.avi",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(paths: list[Path], folder: Path) -> list[str]:
    assert all(path.is_absolute() for path in paths)
    return [os.path.relpath(path, folder) for path in paths]


def test_a_folder_gives_its_videos_in_order_and_no_hidden_ones(folder):
    assert names(find_videos(["."]), folder) == ["a.MKV", "b.mp4", "sub/c.gif", "sub/d.webm"]


def test_a_file_that_is_named_is_always_taken(folder):
    (folder / "noted.mp5").write_bytes(b"")
    assert names(find_videos(["noted.mp5", ".hidden.mp4"]), folder) == ["noted.mp5", ".hidden.mp4"]


def test_a_list_that_is_named_as_a_video_is_told_from_one(folder):
    with pytest.raises(ConfigError, match=r"notes.txt is no video") as caught:
        find_videos(["notes.txt"])
    assert "@notes.txt" in caught.value.hint


def test_a_file_comes_once_however_often_it_is_named(folder):
    (folder / "link.mp4").symlink_to("b.mp4")
    found = find_videos(["b.mp4", "./b.mp4", "link.mp4", "sub/../b.mp4", "*.mp4"])
    assert names(found, folder) == ["b.mp4"]


def test_globs_are_expanded(folder):
    assert names(find_videos(["*.mp4"]), folder) == ["b.mp4"]
    assert names(find_videos(["**/*.webm"]), folder) == ["sub/d.webm"]
    assert names(find_videos(["su?"]), folder) == ["sub/c.gif", "sub/d.webm"]


def test_a_name_with_brackets_is_a_name_if_there_is_such_a_file(folder):
    (folder / "[1080p] b*.mp4").touch()
    assert names(find_videos(["[1080p] b*.mp4"]), folder) == ["[1080p] b*.mp4"]


def test_a_folder_named_like_a_video_is_a_folder(folder):
    (folder / "x.mp4").mkdir()
    (folder / "x.mp4" / "in.mp4").touch()
    assert names(find_videos(["x.mp4"]), folder) == ["x.mp4/in.mp4"]
    assert "x.mp4" not in names(find_videos(["."]), folder)


def test_links_that_go_in_circles_end(folder):
    (folder / "sub" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "sub" / "self").symlink_to(".", target_is_directory=True)
    assert len(find_videos(["."])) == 4


def test_links_to_folders_are_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.mp4").touch()
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    assert "link/far.mp4" in names(find_videos(["."]), folder)


def test_a_broken_link_is_kept_so_that_it_becomes_a_failure(folder):
    (folder / "sub" / "broken.mp4").symlink_to("nowhere.mp4")
    assert "sub/broken.mp4" in names(find_videos(["sub"]), folder)


def test_names_may_be_any_bytes(folder):
    odd = [b"sp ace.mp4", b"quo'te\".mp4", b"new\nline.mp4", b"\xff\xfe.mp4", b"-dash.mp4"]
    (folder / "odd").mkdir()
    for name in odd:
        Path(os.fsdecode(os.fsencode(folder / "odd") + b"/" + name)).touch()
    assert sorted(os.fsencode(path.name) for path in find_videos(["odd"])) == sorted(odd)


def test_a_list_names_files_relative_to_its_own_folder(folder):
    text = b"# a remark\n\nb.mp4\r\n  \nsub\n\xff.mp4\n" + os.fsencode(folder / "notes.txt") + b"\n"
    (folder / "lists").mkdir()
    (folder / "all.txt").write_bytes(text)
    (folder / "lists" / "one.txt").write_text("../b.mp4\n")
    found = [os.fsencode(name) for name in names(find_videos(["@all.txt"]), folder)]
    assert found == [b"b.mp4", b"sub/c.gif", b"sub/d.webm", b"\xff.mp4", b"notes.txt"]
    assert names(find_videos(["@lists/one.txt"]), folder) == ["b.mp4"]


TEXT = "# rows\r\nb.mp4\r\n\r\nsub/c.gif\r\n"


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\r\n", "\r").encode(),
        b"b.mp4\0sub/c.gif\0",
        b"b.mp4\0\nsub/c.gif\0\n",
    ],
    ids=["mark", "utf-16", "utf-16-be", "le unmarked", "be unmarked", "utf-32", "cr", "nul", "pad"],
)
def test_a_list_is_read_however_a_program_saved_it(folder, data):
    (folder / "list.txt").write_bytes(data)
    assert names(find_videos(["@list.txt"]), folder) == ["b.mp4", "sub/c.gif"]


def test_a_line_that_is_no_path_becomes_a_failure_and_the_rest_is_taken(folder, caplog):
    long = "x" * 300
    lines = f"b.mp4\nbad\0name.mp4\n{long}\ns3://a//b.mp4\nsub\n"
    (folder / "list.txt").write_bytes(lines.encode())
    found = names(find_videos(["@list.txt"]), folder)
    bad = ["bad\\0name.mp4", long, "s3:/a/b.mp4"]
    assert found == ["b.mp4", *bad, "sub/c.gif", "sub/d.webm"]
    assert "holds a NUL" in caplog.text
    assert "s3://a//b.mp4: // and /. within a name are not kept apart" in caplog.text


def test_a_secret_in_a_list_is_refused_and_not_kept_as_a_failure(folder):
    (folder / "list.txt").write_text("b.mp4\nhttps://me:secret@host//b.mp4\n")
    with pytest.raises(ConfigError, match="a password or a signature") as raised:
        find_videos(["@list.txt"])
    assert "secret@" not in str(raised.value)


def test_a_list_that_is_not_what_its_begin_says_is_refused(folder):
    (folder / "list.txt").write_bytes(codecs.BOM_UTF16_LE + b"b\0.")
    with pytest.raises(ConfigError, match=r"@.*list\.txt begins as UTF-16") as raised:
        find_videos(["@list.txt"])
    assert "UTF-8" in raised.value.hint


@pytest.mark.parametrize("name", ["~foo.mp4", "~", "~root", "@b.mp4.mp4", "#b.mp4"])
def test_a_name_with_a_meaning_is_a_name_if_there_is_such_a_file(folder, name):
    (folder / name).touch()
    assert names(find_videos([name]), folder) == [name]
    if name[0] == "~":
        (folder / "list.txt").write_text(name)
        assert names(find_videos(["@list.txt"]), folder) == [name]


def test_the_home_of_nobody_is_no_bug(folder):
    with pytest.raises(ConfigError, match="no such file"):
        find_videos(["~nobody-of-this-name/a.mp4"])


@pytest.mark.parametrize("argument", ["", "@", "a\0b"])
def test_an_argument_that_names_nothing_is_refused(folder, argument):
    with pytest.raises(ConfigError, match=r"empty|names no list|NUL"):
        find_videos(["b.mp4", argument])


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("no.mp4", "no such file or folder"),
        ("*.mov", "no file matches"),
        ("empty", "holds no video"),
        ("@no.txt", "No such file"),
        ("@empty.txt", "names no file"),
    ],
)
def test_an_argument_that_stands_for_nothing_is_named(folder, argument, problem):
    (folder / "empty").mkdir()
    (folder / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=problem) as raised:
        find_videos(["b.mp4", argument])
    assert argument in raised.value.problem
    assert raised.value.hint


def test_a_digest_is_the_sha256_of_the_bytes(folder):
    content = os.urandom(3_000_000)
    (folder / "b.mp4").write_bytes(content)
    assert file_digest(folder / "b.mp4") == hashlib.sha256(content).hexdigest()


def make_missing(path: Path) -> None:
    path.unlink()


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


BAD_FILES = [
    (make_missing, "missing"),
    (make_empty, "empty_file"),
    (make_folder, "not_a_video"),
    (make_pipe, "not_a_video"),
    (make_loop, "unreadable"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD_FILES)
def test_a_file_without_a_digest_says_why(folder, spoil, reason):
    path = folder / "b.mp4"
    spoil(path)
    with pytest.raises(VideoError) as raised:
        file_digest(path)
    assert raised.value.reason == reason
    assert str(path) in raised.value.problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(folder):
    (folder / "b.mp4").chmod(0)
    with pytest.raises(VideoError) as raised:
        file_digest(folder / "b.mp4")
    assert raised.value.reason == "unreadable"
