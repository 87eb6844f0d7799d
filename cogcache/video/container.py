"""A file that libav has opened, its picture stream, and what libav says of it on the way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cogcache.errors import VideoError
from cogcache.system import raise_if_exhausted
from cogcache.video.file_state import check_file, check_readable, unreadable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_SIDE = 16_384
"""Pixels: what no film has, and a file made to fill the memory may."""
FORMATS = (
    "3g2,3gp,4xm,amv,anm,apng,asf,asf_o,av1,avi,avs,avs2,avs3,bethsoftvid,bfi,bink,c93,cavsvideo,"
    "cdxl,cine,dfa,dhav,dirac,dnxhd,dv,dxa,ea,evc,film_cpk,flic,flv,gif,gxf,h261,h263,h264,hevc,"
    "idcin,ipmovie,iv8,ivf,ivr,jv,kux,live_flv,lmlm4,lvf,lxf,m4a,m4v,matroska,mj2,mjpeg,mjpeg_2000,"
    "mm,mods,moflex,mov,mp4,mpeg,mpegts,mpegvideo,mpjpeg,mtv,mv,mvi,mxf,mxg,nsv,nut,nuv,obu,ogg,pmp,"
    "pva,r3d,rl2,rm,roq,rpl,siff,smjpeg,smk,sol,swf,thp,tmv,txd,ty,vc1,vc1test,vivo,vmd,vvc,"
    "wc3movie,webm,wsvqa,wtv,xmv,yop,yuv4mpegpipe"
)
"""Formats of libav that hold moving pictures, all of them in the one file that is opened."""
SOUNDS = "aac,ac3,aiff,amr,ape,au,caf,flac,mp3,wav,w64,wv"
"""Formats of sound alone: opened to be able to say so."""
ONLY_THE_FILE = {"protocol_whitelist": "file", "format_whitelist": f"{FORMATS},{SOUNDS}"}
"""Options that keep libav from following what a file names: other files, addresses, devices.

A playlist (HLS, DASH), a list (concat), a numbered picture or a description (SDP) is of no such
format, and is refused before libav reads more of it than it needs to tell its format.
"""
NO_MEMORY = ("get_buffer() failed", "Cannot allocate memory")
"""What libav says of it."""
Logs = list[tuple[int, str, str]]
DEFAULT_BONUS = 5_000_000
"""Pixels that a default stream counts more than others, as in ffmpeg (`map_auto_video`)."""
REFETCH = "try to play it; if it does not play, fetch it anew"


@dataclass(frozen=True, slots=True)
class OpenVideo:
    """A file that is open, its picture stream, and what libav has complained of so far."""

    container: InputContainer
    stream: VideoStream
    logs: Logs


@contextmanager
def open_video(path: Path, options: Mapping[str, str] | None = None) -> Iterator[OpenVideo]:
    """Open the file and its picture stream.

    Args:
        path: the video file.
        options: for the container's format, as libav names them.

    Raises:
        VideoError: ``missing``, ``unreadable``, ``empty_file``, ``not_a_video``,
            ``no_video_stream`` or ``too_large``.
    """
    check_file(path)
    with _logged_errors() as logs, _open_container(path, logs, options or {}) as container:
        yield OpenVideo(container, _picture_stream(path, container), logs)


@contextmanager
def damage() -> Iterator[list[Exception]]:
    """Collect what PyAV raises at a file that is not sound; it ends the `with` block.

    Raises:
        MachineError: it is no file's fault that one more cannot be opened.
        MemoryError: nor that there is no memory.
    """
    import av

    found: list[Exception] = []
    try:
        yield found
    except MemoryError:
        raise
    # IndexError: of a damaged head whose streams are numbered past their count.
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise_if_exhausted(error)
        found.append(error)


def _open_container(path: Path, logs: Logs, options: Mapping[str, str]) -> InputContainer:
    import av

    with damage() as found:
        # An absolute path: "http:x.mp4" would be taken for an address.
        return av.open(
            os.path.abspath(path),  # noqa: PTH100
            options={**ONLY_THE_FILE, **options},
            metadata_errors="replace",
        )
    error = found[0]
    if isinstance(error, PermissionError):
        raise unreadable(path, error) from error
    # libav says "I/O error" of bad files and of bad disks alike.
    check_readable(path)
    # Not str(error): PyAV adds what was last reported, if of another file.
    said = next(first_error(logs), getattr(error, "strerror", None) or type(error).__name__)
    problem = f"{path} is no video that can be opened: {said}"
    raise VideoError("not_a_video", problem, REFETCH) from error


def _picture_stream(path: Path, container: InputContainer) -> VideoStream:
    found = picture_streams(container)
    if not found:
        kinds = ", ".join(sorted({each.type for each in container.streams})) or "nothing"
        problem = f"{path} has no picture stream, only: {kinds}"
        raise VideoError("no_video_stream", problem, "leave it out, or name another file")
    stream = max(found, key=_rank)
    if stream.codec_context is None:
        problem = f"{path}: no decoder knows how its pictures are coded"
        raise VideoError("decode_failed", problem, REFETCH)
    check_size(path, stream.width, stream.height)
    stream.thread_count = 1
    return stream


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse pictures that no film has.

    Raises:
        VideoError: a side is too long (``too_large``).
    """
    if max(width, height) > MAX_SIDE:
        problem = f"{path} has pictures of {width} x {height} pixels"
        raise VideoError("too_large", problem, f"sides of up to {MAX_SIDE} pixels are read")


def picture_streams(container: InputContainer) -> list[VideoStream]:
    """Return the streams of moving pictures; covers, which are one picture each, are none."""
    import av
    from av.stream import Disposition

    return [
        each
        for each in container.streams
        if isinstance(each, av.VideoStream) and not each.disposition & Disposition.attached_pic
    ]


def _rank(stream: VideoStream) -> tuple[bool, int]:
    """Return what ffmpeg goes by: the default one before others, then the largest picture."""
    from av.stream import Disposition

    known = stream.codec_context is not None
    size = stream.width * stream.height if known else 0
    return known, size + DEFAULT_BONUS * bool(stream.disposition & Disposition.default)


def announced_s(video: OpenVideo) -> float:
    """Return how long the file says that its pictures run, in seconds; 0 if it does not say."""
    stream, time_base = video.stream, video.stream.time_base or 0
    if stream.duration:
        return float(stream.duration * time_base)
    duration_s = (video.container.duration or 0) / 1e6
    if {"matroska", "flv"} & set(video.container.format.name.split(",")):
        # These tell when the last frame ends, and the first may begin late.
        duration_s -= float((stream.start_time or 0) * time_base)
    return max(duration_s, 0.0)


@contextmanager
def _logged_errors() -> Iterator[Logs]:
    """Collect what libav reports as an error in this thread: it often goes on all the same."""
    import av.logging

    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else one file's messages end up with the next
    try:
        with av.logging.Capture() as logs:
            yield logs
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)


def check_memory(logs: Iterable[tuple[int, str, str]]) -> None:
    """Raise a MemoryError if that is what decoders lacked: some only mention it."""
    said = [text for _, _, text in logs]
    lacked = any(words in text for text in said for words in NO_MEMORY)
    if lacked and not any("is invalid" in text for text in said):  # the size of a picture
        raise MemoryError("libav gets no memory for a picture")


def first_error(logs: Logs) -> Iterator[str]:
    """Yield what was reported first, if anything: the rest follows from it."""
    for _, name, text in logs[:1]:
        yield f"{name}: {text.strip()}"
