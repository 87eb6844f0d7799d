"""An exported clip shows what was captioned: read, exported, and read again by three readers."""

from __future__ import annotations

import subprocess

import av
import numpy as np
import pytest
from kinds import CONTAINERS, SOON, SPECIAL, joined
from readers import READERS, captioned, differences
from videos import write_video

from cogcache.export.clip_encoder import encode, part_of
from cogcache.export.clip_files import reason_to_encode
from cogcache.export.trainer_folders import DECORD
from cogcache.video.frame_index import index_frames

ALL = {**CONTAINERS, **SPECIAL}
SPAN = (1.0, 2.6)
KINDS = [pytest.param(name, marks=() if name in SOON else pytest.mark.slow) for name in ALL]
COPIED = {"h264.mp4", "hevc.mp4", "vp9.mp4", "mpeg4.mp4", "b frames.mp4", "709.mp4"}
COPIED |= {"ten bits.mp4", "odd size.mp4"}
BOUND = 3
"""Of the mean difference of a frame, of 255."""


@pytest.mark.parametrize("name", KINDS)
def test_three_readers_see_in_a_clip_the_frames_that_were_captioned(name, tmp_path):
    source, made = tmp_path / name, tmp_path / "clip.mp4"
    ALL[name](source)
    assert max(differences(source, made, *SPAN).values()) < BOUND


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_video_is_copied_only_where_readers_show_it_as_it_was_captioned(name, tmp_path):
    source = tmp_path / name
    ALL[name](source)
    reason = reason_to_encode(index_frames(source), DECORD)
    assert (reason is None) == (name in COPIED), reason
    if reason is None:
        wanted = captioned(source, 0.0, None)
        for reader, read in READERS.items():
            frames = read(source)
            assert frames.shape == wanted.shape, reader
            assert np.abs(frames.astype(int) - wanted).mean((1, 2, 3)).max() < BOUND, reader


def test_noise_is_kept_where_frames_follow_soon_after_each_other(tmp_path):
    source = tmp_path / "noise.mkv"
    noise = "testsrc2=s=160x120:r=240:d=0.1,noise=alls=60:allf=t:all_seed=1"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", noise, "-c:v", "ffv1", str(source)]
    subprocess.run(command, check=True)
    assert max(differences(source, tmp_path / "clip.mp4", 0.0, None).values()) < BOUND


def test_frames_stay_in_order_where_a_film_without_b_frames_was_joined_to_one_with(tmp_path):
    source, made = tmp_path / "joined.ts", tmp_path / "clip.mp4"
    joined(source, {})
    assert max(differences(source, made, 3.0, 5.0).values()) < BOUND
    np.testing.assert_allclose(index_frames(source).times_s, np.arange(80) / 10, atol=1e-3)


def test_the_times_of_an_exported_clip_are_those_of_its_frames(tmp_path):
    source, made = tmp_path / "variable.mkv", tmp_path / "clip.mp4"
    ALL["variable.mkv"](source)
    part = part_of(source, *SPAN)
    encode(part, made, sound=True)
    np.testing.assert_allclose(index_frames(made).times_s, part.times_s, atol=2e-3)


def test_an_exported_clip_keeps_the_sound_of_its_time(tmp_path):
    source, made = tmp_path / "sound.mkv", tmp_path / "clip.mp4"
    ALL["sound.mkv"](source)
    encode(part_of(source, *SPAN), made, sound=True)
    with av.open(made) as container:
        seconds = sum(each.samples / each.sample_rate for each in container.decode(audio=0))
    assert seconds == pytest.approx(SPAN[1] - SPAN[0], abs=0.15)
    encode(part_of(source, *SPAN), made, sound=False)
    with av.open(made) as container:
        assert not container.streams.audio


@pytest.mark.parametrize("ending", ["ts", "mpg"])
def test_films_that_were_joined_keep_the_sound_of_each(ending, tmp_path):
    source, made = tmp_path / f"joined.{ending}", tmp_path / "clip.mp4"
    parts = []
    for pitch in (440, 880):
        part = tmp_path / f"{pitch}.{ending}"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=s=96x48:r=25:d=2"]
        command += ["-f", "lavfi", "-i", f"sine=frequency={pitch}:duration=2", str(part)]
        subprocess.run(command, check=True)
        parts.append(part.read_bytes())
    source.write_bytes(b"".join(parts))
    encode(part_of(source, 1.0, 3.0), made, sound=True)
    with av.open(made) as container:
        rate = container.streams.audio[0].rate
        heard = np.concatenate([each.to_ndarray()[0] for each in container.decode(audio=0)])
    for start_s, pitch in ((0.0, 440), (1.1, 880)):
        second = heard[round(start_s * rate) :][: round(0.9 * rate)]
        assert np.abs(np.fft.rfft(second)).argmax() / 0.9 == pytest.approx(pitch, rel=0.02)


def test_a_clip_in_which_a_frame_stands_still_has_the_sound_of_its_own_time(tmp_path):
    source, made = tmp_path / "a.mkv", tmp_path / "clip.mp4"
    pictures = write_video(tmp_path / "pictures.mkv", times_s=[0.0, 0.1, 0.2, 6.0])
    tone = "aevalsrc=if(gt(t\\,2)\\,sin(2*PI*440*t)\\,0):d=6"  # from 2 s on
    command = ["ffmpeg", "-v", "error", "-i", str(pictures), "-f", "lavfi", "-i", tone]
    subprocess.run([*command, "-c:v", "copy", "-c:a", "flac", str(source)], check=True)
    loud = {}
    for span in ((1.0, 2.0), (3.0, 4.0)):
        encode(part_of(source, *span), made, sound=True)
        with av.open(made) as container:
            heard = [each.to_ndarray() for each in container.decode(audio=0)]
        loud[span] = float(np.abs(np.concatenate(heard, axis=1)).mean())
    assert loud[1.0, 2.0] < 0.01 < 0.1 < loud[3.0, 4.0]


def test_a_last_frame_that_is_held_is_exported_as_long_as_its_clip_shows_it(tmp_path):
    source, made = tmp_path / "a.mp4", tmp_path / "clip.mp4"
    write_video(source, times_s=[0.0, 0.1, 0.2, 9.0])
    encode(part_of(source, 2.0, 5.0), made, sound=True)
    index = index_frames(made)
    assert len(index.times_s) == 1
    assert index.duration_s == pytest.approx(3.0, abs=0.05)
