"""Files of all the kinds that a folder of videos may hold, good, odd and bad."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image
from videos import flip_bits, remux, truncate, write_audio, write_video

Make = Callable[[Path], object]
short = partial(write_video, num_frames=15)


def variable(path: Path) -> None:
    write_video(path, times_s=[0.0, 0.04, 0.5, 0.54, 1.7, 1.74, 1.78, 3.0])


def late(path: Path) -> None:
    remux(short(path.with_name(f".{path.name}")), path, shift_s=5.0)


def hidden_start(path: Path) -> None:
    remux(write_video(path.with_name(f".{path.name}"), num_frames=40), path, shift_s=-0.5)


def fragmented(path: Path) -> None:
    source = short(path.with_name(f".{path.name}"))
    remux(source, path, options={"movflags": "frag_keyframe+empty_moov"})


def fast_start(path: Path) -> Path:
    source = write_video(path.with_name(f".{path.name}"), num_frames=60)
    return remux(source, path, options={"movflags": "faststart"})


def misnamed(path: Path) -> None:
    shutil.move(write_video(path.with_name(f".{path.stem}.mkv"), num_frames=25), path)


def trailing(path: Path) -> None:
    with short(path).open("ab") as file:
        file.write(b"\0" * 5000)


def linked(path: Path) -> None:
    path.symlink_to(write_video(path.with_name(f".elsewhere{path.suffix}"), num_frames=24))


def in_folder(path: Path) -> None:
    path.mkdir()
    write_video(path / "inside.mp4", num_frames=26)
    (path / "loop").symlink_to(path)


def y4m(path: Path) -> None:
    frame = b"FRAME\n" + bytes(range(48)) * 48
    path.write_bytes(b"YUV4MPEG2 W48 H32 F10:1 Ip A1:1 C420jpeg\n" + frame * 12)


def cut_at_a_key_frame(path: Path) -> None:
    """Write an MP4 from which whole frames at its start are left out by an edit list."""
    source = write_video(path.with_name(f".{path.name}"), num_frames=40, gop=1)
    remux(source, path, shift_s=-0.5)


GOOD: dict[str, Make] = {
    "plain.mp4": short,
    "same bytes.mp4": short,
    "plain.mkv": short,
    "plain.mov": short,
    "plain.flv": short,
    "plain.ts": partial(write_video, num_frames=30),
    "plain.avi": short,
    "mpeg4.avi": partial(short, codec="mpeg4"),
    "mjpeg.avi": partial(short, codec="mjpeg"),
    "vp9.webm": partial(short, codec="libvpx-vp9"),
    "hevc.mp4": partial(short, codec="libx265"),
    "av1.mp4": partial(short, codec="libsvtav1"),
    "moving.gif": partial(short, codec="gif"),
    "lossless.mkv": partial(short, codec="ffv1"),
    "raw.y4m": y4m,
    "prores.mov": partial(short, codec="prores_ks"),
    "ten bits.mp4": partial(short, pix_fmt="yuv420p10le"),
    "full chroma.mp4": partial(short, pix_fmt="yuv444p"),
    "odd size.mp4": partial(short, size=(97, 49), pix_fmt="yuv444p"),
    "small.mp4": partial(short, size=(16, 16)),
    "wide.mp4": partial(short, size=(640, 16)),
    "one frame.mp4": partial(write_video, num_frames=1),
    "two frames.mkv": partial(write_video, num_frames=2),
    "ntsc.mp4": partial(short, fps=Fraction(30_000, 1001)),
    "fast.mp4": partial(write_video, num_frames=120, fps=120),
    "slow.mp4": partial(write_video, num_frames=6, fps=1),
    "variable.mp4": variable,
    "b frames.mp4": partial(short, max_b_frames=2),
    "one key frame.mp4": partial(write_video, num_frames=60, gop=600),
    "turned.mp4": partial(short, rotation=90),
    "upside down.mov": partial(short, rotation=180),
    "mirrored.mp4": partial(short, hflip=True),
    "sound.mp4": partial(short, audio=True),
    "late.mkv": late,
    "hidden start.mp4": hidden_start,
    "cut at a key frame.mp4": cut_at_a_key_frame,
    "fragmented.mp4": fragmented,
    "LOUD.MP4": partial(write_video, num_frames=16),
    "misnamed.mp4": misnamed,
    "trailing.mp4": trailing,
    "linked.mp4": linked,
    "folder.mp4": in_folder,
    'it\'s "quoted" & $HOME `x`.mp4': partial(write_video, num_frames=17),
    "new\nline.mp4": partial(write_video, num_frames=18),
    "日本語 🎬.mp4": partial(write_video, num_frames=19),
    os.fsdecode(b"not-utf8-\xff\xfe.mp4"): partial(write_video, num_frames=20),
    "-dash.mp4": partial(write_video, num_frames=21),
    "%41 {0} #hash?.mp4": partial(write_video, num_frames=22),
    "x" * 240 + ".mp4": partial(write_video, num_frames=23),
}
"""Files that can be captioned, by name."""


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(100_000))


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere.mp4")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_picture(path: Path) -> None:
    Image.new("RGB", (60, 50)).save(path, "JPEG")


def a_still_gif_of_text(path: Path) -> None:
    path.write_bytes(b"GIF89a" + b"hello" * 100)


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.mp4", b"no video")


def a_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(short(path.with_name(f".{path.name}.mp4")).read_bytes()))


def a_text(path: Path, text: str) -> None:
    path.write_text(text)


def a_head_alone(path: Path) -> None:
    with av.open(path, "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def blanked(path: Path) -> None:
    content = short(path).read_bytes()
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])


def unknown_codec(path: Path) -> None:
    content = short(path).read_bytes()
    path.write_bytes(content.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"))


def absurd_screen(path: Path) -> None:
    screen = struct.pack("<6sHHBBB", b"GIF89a", 20_000, 20_000, 0x80, 0, 0) + bytes(6)
    image = struct.pack("<BHHHHB", 0x2C, 0, 0, 20_000, 20_000, 0) + b"\x02\x02\x4c\x01\x00;"
    path.write_bytes(screen + image)


def absurd_size(path: Path) -> None:
    path.write_bytes(b"YUV4MPEG2 W60000 H60000 F10:1 Ip A1:1 C420jpeg\nFRAME\n" + b"\0" * 999)


def million_frames(path: Path, number: int = 1_000_000) -> None:
    """Write a small MP4 whose tables say that it holds so many frames of a byte each."""
    content = bytearray(short(path).read_bytes())
    for table, offset, values in (
        (b"stts", 12, [number]), (b"stsz", 8, [1, number]), (b"stsc", 16, [number]),
    ):  # fmt: skip
        struct.pack_into(f">{len(values)}I", content, content.index(table) + offset, *values)
    path.write_bytes(content)


BAD: dict[str, tuple[Make, str]] = {
    "empty.mp4": (Path.touch, "empty_file"),
    "random.mp4": (random_bytes, "not_a_video"),
    "zeros.mkv": (lambda path: path.write_bytes(bytes(100_000)), "not_a_video"),
    "text.mp4": (partial(a_text, text="hello\n" * 100), "not_a_video"),
    "page.mp4": (partial(a_text, text="<!DOCTYPE html><h1>404</h1>"), "not_a_video"),
    "playlist.mp4": (partial(a_text, text="#EXTM3U\n#EXTINF:9,\nplain.mp4\n"), "not_a_video"),
    "concat.mp4": (partial(a_text, text="ffconcat version 1.0\nfile plain.mp4\n"), "not_a_video"),
    "picture.mp4": (a_picture, "not_a_video"),
    "broken.gif": (a_still_gif_of_text, "decode_failed"),
    "archive.mp4": (a_zip, "not_a_video"),
    "packed.mp4": (a_gzip, "not_a_video"),
    "sound alone.mp4": (write_audio, "no_video_stream"),
    "cut off.mp4": (lambda path: truncate(write_video(path), 0.6), "not_a_video"),
    "first bytes.mp4": (lambda path: truncate(write_video(path), 0.02), "not_a_video"),
    "head alone.mp4": (a_head_alone, "no_frames"),
    "blanked.mp4": (blanked, "decode_failed"),
    "unknown codec.mkv": (unknown_codec, "decode_failed"),
    "absurd.y4m": (absurd_size, "not_a_video"),
    "absurd.gif": (absurd_screen, "decode_failed"),
    "million frames.mp4": (million_frames, "decode_failed"),
    "absurd count.mp4": (partial(million_frames, number=2**32 - 1), "no_frames"),
    "broken link.mp4": (broken_link, "missing"),
    "link to itself.mp4": (link_to_itself, "unreadable"),
    "pipe.mp4": (os.mkfifo, "not_a_video"),
}
"""Files that cannot be, and the reason that is to be given."""

SUSPECT: dict[str, Make] = {
    "flipped.mp4": lambda path: flip_bits(fast_start(path), 40, seed=1),
    "cut off.mkv": lambda path: truncate(write_video(path, num_frames=60, gop=10), 0.6),
    "front cut off.mp4": lambda path: truncate(fast_start(path), 0.7),
}
"""Files in which something is wrong, but from which frames come."""


def write_corpus(folder: Path) -> None:
    """Write one file of each kind. Hidden files beside them are what some were made from."""
    folder.mkdir(parents=True)
    for name, make in {**GOOD, **{n: m for n, (m, _) in BAD.items()}, **SUSPECT}.items():
        make(folder / name)
