"""Files made to fill the memory, decoders that crash or hang: each costs its own clip alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus import million_frames
from scenes import catalog_of, settings, write_scene
from videos import write_video

from cogcache.stages.extract import extract
from cogcache.store.store import FeatureStore

SMALL = {"decode_memory_gib": 0.75}
FAKE_DECORD = """
import os, time
class DECORDError(Exception): pass
class logging:
    QUIET = 0
    set_level = staticmethod(lambda level: None)
class VideoReader:
    def __init__(self, path, **how):
        name = os.path.basename(path)
        if name.startswith("crash"): os.abort()
        if name.startswith("hang"): time.sleep(3600)
        if name.startswith("swallow"): self.held = [bytearray(b"x") * (1 << 30) for _ in range(9)]
        raise DECORDError("cannot read it")
"""


def outcome(folder: Path, cache: Path, **overrides: object) -> dict[str, str]:
    """Run stage one; return the reason, or the decoder that served, by the file's name."""
    extract([folder], cache, settings(**overrides))
    store = FeatureStore.open(cache)
    with catalog_of(cache) as catalog:
        found = {row["video"]: row["reason"] for row in catalog.failures.rows()}
        for clip in catalog.clips.rows():
            found[clip["video"]] = clip["decoder"]
            assert store.describe(clip["feature_key"])["decoder"] == clip["decoder"]
    return {Path(video).name: each for video, each in found.items()}


def test_bombs_cost_a_row_each_and_the_good_are_made(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_scene(videos / "a.mp4", 0)
    write_video(videos / "large.mp4", num_frames=14, fps=1, size=(3200, 3200), codec="mpeg4")
    million_frames(videos / "many.mp4", number=20_000_000)
    write_scene(videos / "z.mp4", 1)
    found = outcome(videos, tmp_path / "cache", **SMALL)
    assert {found.pop(name) for name in ("a.mp4", "z.mp4")} <= {"decord", "pyav"}
    assert found == {"large.mp4": "decode_memory", "many.mp4": "decode_memory"}


@pytest.fixture
def fake_decord(tmp_path, monkeypatch):
    """Put a decord before the real one that does to a file what the file's name says."""
    package = tmp_path / "packages" / "decord"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_DECORD)
    monkeypatch.syspath_prepend(package.parent)


@pytest.mark.usefixtures("fake_decord")
def test_where_a_decoder_crashes_hangs_or_fills_the_memory_each_clip_is_a_failure(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for seed, name in enumerate(["crash", "hang", "swallow"]):
        write_scene(videos / f"{name}.mp4", seed)
    forced = {"decoder": "decord", "decode_timeout_s": 4.0, **SMALL}
    assert outcome(videos, tmp_path / "cache", **forced) == {
        "crash.mp4": "decoder_crashed",
        "hang.mp4": "timeout",
        "swallow.mp4": "decode_memory",
    }
    # PyAV reads first, so that decord is not even asked.
    names = ("crash.mp4", "hang.mp4", "swallow.mp4")
    assert outcome(videos, tmp_path / "other", **SMALL) == dict.fromkeys(names, "pyav")


@pytest.mark.usefixtures("fake_decord")
def test_where_pyav_gives_no_picture_of_a_file_with_defects_decord_is_not_asked(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    million_frames(videos / "crash.mp4", number=1_000_000)
    assert outcome(videos, tmp_path / "cache") == {"crash.mp4": "decode_failed"}
