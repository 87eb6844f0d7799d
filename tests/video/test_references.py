"""Files that name other files: a reader refuses each as no video, and opens nothing of theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from videos import write_video

from cogcache.errors import VideoError
from cogcache.settings.stage_one import Sampling
from cogcache.video.reading import Decoder, read_clip
from tests.export.test_hostile_exports import CONCAT, DASH, PLAYLIST, SDP

LONG_AGO_S = 1.0
TEXTS = {
    "list.m3u8": PLAYLIST,
    "list.mp4": PLAYLIST,
    "list.mkv": PLAYLIST,
    "list.ts": PLAYLIST,
    "many.mp4": CONCAT,
    "many.ffconcat": CONCAT,
    "described.sdp": SDP,
    "described.mpd": DASH,
    "variants.m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\n{}\n",
    "key.m3u8": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF:9,\nno.ts\n',
    "addressed.m3u8": "#EXTM3U\n#EXTINF:9,\nfile:{}\n#EXT-X-ENDLIST\n",
}
"""By name: what the file says; {} is the path of a video that lies beside it."""


@pytest.fixture
def other(tmp_path) -> Path:
    """A video that is named; that it was read is seen from its time."""
    path = write_video(tmp_path / "other.mp4")
    os.utime(path, (LONG_AGO_S, LONG_AGO_S + 1))
    if not _shows_reading(tmp_path):
        pytest.skip("this file system keeps no times of reading")
    return path


def _shows_reading(folder: Path) -> bool:
    path = folder / "times"
    path.write_bytes(b"a")
    os.utime(path, (LONG_AGO_S, LONG_AGO_S + 1))
    path.read_bytes()
    return path.stat().st_atime != LONG_AGO_S


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_list_of_other_files_is_no_video_and_none_of_them_is_read(
    tmp_path, other, name, decoder: Decoder
):
    path = tmp_path / name
    path.write_text(TEXTS[name].format(other))
    with pytest.raises(VideoError) as refused:
        read_clip(path, Sampling(), decoder=decoder)
    assert refused.value.reason == "not_a_video"
    assert str(path) in refused.value.problem
    assert other.stat().st_atime == LONG_AGO_S


def to_a_pipe(folder: Path, other: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def to_a_text(folder: Path, other: Path) -> Path:
    (folder / "secret").write_text("a secret\n" * 99)
    return folder / "secret"


def to_a_device(folder: Path, other: Path) -> Path:
    return Path("/dev/zero")


def to_a_folder(folder: Path, other: Path) -> Path:
    (folder / "films").mkdir()
    return folder / "films"


def to_a_list(folder: Path, other: Path) -> Path:
    (folder / "list.m3u8").write_text(PLAYLIST.format(other))
    return folder / "list.m3u8"


@pytest.mark.parametrize("target", [to_a_pipe, to_a_text, to_a_device, to_a_folder, to_a_list])
def test_a_link_to_what_is_no_video_is_no_video(
    tmp_path, other, target: Callable[[Path, Path], Path]
):
    path = tmp_path / "film.mp4"
    path.symlink_to(target(tmp_path, other))
    with pytest.raises(VideoError) as refused:
        read_clip(path, Sampling())
    assert refused.value.reason == "not_a_video"
    assert other.stat().st_atime == LONG_AGO_S


def test_a_link_to_nothing_or_to_itself_is_told_as_that(tmp_path):
    gone, itself = tmp_path / "gone.mp4", tmp_path / "itself.mp4"
    gone.symlink_to(tmp_path / "nothing")
    itself.symlink_to(itself)
    for path, reason in ((gone, "missing"), (itself, "unreadable")):
        with pytest.raises(VideoError) as refused:
            read_clip(path, Sampling())
        assert refused.value.reason == reason
