"""Videos of many containers, codecs and odd ways of showing them; each frame spells its number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
from av.stream import Disposition
from fields import write_fields
from videos import picture, remux, write_video

Make = Callable[[Path], object]
SHORT = {"num_frames": 40, "gop": 12}
B_FRAMES = {"max_b_frames": 2, "options": {"preset": "fast"}}
LEFT_OUT_S = [(n + 3 * (n // 5)) / 10 for n in range(40)]
"""When frames begin of which three are left out behind each fifth."""
OPEN_GOP = {"max_b_frames": 3, "options": {"preset": "fast", "x264-params": "open-gop=1"}}
INTERLACED = {"options": {"preset": "fast", "x264-params": "tff=1"}}


def coded(codec: str, **how: object) -> Make:
    return partial(write_video, codec=codec, **{**SHORT, **how})  # type: ignore[arg-type]


def coloured(
    matrix: int,
    colour_range: int = 1,
    pix_fmt: str = "yuv420p",
    light: tuple[int, int] = (1, 1),
    coded_by: int | None = None,
) -> Make:
    """Return what writes a video whose colours are coded by a matrix of ITU-T H.273.

    Args:
        matrix: its number.
        colour_range: 1: what television has; 2: all of it.
        pix_fmt: pixel format.
        light: numbers of the primaries and of the transfer.
        coded_by: the matrix that it is coded by in truth, where libswscale does not know the other.
    """

    def make(path: Path) -> None:
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = 96, 48, pix_fmt
            context = stream.codec_context
            context.colorspace, context.color_range = matrix, colour_range
            context.color_primaries, context.color_trc = light
            for number in range(40):
                rgb = av.VideoFrame.from_ndarray(picture(number, 96, 48), format="rgb24")
                matrix_ = matrix if coded_by is None else coded_by
                frame = rgb.reformat(
                    format=pix_fmt, dst_colorspace=matrix_, dst_color_range=colour_range
                )
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    return make


def scaled(path: Path) -> None:
    """Write a video whose display matrix doubles the picture."""
    content = bytearray(write_video(path, **SHORT).read_bytes())  # type: ignore[arg-type]
    at = content.index(b"tkhd") + 4 + 40
    for offset in (0, 16):
        content[at + offset : at + offset + 4] = (2 << 16).to_bytes(4, "big")
    path.write_bytes(content)


def edited(path: Path) -> None:
    """Write a video of which an edit list hides the first half second."""
    remux(write_video(path.with_name(f".{path.name}"), **SHORT), path, shift_s=-0.55)  # type: ignore[arg-type]


def joined(path: Path, second: dict[str, object] = B_FRAMES) -> None:
    """Write two videos behind each other: the time stamps begin anew."""
    parts = []
    for number, how in enumerate((B_FRAMES, second)):
        part = path.with_name(f".{number}{path.suffix}")
        parts.append(write_video(part, **{**SHORT, **how}).read_bytes())  # type: ignore[arg-type]
    path.write_bytes(b"".join(parts))


def begun_late(path: Path) -> None:
    """Write a video that does not begin with a key frame."""
    source = write_video(path.with_name(f".{path.name}"), **SHORT)  # type: ignore[arg-type]
    with av.open(source) as before, av.open(path, "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in [*before.demux(video=0)][3:]:
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)


def twice(path: Path) -> None:
    """Write a video of which two frames have the same time stamp."""
    source = write_video(path.with_name(f".{path.name}"), **SHORT)  # type: ignore[arg-type]
    with av.open(source) as before, av.open(path, "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(before.demux(video=0)):
            if packet.dts is None:
                continue
            if number == 15 and packet.pts is not None:
                packet.pts = packet.dts = packet.pts - packet.duration
            packet.stream = stream
            after.mux_one(packet)


def _streams(path: Path, parts: Sequence[tuple[Path, Disposition]]) -> None:
    """Put the pictures of several files into one, each with what is said of it."""
    with ExitStack() as stack:
        after = stack.enter_context(av.open(path, "w"))
        opened = [stack.enter_context(av.open(part)) for part, _ in parts]
        streams = [after.add_stream_from_template(each.streams.video[0]) for each in opened]
        for stream, (_, disposition) in zip(streams, parts, strict=True):
            stream.disposition = disposition
        for before, stream in zip(opened, streams, strict=True):
            for packet in before.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    after.mux(packet)


def cover_first(path: Path) -> None:
    """Write a video before whose pictures a cover comes."""
    cover, film = (path.with_name(f".{name}.{path.name}") for name in ("cover", "film"))
    write_video(cover, num_frames=1, size=(640, 480), codec="mjpeg")
    write_video(film, **SHORT)  # type: ignore[arg-type]
    _streams(path, [(cover, Disposition.attached_pic), (film, Disposition.default)])


def two_tracks(path: Path) -> None:
    """Write a video of two tracks, of which the second is the default, and smaller."""
    first, second = (path.with_name(f".{number}.{path.name}") for number in (1, 2))
    write_video(first, codec="mpeg4", size=(192, 96), num_frames=30)
    write_video(second, **SHORT)  # type: ignore[arg-type]
    _streams(path, [(first, Disposition(0)), (second, Disposition.default)])


CONTAINERS: dict[str, Make] = {
    "h264.mp4": coded("libx264"), "hevc.mp4": coded("libx265"), "vp9.mp4": coded("libvpx-vp9"),
    "av1.mp4": coded("libsvtav1"), "mpeg4.mp4": coded("mpeg4"), "h264.mov": coded("libx264"),
    "hevc.mov": coded("libx265"), "mpeg4.mov": coded("mpeg4"), "h264.mkv": coded("libx264"),
    "hevc.mkv": coded("libx265"), "vp8.mkv": coded("libvpx"), "vp9.mkv": coded("libvpx-vp9"),
    "av1.mkv": coded("libsvtav1"), "mpeg2.mkv": coded("mpeg2video", fps=25),
    "mpeg4.mkv": coded("mpeg4"), "vp8.webm": coded("libvpx"), "vp9.webm": coded("libvpx-vp9"),
    "av1.webm": coded("libsvtav1"), "h264.ts": coded("libx264"), "hevc.ts": coded("libx265"),
    "mpeg2.ts": coded("mpeg2video", fps=25), "mpeg2.mpg": coded("mpeg2video", fps=25),
    "h264.avi": coded("libx264"), "mpeg4.avi": coded("mpeg4"), "h264.flv": coded("libx264"),
    "sorenson.flv": coded("flv"), "gif.gif": coded("gif"),
}  # fmt: skip
"""Containers by codecs, where they go together."""
SPECIAL: dict[str, Make] = {
    "b frames.mp4": coded("libx264", **B_FRAMES), "b frames.ts": coded("libx264", **B_FRAMES),
    "b frames.avi": coded("libx264", **B_FRAMES), "mpeg4 b.avi": coded("mpeg4", max_b_frames=2),
    "mpeg2 b.mpg": coded("mpeg2video", fps=25, max_b_frames=2),
    "left out.avi": coded("libx264", times_s=LEFT_OUT_S),
    "left out b.avi": coded("libx264", times_s=LEFT_OUT_S, **B_FRAMES),
    "open gop.mp4": coded("libx264", **OPEN_GOP),
    "variable.mkv": coded("libx264", times_s=[n * 0.1 + (n % 3) * 0.03 for n in range(40)]),
    "late.mkv": coded("libx264", times_s=[1.5 + n / 10 for n in range(40)], audio=True),
    "edit list.mp4": edited, "scaled.mov": scaled, "joined.ts": joined, "twice.mkv": twice,
    "begun late.mp4": begun_late, "joined.mkv": joined,
    **{f"turned {n}.mp4": coded("libx264", rotation=n, size=(192, 96)) for n in (90, 180, 270)},
    **{f"mirrored {n}.mp4": coded("libx264", rotation=n, hflip=True, size=(192, 96))
       for n in (0, 90, 180, 270)},
    "not square.mkv": coded("libx264", pixel_ratio="4/3"),
    "not square.mp4": coded("libx264", pixel_ratio="2/3"),
    "open gop.mkv": coded("libx264", **OPEN_GOP),
    "interlaced.mp4": coded("libx264", **INTERLACED),
    **{f"fields.{end}": partial(write_fields, apart=False) for end in ("mkv", "mp4")},
    "fields.ts": partial(write_fields, apart=True),
    "ten bits.mp4": coded("libx265", pix_fmt="yuv420p10le"),
    "hdr.mkv": coloured(9, light=(9, 14)), "hdr.mp4": coloured(9, light=(9, 16)),
    "p3.mp4": coloured(1, light=(12, 13)), "full range.mov": coloured(1, 2, "yuvj420p"),
    "601.mkv": coloured(6), "709.mkv": coloured(1), "709.mp4": coloured(1),
    "unknown colours.mp4": coloured(8, coded_by=6),
    "all colours.mkv": coded("libx264", pix_fmt="yuv444p"),
    "turned not square.mp4": coded("libx264", rotation=90, pixel_ratio="4/3", size=(192, 96)),
    "odd size.mp4": coded("libx264", size=(97, 49), pix_fmt="yuv444p"),
    "sound.mkv": coded("libx264", audio=True),
    "cover first.mkv": cover_first, "two tracks.mkv": two_tracks, "two tracks.mp4": two_tracks,
}  # fmt: skip
"""Ways of showing that readers take in different ways."""
SOON = (
    "h264.mp4", "av1.mp4", "vp8.webm", "mpeg2.mpg", "h264.avi", "sorenson.flv", "gif.gif",
    "b frames.ts", "mpeg4 b.avi", "open gop.mp4", "variable.mkv", "edit list.mp4", "scaled.mov",
    "joined.ts", "twice.mkv", "turned 90.mp4", "mirrored 270.mp4", "not square.mkv",
    "full range.mov", "709.mp4", "odd size.mp4", "late.mkv", "hdr.mp4", "p3.mp4",
    "unknown colours.mp4", "open gop.mkv", "fields.ts", "fields.mkv", "begun late.mp4",
    "joined.mkv", "cover first.mkv", "two tracks.mp4",
)  # fmt: skip
"""Those that the quick tests take."""
