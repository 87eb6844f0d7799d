"""The spool lies where others can guess: it is this user's alone, or is not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cogcache.errors import MachineError
from cogcache.system.spool import Spool


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
