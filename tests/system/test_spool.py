"""The spool lies where others can guess: it is this user's alone, or is not used."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest

from cogcache.errors import MachineError, VideoError
from cogcache.system.spool import Spool
from cogcache.system.urls import ObjectUrl


def linked(folder: Path) -> None:
    folder.with_name("elsewhere").mkdir()
    folder.symlink_to(folder.with_name("elsewhere"))


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def a_file(folder: Path) -> None:
    folder.write_text("")


def of_another_user(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize(
    "make",
    [
        linked,
        open_to_all,
        a_file,
        pytest.param(
            of_another_user, marks=pytest.mark.skipif(os.getuid() != 0, reason="needs root")
        ),
    ],
)
def test_a_folder_that_another_made_is_not_used(tmp_path, make):
    make(tmp_path / "spool")
    with pytest.raises(MachineError, match="no folder of this user alone"):
        Spool(tmp_path / "spool", 100)._make()


def test_a_new_spool_is_for_this_user_alone(tmp_path):
    spool = Spool(tmp_path / "spool", 100)
    spool._make()
    spool._make()
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def fetched(tmp_path):
    """Return a spool into which one object was fetched, its name there, and its digest."""
    import fsspec

    name = f"/{uuid4().hex}/a.mp4"  # facts of objects are remembered by name
    fsspec.filesystem("memory").pipe(name, b"the bytes that were digested")
    video = ObjectUrl(f"memory://{name}")
    spool = Spool(tmp_path / "spool", 10**6)
    digest = spool.digest(video)
    (path,) = (tmp_path / "spool").iterdir()
    return spool, video, path, digest


def test_what_was_fetched_is_what_is_decoded(fetched):
    spool, video, _, digest = fetched
    for asked in (digest, digest, ""):
        with spool.local(video, asked) as held:
            assert held.read_bytes() == b"the bytes that were digested"


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_file_that_was_swapped_between_fetch_and_decoding_is_refused(
    fetched, is_in_place, is_known
):
    spool, video, path, digest = fetched
    with spool.local(video, digest):
        pass
    if is_in_place:
        path.write_bytes(b"other bytes of the same len")
    else:
        other = path.with_name("other")
        other.write_bytes(b"the bytes that were DIGESTED")
        other.replace(path)
    asked = digest if is_known else ""
    with (
        pytest.raises(VideoError, match="not what was fetched") as caught,
        spool.local(video, asked),
    ):
        pass
    assert caught.value.reason == "changing"
    with spool.local(video, digest) as held:  # fetched anew
        assert held.read_bytes() == b"the bytes that were digested"
    assert not [each for each in path.parent.iterdir() if each.name.startswith(".")]
