from __future__ import annotations

import io
import math
import os
import shutil
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import (
    flip_bits,
    numbers_in,
    picture,
    real_videos,
    remux,
    truncate,
    write_audio,
    write_video,
)

from cogcache.errors import VideoError
from cogcache.settings.stage_one import Sampling
from cogcache.video import container, pyav_reader, reading
from cogcache.video.cutting import cut
from cogcache.video.decord_reader import decord_frames, unfit
from cogcache.video.frame_index import index_frames
from cogcache.video.pyav_reader import pyav_frames
from cogcache.video.reading import probe, read_clip, thumbnail

PER_SECOND = Sampling()
B_FRAMES = {"max_b_frames": 3, "options": {"preset": "fast"}}
OPEN_GOP = {"max_b_frames": 3, "options": {"preset": "fast", "x264-params": "open-gop=1:bframes=3"}}
SLOW_REFRESH = {"options": {"preset": "fast", "x264-params": "intra-refresh=1"}}
VARIABLE = {"times_s": [0, 0.1, 0.15, 0.9, 1, 2.5, 2.6, 4, 4.1]}
LATE = {"times_s": [1.5 + index / 10 for index in range(30)]}

# Files that both decoders read right.
BOTH = {
    "plain.mp4": {},
    "plain.mov": {},
    "plain.mkv": {},
    "plain.flv": {},
    "b_frames.mp4": B_FRAMES,
    "b_frames.mkv": B_FRAMES,
    "ntsc.mp4": {"fps": Fraction(30_000, 1001), "num_frames": 90},
    "variable.mp4": VARIABLE,
    "variable.mkv": VARIABLE,
    "variable_b.mp4": {**VARIABLE, **B_FRAMES},
    "late.mp4": LATE,
    "late.mkv": LATE,
    "sound.mp4": {"audio": True},
    "one.mp4": {"num_frames": 1},
    "odd.mp4": {"size": (97, 49), "pix_fmt": "yuv444p"},
    "hevc.mp4": {"codec": "libx265"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg"},
    "tilted.mp4": {"rotation": 45},
}
# Files that decord cannot open, or shows wrong frames of.
PYAV_ONLY = {
    "av1.mp4": {"codec": "libsvtav1"},
    "moving.gif": {"codec": "gif"},
    "b_frames.ts": {**B_FRAMES, "num_frames": 60},
    "late.ts": LATE,
    "b_frames.avi": {**B_FRAMES, "num_frames": 60},
    "mpeg4_b.avi": {"codec": "mpeg4", "max_b_frames": 2},
    "open_gop.mp4": {**OPEN_GOP, "num_frames": 100},
    "slow_refresh.mp4": {**SLOW_REFRESH, "num_frames": 200, "gop": 25},
}
TEN_BIT = {
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "ten_bit_hevc.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """All the sound files above, written once."""
    folder = tmp_path_factory.mktemp("videos")
    kinds = BOTH | PYAV_ONLY | TEN_BIT
    return {name: write_video(folder / name, **how) for name, how in kinds.items()}


def every(nth: int, path: Path) -> list[int]:
    return list(range(0, len(index_frames(path).times_s), nth))


@pytest.mark.parametrize("name", [*BOTH, *PYAV_ONLY, *TEN_BIT])
def test_the_frames_are_those_that_the_numbers_say(files, name):
    clip = read_clip(files[name], PER_SECOND)
    assert numbers_in(clip.frames) == clip.frame_indices.tolist()


@pytest.mark.parametrize("name", [*BOTH, *PYAV_ONLY, *TEN_BIT])
def test_the_times_are_those_that_the_frames_were_written_at(files, name):
    how = (BOTH | PYAV_ONLY | TEN_BIT)[name]
    wanted = how.get("times_s") or np.arange(how.get("num_frames", 30)) / float(how.get("fps", 10))
    times_s = index_frames(files[name]).times_s
    np.testing.assert_allclose(times_s, np.array(wanted) - wanted[0], atol=1e-3)


@pytest.mark.parametrize("name", [*BOTH, *PYAV_ONLY, *TEN_BIT])
def test_the_decoder_that_served_is_told(files, name):
    clip = read_clip(files[name], PER_SECOND)
    assert clip.decoder == "pyav"


@pytest.mark.parametrize("name", [*BOTH, *PYAV_ONLY, *TEN_BIT])
def test_a_sound_file_is_not_suspect(files, name):
    assert read_clip(files[name], PER_SECOND).suspect is None


@pytest.mark.parametrize("name", [*BOTH, *TEN_BIT])
def test_both_decoders_give_the_same_frames_at_the_same_times(files, name):
    decord = pytest.importorskip("decord")
    index = index_frames(files[name])
    reader = decord.VideoReader(str(files[name]))
    assert np.array_equal(reader.get_frame_timestamp(range(len(reader)))[:, 0], index.times_s)
    assert reader.get_avg_fps() == pytest.approx(index.fps)
    for nth in (1, 7):
        numbers = every(nth, files[name])
        by_decord, (by_pyav, _) = (
            read(files[name], index, numbers) for read in (decord_frames, pyav_frames)
        )
        assert numbers_in(by_decord) == numbers_in(by_pyav) == numbers
        if name in BOTH:
            assert np.array_equal(by_decord, by_pyav)


@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.name)
def test_both_decoders_give_the_same_frames_of_films(path):
    pytest.importorskip("decord")
    index = index_frames(path)
    numbers = every(25, path)
    if reason := unfit(index):
        pytest.skip(f"decord is not proven for it: {reason}")
    assert np.array_equal(decord_frames(path, index, numbers), pyav_frames(path, index, numbers)[0])


@pytest.mark.parametrize("name", ["plain.mp4", "b_frames.ts", "open_gop.mp4", "slow_refresh.mp4"])
def test_pyav_finds_any_frame_alone(files, name):
    index = index_frames(files[name])
    for number in every(7, files[name]):
        frames, troubles = pyav_frames(files[name], index, [number])
        assert (numbers_in(frames), troubles) == ([number], [])


@pytest.mark.parametrize("name", BOTH)
def test_decord_can_be_forced_where_it_is_proven(files, name):
    forced, usual = (read_clip(files[name], PER_SECOND, decoder=d) for d in ("decord", "auto"))
    assert (forced.decoder, usual.decoder) == ("decord", "pyav")
    assert np.array_equal(forced.frames, usual.frames)
    assert np.array_equal(forced.timestamps_s, usual.timestamps_s)


@pytest.mark.parametrize("name", PYAV_ONLY)
def test_decord_is_refused_where_it_is_not_proven(files, name):
    with pytest.raises(VideoError, match="not to be read with decord") as raised:
        read_clip(files[name], PER_SECOND, decoder="decord")
    assert raised.value.reason == "decoder_unfit"


@pytest.mark.parametrize(
    ("how", "turn"),
    [
        ({"rotation": 90}, lambda frame: np.rot90(frame)),
        ({"rotation": 180}, lambda frame: np.rot90(frame, 2)),
        ({"rotation": 270}, lambda frame: np.rot90(frame, 3)),
        ({"hflip": True}, lambda frame: frame[:, ::-1]),
        ({"rotation": 90, "hflip": True}, lambda frame: np.rot90(frame)[:, ::-1]),
        ({"rotation": 270, "hflip": True}, lambda frame: np.rot90(frame, 3)[:, ::-1]),
    ],
)
def test_the_picture_is_turned_as_a_player_would(tmp_path, how, turn):
    clip = read_clip(write_video(tmp_path / "turned.mp4", num_frames=3, **how), PER_SECOND)
    expected = turn(picture(0, 96, 48)).astype(int)
    assert clip.frames.shape[1:] == expected.shape
    assert np.abs(clip.frames[0] - expected).mean() < 6


@pytest.mark.parametrize("shift_s", [-0.5, -1.05])
def test_frames_that_an_edit_list_leaves_out_are_no_defect(tmp_path, shift_s):
    source = write_video(tmp_path / "source.mp4", num_frames=40, gop=1)
    clip = read_clip(remux(source, tmp_path / "cut.mp4", shift_s=shift_s), PER_SECOND)
    assert clip.suspect is None
    first = math.ceil(-shift_s * 10)
    assert numbers_in(clip.frames)[:3] == [first, first + 10, first + 20]


def test_frames_that_are_missing_behind_an_edit_list_are_a_defect(tmp_path):
    source = write_video(tmp_path / "source.mp4", num_frames=40, gop=1)
    options = {"movflags": "faststart"}
    cut = remux(source, tmp_path / "cut.mp4", shift_s=-0.5, options=options)
    clip = read_clip(truncate(cut, 0.8), PER_SECOND)
    assert "40 frames are announced" in str(clip.suspect)


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", num_frames=60, gop=20)
    clip = read_clip(remux(whole, tmp_path / "cut.mp4", shift_s=-0.55), PER_SECOND)
    assert clip.total_num_frames == 54
    assert numbers_in(clip.frames) == [6 + index for index in clip.frame_indices]


def test_a_clip_holds_the_frames_that_begin_in_it(files):
    clip = read_clip(files["open_gop.mp4"], Sampling(strategy="uniform", max_frames=20), 3.0, 5.0)
    assert numbers_in(clip.frames) == clip.frame_indices.tolist() == list(range(30, 50))
    np.testing.assert_allclose(clip.timestamps_s, np.arange(30, 50) / 10, atol=1e-6)


def test_a_clip_that_is_short_holds_frames_twice(files):
    clip = read_clip(files["one.mp4"], Sampling(strategy="uniform", max_frames=4))
    assert clip.frame_indices.tolist() == [0, 0, 0, 0]
    assert clip.frames.shape == (4, 48, 96, 3)
    assert (clip.frames == clip.frames[0]).all()


def test_a_clip_after_the_end_says_so(files):
    with pytest.raises(VideoError) as raised:
        read_clip(files["plain.mp4"], PER_SECOND, start_s=60.0)
    assert raised.value.reason == "clip_outside"


def test_what_is_known_of_the_video_comes_with_the_clip(files):
    clip = read_clip(files["ntsc.mp4"], PER_SECOND)
    assert clip.fps == pytest.approx(30_000 / 1001)
    assert clip.total_num_frames == 90
    assert clip.duration_s == pytest.approx(90 * 1001 / 30_000)
    assert (clip.frames.dtype, clip.timestamps_s.dtype, clip.frame_indices.dtype) == (
        np.uint8,
        np.float64,
        np.int64,
    )


@pytest.mark.parametrize(
    "name", ["plain.mp4", "plain.mkv", "vp9.webm", "moving.gif", "b_frames.avi", "b_frames.ts"]
)
def test_a_probe_tells_what_the_head_says(files, name):
    info = probe(files[name])
    num_frames = len(index_frames(files[name]).times_s)
    assert (info.width, info.height) == (96, 48)
    assert info.duration_s == pytest.approx(num_frames / 10, abs=0.06)
    assert info.total_num_frames == num_frames
    assert info.fps == pytest.approx(10)


def test_a_late_start_is_no_part_of_the_length(files):
    for name in ("late.mp4", "late.mkv", "late.ts"):
        assert probe(files[name]).duration_s == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize(
    "name", [b"sp ace 'q\".mp4", b"new\nline.mp4", b"\xff\xfe.mp4", b"http:x.mp4"]
)
def test_a_name_may_be_any_bytes(files, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    shutil.copy(files["plain.mp4"], path)
    assert numbers_in(read_clip(path, PER_SECOND).frames) == [0, 10, 20, 29]
    assert probe(path).total_num_frames == 30


def test_a_title_need_not_be_text(tmp_path):
    path = tmp_path / "titled.mp4"
    remux(write_video(tmp_path / "plain.mp4"), path, title="a title")
    path.write_bytes(path.read_bytes().replace(b"a title", b"\xff\xfe\xff\xfe\xff\xfe\xff"))
    assert probe(path).total_num_frames == 30
    assert numbers_in(read_clip(path, PER_SECOND).frames) == [0, 10, 20, 29]


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(100_000))


def only_sound(path: Path) -> None:
    write_audio(path)


def a_picture(path: Path) -> None:
    Image.new("RGB", (60, 50)).save(path, "JPEG")


def a_text(path: Path) -> None:
    path.write_text("hello\n" * 100)


def a_list_of_videos(path: Path) -> None:
    write_video(path.with_name("listed.mp4"))
    path.write_text("ffconcat version 1.0\nfile listed.mp4\n")


def sound_with_a_cover(path: Path) -> None:
    cover = io.BytesIO()
    Image.new("RGB", (60, 50)).save(cover, "JPEG")
    with av.open(path, "w", format="matroska") as container:
        stream = container.add_stream("aac", rate=8000)
        container.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        for start in range(0, 8192, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut_off(path: Path) -> None:
    truncate(write_video(path), 0.6)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (random_bytes, "not_a_video"),
        (a_picture, "not_a_video"),
        (a_text, "not_a_video"),
        (a_list_of_videos, "not_a_video"),
        (cut_off, "not_a_video"),
        (only_sound, "no_video_stream"),
        (sound_with_a_cover, "no_video_stream"),
        (nothing, "empty_file"),
        (Path.mkdir, "not_a_video"),
        (os.mkfifo, "not_a_video"),
        (lambda path: None, "missing"),
    ],
)
def test_what_is_no_video_says_why(tmp_path, make, reason, capfd):
    path = tmp_path / "bad.mp4"
    make(path)
    for read in (lambda: read_clip(path, PER_SECOND), lambda: probe(path)):
        with pytest.raises(VideoError) as raised:
            read()
        assert raised.value.reason == reason
        assert str(path) in raised.value.problem
        assert raised.value.hint
    assert capfd.readouterr() == ("", "")  # the libraries' own messages stay out of the log


def fast_start(path: Path) -> Path:
    """Move the head of an MP4 to its front, so that what is left of it can be opened."""
    moved = remux(path, path.with_name(f"front_{path.name}"), options={"movflags": "faststart"})
    return moved.replace(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".flv"])
def test_a_file_cut_off_gives_what_is_there_and_is_suspect(tmp_path, suffix):
    path = write_video(tmp_path / f"whole{suffix}", num_frames=100, gop=20)
    path = truncate(fast_start(path) if suffix == ".mp4" else path, 0.6)
    clip = read_clip(path, PER_SECOND)
    assert clip.suspect
    assert 50 <= clip.total_num_frames <= 60
    assert numbers_in(clip.frames)[:5] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("seed", range(5))
def test_damage_makes_a_clip_suspect(tmp_path, seed, capfd):
    path = write_video(
        tmp_path / "sound.mkv", num_frames=100, gop=20, size=(192, 96), options={"preset": "fast"}
    )
    clip = read_clip(flip_bits(path, 20, seed=seed), PER_SECOND)
    assert clip.suspect
    assert clip.decoder == "pyav"
    assert numbers_in(clip.frames)[:3] == [0, 10, 20]
    assert capfd.readouterr() == ("", "")


def test_what_was_wrong_with_one_file_is_not_told_of_the_next(tmp_path, files):
    bare = truncate(write_video(tmp_path / "bare.mp4"), 0.6)
    for _ in range(3):
        with pytest.raises(VideoError, match="moov atom"):
            probe(bare)
    damaged = truncate(write_video(tmp_path / "bad.flv", num_frames=100), 0.6)
    assert "moov atom" not in read_clip(damaged, PER_SECOND).suspect
    assert read_clip(files["b_frames.ts"], PER_SECOND).suspect is None
    assert read_clip(files["plain.mp4"], PER_SECOND).suspect is None


def test_a_frame_that_is_lost_is_stood_in_for_by_the_one_before(tmp_path):
    path = write_video(tmp_path / "lossy.mp4", gop=1)
    with av.open(path) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0)]
    content = bytearray(path.read_bytes())
    start, size = places[20]
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    clip = read_clip(path, PER_SECOND)
    assert numbers_in(clip.frames) == [0, 10, 19, 29]
    assert "chosen frames lost, with a neighbour in their place: 1" in clip.suspect


def test_a_stream_that_cannot_be_decoded_at_all_says_so(tmp_path):
    path = write_video(tmp_path / "blank.mp4", num_frames=5)
    content = path.read_bytes()
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])
    with pytest.raises(VideoError) as raised:
        read_clip(path, PER_SECOND)
    assert raised.value.reason == "decode_failed"


def test_an_unknown_codec_says_so(tmp_path):
    path = write_video(tmp_path / "new.mkv")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"))
    with pytest.raises(VideoError, match="no decoder knows") as raised:
        read_clip(path, PER_SECOND)
    assert raised.value.reason == "decode_failed"


@pytest.mark.parametrize(
    "name", ["plain.mp4", "b_frames.mkv", "b_frames.ts", "plain.flv", "mpeg4.avi"]
)
def test_whatever_is_wrong_with_a_file_is_told_as_such(files, tmp_path, name, capfd):
    # The last two once made decord print that it cannot open what PyAV can.
    for seed in (*range(30), 76, 197):
        path = shutil.copy(files[name], tmp_path / f"{seed}{files[name].suffix}")
        flip_bits(path, 2 ** (seed % 8), seed=seed, first=0)
        for read in (lambda path=path: read_clip(path, PER_SECOND), lambda path=path: probe(path)):
            with suppress(VideoError):
                read()
    assert capfd.readouterr() == ("", "")


def test_a_stream_without_frames_says_so(tmp_path):
    path = tmp_path / "bare.mp4"
    with av.open(path, "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError) as raised:
        read_clip(path, PER_SECOND)
    assert raised.value.reason == "no_frames"


def test_pictures_of_absurd_size_are_refused_before_they_are_decoded(files, monkeypatch):
    monkeypatch.setattr(container, "MAX_SIDE", 95)
    with pytest.raises(VideoError, match="96 x 48 pixels") as raised:
        probe(files["plain.mp4"])
    assert raised.value.reason == "too_large"


def test_a_clip_that_would_not_fit_is_refused_before_it_is_decoded(files, monkeypatch):
    monkeypatch.setattr(reading, "MAX_CLIP_BYTES", 3 * 96 * 48 * 3)
    monkeypatch.setattr(pyav_reader, "pyav_frames", None)
    with pytest.raises(VideoError, match="4 frames of 96 x 48") as raised:
        read_clip(files["plain.mp4"], PER_SECOND)
    assert raised.value.reason == "too_large"


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "v.mp4"
    assert read_clip(write_video(path, num_frames=30), PER_SECOND).total_num_frames == 30
    assert read_clip(write_video(path, num_frames=50), PER_SECOND).total_num_frames == 50


def test_a_thumbnail_is_the_middle_frame_made_small():
    frames = np.zeros((5, 400, 800, 3), np.uint8)
    frames[2] = (255, 0, 0)
    image = Image.open(io.BytesIO(thumbnail(frames)))
    assert (image.format, image.size) == ("JPEG", (256, 128))
    assert image.getpixel((100, 60))[0] > 240


@pytest.mark.parametrize(
    ("duration_s", "segment_s", "clips"),
    [
        (100.0, None, [(0, None)]),
        (30.0, 60.0, [(0, None)]),
        (60.0, 60.0, [(0, None)]),
        (89.9, 60.0, [(0, None)]),
        (90.0, 60.0, [(0, 60), (60, None)]),
        (140.0, 60.0, [(0, 60), (60, None)]),
        (150.0, 60.0, [(0, 60), (60, 120), (120, None)]),
        (0.0, 60.0, [(0, None)]),
    ],
)
def test_a_video_is_cut_and_a_short_rest_joins_its_neighbour(duration_s, segment_s, clips):
    assert cut(duration_s, segment_s) == clips


@pytest.mark.parametrize(
    ("duration_s", "clips"),
    [
        (10.0, [(0.0, None)]),
        (95.0, [(0.0, 30.0), (20.0, 50.0), (40.0, 70.0), (60.0, None)]),
        (105.0, [(0.0, 30.0), (20.0, 50.0), (40.0, 70.0), (60.0, 90.0), (80.0, None)]),
    ],
)
def test_clips_share_what_they_are_to_overlap(duration_s, clips):
    assert cut(duration_s, 30.0, 10.0) == clips


def test_clips_follow_one_another_without_a_gap():
    clips = cut(10_800.0, 7.3)
    assert all(before[1] == after[0] for before, after in pairwise(clips))


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux alone tells it")
def test_writing_a_video_leaves_the_scheduling_of_this_process_as_it_was(tmp_path):
    before = os.sched_getscheduler(0)
    write_video(tmp_path / "av1.mp4", codec="libsvtav1", num_frames=4)
    assert os.sched_getscheduler(0) == before
