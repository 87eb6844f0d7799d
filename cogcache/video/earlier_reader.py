"""Tells from the index of a file which clips an earlier version read with other frames.

Until version 2 of the reader, decord read first, a packet was taken for a frame, and time stamps
were believed. Features that were made so of certain files are of other frames than the key says,
or of other times. Those clips have `reader = 2` in the sampling of their key; all others keep the
key that they had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cogcache.units import GIB
from cogcache.video.display import Display, matrix_of
from cogcache.video.packets import HIDDEN, NONE, Packets

if TYPE_CHECKING:
    from cogcache.video import OpenVideo

DECORD_CONTAINERS = frozenset({"mp4", "matroska", "flv", "avi"})
DECORD_BYTES = 4 * GIB
"""Pictures of the whole file: longer films were read by PyAV."""
SEARCHED_BY_KEYS = frozenset({"matroska", "flv", "avi"})
"""Containers in which decord takes pictures for entries that are none."""


@dataclass(frozen=True, slots=True)
class Change:
    """How the earlier reader's frames of a file differ from what a player shows."""

    since_s: float
    """Clips that end by then are as they were."""
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What is found of a file now."""

    times_s: NDArray[np.float32]
    fps: float
    display: Display
    has_fields: bool
    num_tracks: int
    is_sound: bool
    """Whether nothing is wrong with the file, and all its key frames are whole."""


def change_of(video: OpenVideo, packets: Packets, found: Found) -> Change | None:
    """Return what the earlier reader made of a file otherwise; None if nothing."""
    best = _best(video)
    if best is None:  # it was refused
        return None
    if best != video.stream.index:
        return Change(0.0, "another of its picture streams was read")
    return _shape_changed(packets, found) or _frames_changed(video, packets, found)


def _shape_changed(packets: Packets, found: Found) -> Change | None:
    if (turn := _turn(packets)) != found.display.turn:
        return Change(0.0, f"its pictures were turned or scaled by {turn or 'nothing'}")
    if found.display.size != found.display.coded:
        return Change(0.0, "its pixels, which are not square, were taken as square")
    return None


def _frames_changed(video: OpenVideo, packets: Packets, found: Found) -> Change | None:
    names = {*video.container.format.name.split(",")}
    times_s = _times(video, packets, found)
    if len(times_s) != len(found.times_s) or not np.array_equal(times_s, found.times_s):
        return Change(_first_other(times_s, found.times_s), "its frames had other times")
    if _read_by_decord(names, packets, found):
        return _by_decord(names, video, packets, found)
    return None


def _best(video: OpenVideo) -> int | None:
    from av.stream import Disposition

    best = video.container.streams.best("video")
    if best is None or best.disposition & Disposition.attached_pic:
        return None
    return best.index


def _turn(packets: Packets) -> tuple[int, int, int, int] | None:
    matrix = matrix_of(packets.first_frame)
    if matrix is None:
        return None
    a, b, c, d = map(round, matrix)
    upright, lying = a * d and not (b or c), b * c and not (a or d)
    return (a, b, c, d) if (upright or lying) and (a, b, c, d) != (1, 0, 0, 1) else None


def _times(video: OpenVideo, packets: Packets, found: Found) -> NDArray[np.float32]:
    """Return the times that the earlier reader gave the frames."""
    kinds = np.array(packets.kinds, np.int8)
    stamps = np.array(packets.raw_pts, np.int64)[kinds != HIDDEN]
    unique = np.unique(stamps[stamps != NONE])
    if len(unique) != len(stamps):
        return (np.arange(len(stamps)) / found.fps).astype(np.float32)
    times_s = (unique - unique[:1]) * float(video.stream.time_base or 0)
    return np.asarray(times_s, np.float32)


def _first_other(before: NDArray[np.float32], now: NDArray[np.float32]) -> float:
    """Return from when on two lists of times differ."""
    length = min(len(before), len(now))
    other = np.flatnonzero(before[:length] != now[:length])
    first = int(other[0]) if len(other) else length
    # The frame before is another neighbour's than it was, so its clip may choose otherwise.
    return float(min(before[max(first - 1, 0)], now[max(first - 1, 0)]))


def _read_by_decord(names: set[str], packets: Packets, found: Found) -> bool:
    width, height = found.display.coded
    size_bytes = len(found.times_s) * width * height * 3
    known = bool(names & DECORD_CONTAINERS) and size_bytes <= DECORD_BYTES
    return known and found.is_sound and found.display.turn is None


def _by_decord(names: set[str], video: OpenVideo, packets: Packets, found: Found) -> Change | None:
    if found.num_tracks > 1:
        return Change(0.0, "decord read another of its picture streams")
    if found.has_fields:
        return Change(0.0, "decord showed other frames of it, which is coded in fields")
    begun_anew = {*packets.idr}
    later = [key for key in packets.keys if key not in begun_anew]
    if video.stream.codec_context.name == "h264" and names & SEARCHED_BY_KEYS and later:
        stamp = packets.raw_pts[later[0]]
        first = min((each for each in packets.raw_pts if each != NONE), default=0)
        since_s = 0.0 if stamp == NONE else (stamp - first) * float(video.stream.time_base or 0)
        return Change(since_s, "decord showed other frames of it behind some cuts")
    return None
