"""A film that stays open from clip to clip gives the same frames, and is let go of in time."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scenes import settings, write_scene
from videos import numbers_in, write_video

from benchmarks.long_videos import write_film
from cogcache import decord_reader
from cogcache.frame_index import index_frames
from cogcache.video import probe, read_clip

SPREAD = settings(strategy="spread", max_frames=6).sampling
KINDS = {
    "b frames.mp4": {"max_b_frames": 3},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "plain.avi": {"codec": "mpeg4"},
    "plain.flv": {},
}


def open_files(path: Path) -> int:
    """Return how often this process has a file open."""
    found = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(each.exists() and each.samefile(path) for each in found)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", minutes=10)


@pytest.mark.parametrize("name", KINDS)
def test_clips_in_any_order_are_those_of_a_film_opened_anew(name, tmp_path):
    path = write_video(tmp_path / name, num_frames=120, size=(96, 64), **KINDS[name])
    index, rng = index_frames(path), random.Random(0)
    spans = [range(first, min(first + rng.choice((1, 4, 30)), 120), rng.choice((1, 2)))
             for first in rng.sample(range(120), 12)]  # fmt: skip
    kept = [decord_reader.decord_frames(path, index, span) for span in spans]
    for span, frames in zip(spans, kept, strict=True):
        decord_reader.close()
        anew = decord_reader.decord_frames(path, index, span)
        assert frames is not None
        assert np.array_equal(frames, anew)
        assert numbers_in(frames) == list(span)


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx265", {"x265-params": "log-level=error:open-gop=1:bframes=4"}), ("mpeg4", {"bf": "2"})],
)
def test_groups_of_pictures_that_lean_on_the_one_before_are_shown_to_the_frame(
    codec, options, tmp_path
):
    path = write_video(tmp_path / "a.mp4", num_frames=120, codec=codec, gop=24, options=options)
    index = index_frames(path)
    for first in range(3, 112, 9):
        chosen = read_clip(path, SPREAD, index.times_s[first], index.times_s[first + 4])
        assert numbers_in(chosen.frames) == chosen.frame_indices.tolist()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_one_film_is_open_at_a_time(film, tmp_path):
    other = write_video(tmp_path / "other.webm", codec="libvpx-vp9")
    read_clip(film, SPREAD, 0.0, 24.0)
    assert open_files(film) == 1
    read_clip(film, SPREAD, 300.0, 324.0)
    assert open_files(film) == 1
    read_clip(other, SPREAD)
    assert (open_files(film), open_files(other)) == (0, 1)


FORKING = """
import os, sys
from pathlib import Path
import torch
from cogcache.config import Sampling
from cogcache.video import read_clip

def read(path):
    return read_clip(Path(path), Sampling(strategy="spread", max_frames=6), 0.0, None)

assert read(sys.argv[1]).decoder == "decord"
if (child := os.fork()) == 0:
    os._exit(int(len(read(sys.argv[2]).frames) == 0))
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_can_read_another_film(tmp_path):
    films = [tmp_path / f"{number}.mp4" for number in range(2)]
    for number, film in enumerate(films):
        write_scene(film, number)
    subprocess.run([sys.executable, "-c", FORKING, *films], check=True, timeout=60)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_pictures_that_take_much_memory_are_not_kept_open(tmp_path):
    path = write_video(tmp_path / "4k.mp4", num_frames=2, size=(2560, 1440))
    assert read_clip(path, SPREAD).decoder == "decord"
    assert open_files(path) == 0


def test_a_film_that_is_replaced_or_grows_is_opened_anew(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=20)
    assert numbers_in(read_clip(path, SPREAD).frames)[-1] == 19
    longer = write_video(tmp_path / "b.mp4", num_frames=50)
    shutil.copyfile(longer, path)
    assert numbers_in(read_clip(path, SPREAD).frames)[-1] == 49
    assert probe(path).total_num_frames == 50
    write_video(tmp_path / "c.mp4", num_frames=30).replace(path)
    assert numbers_in(read_clip(path, SPREAD).frames)[-1] == 29
    assert probe(path).total_num_frames == 30
