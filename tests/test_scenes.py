"""Videos are cut where scenes begin, at the video's own times; what was found is remembered."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scenes import settings
from videos import real_videos

from cogcache import scenes
from cogcache.catalog import Catalog
from cogcache.cutting import Cuts, cut_videos, known_spans
from cogcache.errors import ConfigError
from cogcache.extract import extract
from cogcache.inputs import file_digest
from cogcache.scenes import THRESHOLDS, Piece, extent_of, pieces_of, search, spans_of

FPS = 10
LENGTHS = (30, 50, 20, 7, 40, 25)
"""Frames of each scene."""
FIRSTS = tuple(int(n) for n in np.cumsum(LENGTHS)[:-1])
STEPS_S = (0.1, 0.25, 0.04, 0.5)
SETTINGS = settings(scenes=True)


def write_film(
    path: Path,
    lengths: Sequence[int] = LENGTHS,
    times_s: Sequence[float] | None = None,
    codec: str = "libx264",
    max_b_frames: int = 0,
) -> Path:
    """Write scenes of coarse random colours in each of which a white square moves."""
    rng = np.random.default_rng(0)
    pictures = [
        np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 12, 1), np.uint8))
        for _ in lengths
    ]
    frames = [pic.copy() for pic, n in zip(pictures, lengths, strict=True) for _ in range(n)]
    times_s = [n / FPS for n in range(len(frames))] if times_s is None else times_s
    time_base = Fraction(1, FPS) if path.suffix == ".avi" else Fraction(1, 1000)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.gop_size, stream.max_b_frames, stream.thread_count = 12, max_b_frames, 1
        stream.codec_context.time_base = stream.time_base = time_base
        for number, pixels in enumerate(frames):
            pixels[number % 8 * 4 :, :6][:6] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base, frame.pts = time_base, round(times_s[number] / time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4")


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    with Catalog(tmp_path / "catalog.sqlite") as opened:
        yield opened


def searched(path: Path, detector: str = "adaptive") -> list[float]:
    """Return where scenes begin, found in one pass over all frames."""
    count = extent_of(path).num_frames
    return search(Piece(path, 0, count, detector, THRESHOLDS[detector]))


def cut_up(catalog: Catalog, *videos: Path, failed: Sequence[str] = (), **options: object) -> Cuts:
    digests = {video: file_digest(video) for video in videos}
    made = settings(scenes=True, **options)
    return cut_videos(digests, made, catalog, failed, lambda each: f"whole {each}")


@pytest.mark.parametrize("detector", THRESHOLDS)
def test_scenes_begin_at_their_first_frames(film, detector):
    assert searched(film, detector) == [first / FPS for first in FIRSTS]


def test_the_cuts_of_a_filmed_video_are_found_to_the_frame():
    """They were checked by eye: the frame before each shows another place."""
    (bikes,) = [path for path in real_videos() if path.stem == "bikes"]
    assert searched(bikes) == [1.2, 3.04, 5.48, 7.48, 9.68]


def test_times_are_the_videos_own_at_a_variable_frame_rate(tmp_path):
    times_s = np.cumsum([0.0, *np.resize(STEPS_S, sum(LENGTHS) - 1)]).round(3)
    path = write_film(tmp_path / "uneven.mkv", times_s=times_s.tolist())
    assert searched(path) == pytest.approx(times_s[[*FIRSTS]], abs=1e-4)


@pytest.mark.parametrize("size", [1, 7, 30, 37])
@pytest.mark.parametrize(
    "kind", [("b.mkv", "libx264", 2), ("c.avi", "mpeg4", 0), ("d.ts", "libx264", 0)]
)
def test_pieces_find_what_one_pass_finds(tmp_path, monkeypatch, kind, size):
    name, codec, max_b_frames = kind
    path = write_film(tmp_path / name, codec=codec, max_b_frames=max_b_frames)
    monkeypatch.setattr(scenes, "PIECE_FRAMES", size)
    pieces = list(pieces_of(path, extent_of(path), "adaptive", 3.0))
    assert [time_s for piece in pieces for time_s in search(piece)] == searched(path)
    assert searched(path)


def test_a_clip_has_the_frames_of_its_scene_and_no_others(film, tmp_path):
    report = extract([film], tmp_path / "cache", settings(scenes=True, min_scene_s=0.5))
    assert report.counts.done == len(LENGTHS)
    with Catalog(tmp_path / "cache" / "catalog.sqlite") as catalog:
        spans = [(clip["start_s"], clip["end_s"]) for clip in catalog.clips()]
    begins = [0.0, *(first / FPS for first in FIRSTS)]
    assert spans == list(zip(begins, [*begins[1:], None], strict=True))


def test_short_scenes_join_the_one_before_them():
    assert spans_of([3.0, 8.0, 9.0, 12.0], 30.0, 2.0) == [
        (0.0, 3.0), (3.0, 8.0), (8.0, 12.0), (12.0, None),
    ]  # fmt: skip
    assert spans_of([1.0], 30.0, 2.0) == [(0.0, None)]


def test_a_short_last_scene_joins_its_neighbour():
    assert spans_of([3.0, 10.0, 29.5], 30.0, 2.0) == [(0.0, 3.0), (3.0, 10.0), (10.0, None)]


def test_long_scenes_are_cut_further_and_no_second_is_lost():
    spans = spans_of([7.3], 50.0, 2.0, segment_s=10.0)
    assert spans[:2] == [(0.0, 7.3), (7.3, 17.3)]
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert spans[-1] == (37.3, None)


def test_clips_overlap_within_a_scene_only():
    spans = spans_of([20.0], 40.0, 2.0, segment_s=11.0, overlap_s=2.0)
    assert spans == [(0.0, 11.0), (9.0, 20.0), (20.0, 31.0), (29.0, None)]


def test_a_video_without_cuts_is_one_clip():
    assert spans_of([], 30.0, 2.0) == [(0.0, None)]


def test_what_was_found_is_remembered_with_how_it_was_found(film, catalog):
    spans = cut_up(catalog, film).spans[film]
    (name,) = [f"scenes adaptive 3 {file_digest(film)}"]
    value = catalog.recall(name)
    assert value["begins_s"] == [first / FPS for first in FIRSTS]
    assert value["made_with"].startswith("scenedetect")
    assert known_spans([file_digest(film)], SETTINGS.clips, catalog) == {file_digest(film): spans}


def test_a_second_run_decodes_nothing(film, tmp_path):
    video = tmp_path / "film.mp4"
    video.write_bytes(film.read_bytes())
    first = extract([video], tmp_path / "cache", SETTINGS)
    facts = video.stat()
    with video.open("r+b") as file:
        file.write(bytes(facts.st_size))  # the same file by all that is looked at
    os.utime(video, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = extract([video], tmp_path / "cache", SETTINGS)
    assert (second.counts.cached, second.counts.failed) == (first.counts.done, 0)


def test_other_lengths_of_scenes_need_no_second_search(film, tmp_path, catalog, monkeypatch):
    cut_up(catalog, film)
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    spans = cut_up(catalog, film, min_scene_s=0.1, segment_s=2.0).spans[film]
    assert len(spans) > len(LENGTHS)


def test_a_video_that_cannot_be_searched_is_one_failure(film, tmp_path, catalog):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 100)
    cuts = cut_up(catalog, bad, film)
    assert [(video, error.reason) for video, error, _ in cuts.failures] == [(bad, "not_a_video")]
    assert [*cuts.spans] == [film]
    (key,) = [key for _, _, key in cuts.failures]
    again = cut_up(catalog, bad, film, failed=[key])
    assert (again.known_failures, again.failures) == ([bad], [])


def test_without_the_extra_the_error_says_how_to_install_it(film, catalog, monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ConfigError, match="needs PySceneDetect") as caught:
        cut_up(catalog, film)
    assert caught.value.hint == "pip install 'cogcache[scenes]'"
