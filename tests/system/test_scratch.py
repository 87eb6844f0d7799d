"""What is temporary goes with its process, however that ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cogcache.system import scratch
from cogcache.system.scratch import Scratch, put_right, replace, temporary_name

HOLD = """
import sys
from pathlib import Path
from cogcache.system.scratch import Scratch, temporary_name
s = Scratch(Path(sys.argv[1]))
out = Path(sys.argv[2])
partial, old = temporary_name(out), temporary_name(out, ".old")
partial.mkdir()
out.rename(old)
print(s.path, partial, old, sep="\\n", flush=True)
input()
"""
ENTRIES = ("content",)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "content").write_text("what was there")
    return folder


@pytest.fixture
def holder(tmp_path, out):
    """Another process with a folder of its own, in the midst of replacing another folder."""
    (tmp_path / "cache").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "cache"), str(out)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        lines = [process.stdout.readline().strip() for _ in range(3)]
        process.folder, process.partial, process.old = map(Path, lines)
        yield process
        process.kill()


def test_what_a_living_process_has_is_left_alone(holder, tmp_path, out):
    scratch.sweep(tmp_path / "cache")
    put_right(out)
    assert holder.folder.exists()
    assert holder.partial.exists()
    assert holder.old.exists()


def test_what_a_killed_process_left_is_removed_by_the_next(holder):
    holder.kill()
    holder.wait()
    Scratch().close()
    assert not holder.folder.exists()


def test_what_lies_in_another_temporary_folder_is_found_by_its_note(holder, tmp_path, monkeypatch):
    holder.kill()
    holder.wait()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    assert scratch.left_behind(tmp_path / "cache")
    scratch.sweep(tmp_path / "cache")
    assert not holder.folder.exists()
    assert scratch.left_behind(tmp_path / "cache") == []


def test_a_folder_that_a_killed_process_had_moved_aside_is_put_back(holder, out):
    holder.kill()
    holder.wait()
    assert not out.exists()
    put_right(out)
    assert (out / "content").read_text() == "what was there"
    assert [path.name for path in out.parent.glob(".out.*")] == []


def test_a_number_that_another_process_has_got_again_counts_as_dead(tmp_path):
    path = temporary_name(tmp_path / "x")
    path.write_text("")
    assert not scratch.is_dead(path)
    os.utime(path, (time.time() - 10_000_000, time.time() - 10_000_000))  # before we were born
    assert scratch.is_dead(path)


def test_what_another_machine_made_is_dead_after_a_day_of_silence(tmp_path):
    path = tmp_path / ".x.elsewhere-1.7.0a.partial"
    path.write_text("")
    assert not scratch.is_dead(path)
    os.utime(path, (time.time() - 90_000, time.time() - 90_000))
    assert scratch.is_dead(path)


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_is_replaced_by_another(tmp_path, out, monkeypatch, exchanged):
    if not exchanged:  # as on a file system that cannot
        monkeypatch.setattr(scratch, "_exchanged", lambda one, other: False)
    new = temporary_name(out)
    new.mkdir()
    (new / "content").write_text("new")
    replace(new, out)
    assert (out / "content").read_text() == "new"
    assert [path.name for path in tmp_path.glob(".out.*")] == []


def test_a_note_that_names_other_things_touches_none_of_them(tmp_path, out):
    cache = tmp_path / "cache"
    (cache / "working").mkdir(parents=True)
    note = cache / "working" / "elsewhere-1.7.0a.note"
    note.write_text(json.dumps({"kind": "temporary", "paths": [str(out)]}))
    os.utime(note, (time.time() - 90_000, time.time() - 90_000))
    scratch.sweep(cache)
    assert (out / "content").exists()
    assert not note.exists()


def test_a_link_is_not_followed(temporary):
    (temporary / "theirs").mkdir()
    (temporary / "cogcache-gone-1.7.0a").symlink_to("theirs")
    scratch.sweep_temporary()
    assert (temporary / "theirs").exists()


def test_closing_removes_the_folder(temporary):
    scratch_folder = Scratch()
    (scratch_folder.path / "parked").write_bytes(b"weights")
    scratch_folder.close()
    assert list(temporary.iterdir()) == []


def test_no_other_module_makes_temporary_files_that_nobody_would_clear_away():
    package = Path(scratch.__file__).parents[1]
    # A file without a name is gone with its process, however that ends.
    nameless = ("import tempfile", "tempfile.TemporaryFile(")
    makers = set()
    for path in package.rglob("*.py"):
        text = path.read_text()
        for each in nameless:
            text = text.replace(each, "")
        makers |= {path.name} if "tempfile" in text else set()
    assert makers == {"scratch.py"}


def test_a_folder_that_a_dead_process_noted_is_cleared_of_its_temporary_files(tmp_path):
    cache, videos = tmp_path / "cache", tmp_path / "videos"
    (cache / "working").mkdir(parents=True)
    videos.mkdir()
    (videos / "a.srt").write_text("a subtitle")
    program = (
        "import os, sys; from pathlib import Path\n"
        "from cogcache.system.scratch import noted, temporary_name\n"
        "cache, out = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "with noted(cache, 'temporary', folders=[str(out.parent)]):\n"
        "    temporary_name(out).write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, str(cache), str(videos / "b.srt")]
    subprocess.run(command, check=False)
    assert len([*videos.iterdir()]) == 2
    assert len(scratch.left_behind(cache)) == 2
    with scratch.noted(cache, "temporary"):  # the next command, though it may only read the cache
        assert len([*(cache / "working").iterdir()]) == 1
    assert [path.name for path in videos.iterdir()] == ["a.srt"]
    assert not [*(cache / "working").iterdir()]


def test_no_library_tries_the_temporary_folder_of_a_command():
    """Python writes a file of a random name to see whether it can; a kill would leave that."""
    program = "import tempfile; tempfile._get_default_tempdir = None; import cogcache.cli; "
    command = [sys.executable, "-c", program + "import torch._dynamo.config"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


def test_a_temporary_folder_that_is_not_there_is_passed_by(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TEMP", str(tmp_path))
    assert scratch.temporary_place() == tmp_path
