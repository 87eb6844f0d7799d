"""Frames of a video by their numbers, read with decord, which the published runs use.

decord 0.6 opens many files and shows wrong frames of some: pictures that are to be turned or
mirrored, edit lists, key frames that are none in full (behind which it drops frames unseen, and
counts on), recovery points of H.264 outside of MP4, pictures coded in fields, the other one of two
picture streams, MPEG streams, and AVI whose frames come out of order. So it reads only what it is
proven for (the corpus of the tests), and only if it is asked for or PyAV has no decoder. While its
decoder is at work it reads on, to the end of the file and as fast as it can: long films are not
for it.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cogcache.units import GIB
from cogcache.video.frame_index import FrameIndex

logger = logging.getLogger(__name__)

CONTAINERS = {
    "mp4": frozenset({"h264", "hevc", "mpeg4", "vp9", "mjpeg"}),
    "matroska": frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9"}),
    "flv": frozenset({"h264", "flv1"}),
    "avi": frozenset({"mpeg4", "mjpeg"}),
}
"""By container: the codecs for which decord's frames are those that are shown."""
AV_LOG_ERROR = 16
BATCH = 4
"""decord holds a batch three times over: one for a clip takes 850 MB of Full HD instead of 460."""
PART = 1 << 14
"""Time stamps compared at once."""
READ_AHEAD_BYTES = 4 * GIB
"""Pictures of a whole file: where its decoder gets no processor, decord comes to hold them all."""
Frames = NDArray[np.uint8]


def decord_frames(path: Path, index: FrameIndex, numbers: Sequence[int]) -> Frames | None:
    """Return the frames ``numbers``, ascending, or None where decord is not to be trusted.

    Shape [len(numbers), H, W, 3].
    """
    decord = _decord() if unfit(index) is None else None
    if decord is None:
        return None
    try:
        with _logged_errors() as errors:
            frames = _read(decord, path, index, numbers)
    # ValueError: it takes no path that is not UTF-8, and may give frames of another size.
    except (decord.DECORDError, RuntimeError, AssertionError, ValueError) as error:
        logger.debug("decord cannot read %r: %s", path, error)
        return None
    return None if errors else frames


def unfit(index: FrameIndex) -> str | None:
    """Return why decord is not to read a file; None where it may."""
    if len(index.times_s) * index.picture_bytes > READ_AHEAD_BYTES:
        return "the film is too long"
    return misread(index)


def misread(index: FrameIndex) -> str | None:
    """Return why decord is not proven to show the frames of a file; None where it is."""
    names = [name for name in CONTAINERS if name in index.container.split(",")]
    if not names or index.codec not in CONTAINERS[names[0]]:
        return f"it is not proven for {index.codec} in {index.container}"
    reasons = {
        "the file has defects": bool(index.defects),
        "some key frames are not whole": index.has_false_keys,
        "it does not begin with a key frame": not index.begins_whole,
        "frames are coded in fields": index.has_fields,
        "some frames build on those before a key frame": (
            index.has_recovery_points and names[0] != "mp4"
        ),
        "an edit list hides frames": bool(index.num_hidden),
        "pictures are turned or scaled": not index.display.is_plain,
        "there are several picture streams": index.num_tracks > 1,
        "frames can only be counted": not index.by_number,
        "films were joined in it": index.packets.is_spliced,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _read(decord: Any, path: Path, index: FrameIndex, numbers: Sequence[int]) -> Frames | None:
    """Return the frames; None if what decord finds in the file is not what the index says."""
    reader = decord.VideoReader(os.path.abspath(path), num_threads=1)  # noqa: PTH100
    return _batches(reader, index, numbers) if _agrees(reader, index) else None


def _batches(reader: Any, index: FrameIndex, numbers: Sequence[int]) -> Frames:
    width, height = index.size
    frames = np.empty((len(numbers), height, width, 3), np.uint8)
    for start in range(0, len(numbers), BATCH):
        part = slice(start, start + BATCH)
        frames[part] = reader.get_batch(list(numbers[part])).asnumpy()
    return frames


def _agrees(reader: Any, index: FrameIndex) -> bool:
    if len(reader) != len(index.times_s):
        return False
    # In parts: decord makes several tables of what is asked for.
    parts = [range(first, min(first + PART, len(reader))) for first in range(0, len(reader), PART)]
    return all(
        np.array_equal(
            reader.get_frame_timestamp(part)[:, 0], index.times_s[part.start : part.stop]
        )
        for part in parts
    )


@cache
def _decord() -> Any:
    """Return decord, quietened, or None where there is none for this platform."""
    if find_spec("decord") is None:
        return None
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord


@contextmanager
def _logged_errors() -> Iterator[list[int]]:
    """Collect the levels of the errors that decord's own libav logs: it goes on regardless."""
    log = _log()
    if log is None:
        yield []
        return
    log.errors.clear()
    log.library.av_log_set_callback(log.callback)
    try:
        yield log.errors
    finally:
        log.library.av_log_set_callback(log.library.av_log_default_callback)


class _Log:
    """Never freed: a thread of decord may still be in the callback when it is taken off."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.errors: list[int] = []
        pointer = ctypes.c_void_p
        self.callback = ctypes.CFUNCTYPE(None, pointer, ctypes.c_int, pointer, pointer)(self.note)

    def note(self, _source: int, level: int, _text: int, _values: int) -> None:
        if level <= AV_LOG_ERROR:
            self.errors.append(level)


@cache
def _log() -> _Log | None:
    """Return the log of the libavutil that decord's wheel for Linux brings along."""
    folder = Path(_decord().__file__).parents[1] / "decord.libs"
    for path in folder.glob("libavutil-*.so*"):
        return _Log(ctypes.CDLL(str(path)))
    return None
