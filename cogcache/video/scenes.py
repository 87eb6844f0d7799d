"""Where the scenes of a video begin, found by PySceneDetect on frames that are read here.

A video is searched a piece of frames at a time, so that hours of it need neither more memory nor
a longer time-out than minutes, and several processes share one video. Pieces overlap by what a
detector has to see around a frame: where scenes begin does not depend on where pieces do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cogcache.system import Location, file_of
from cogcache.video.file_state import Seen, check_unchanged
from cogcache.video.frame_index import FrameIndex, index_frames
from cogcache.video.pyav_reader import frames_from
from cogcache.video.reading import VideoInfo, measured

if TYPE_CHECKING:
    from av import VideoFrame

PIECE_FRAMES = 3000
"""Two minutes of a film: with a time-out meant for one clip, even at 4K."""
MARGIN = 8
"""Frames before and after a piece that a detector is shown too: it looks at two to each side."""
WIDTH = 256
"""Pixels that a frame is scaled down to, as PySceneDetect itself does."""
THRESHOLDS = {"adaptive": 3.0, "content": 27.0}
"""What PySceneDetect recommends for each of its detectors."""

Detector = Literal["adaptive", "content"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Frames ``[first, stop)`` of a video, to be searched for cuts."""

    video: Location
    first: int
    stop: int
    detector: Detector
    threshold: float
    digest: str = ""
    """SHA-256 that the video's bytes had; "" where that is not known."""
    seen: Seen | None = None
    """What the file was when that was found; None where nobody can change it."""

    @property
    def path(self) -> Path:
        """The video as a file of this machine, to which a worker's job has it fetched."""
        return file_of(self.video)


@dataclass(frozen=True, slots=True)
class Film:
    """A video to be measured before it is cut."""

    video: Location
    digest: str
    """SHA-256 that its bytes had."""
    seen: Seen | None = None
    """What the file was when that was found; None where nobody can change it."""

    @property
    def path(self) -> Path:
        """The video as a file of this machine, to which a worker's job has it fetched."""
        return file_of(self.video)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to search."""

    num_frames: int
    """Counted, as an announced number may be anything."""
    end_s: float
    """When the last frame ends, in seconds."""
    in_pieces: bool
    """Whether frames can be found by their numbers; if not, only by counting from the first."""
    reading: Mapping[str, Any] | None = None
    """What is to be remembered of how the video is read."""


def extent_of(video: Path) -> Extent:
    """Count the frames of a video; runs in a worker process.

    Raises:
        VideoError: the video cannot be opened.
    """
    index = index_frames(video)
    end_s = round(float(index.times_s[-1]) + 1 / index.fps, 6)
    return Extent(len(index.times_s), end_s, index.by_number, index.reading)


def look(job: Film | Piece) -> Extent | list[float]:
    """Do what a search is made of: measure a video, or search a piece of it.

    Raises:
        VideoError: the video cannot be read, or is not what it was.
    """
    found = extent_of(job.path) if isinstance(job, Film) else search(job)
    if job.seen is not None:  # not before: it may change while it is read
        check_unchanged(job.path, job.digest, job.seen)
    return found


def measure(job: Film) -> VideoInfo:
    """Find out how long a video is, and how it is read; runs in a worker process.

    Raises:
        VideoError: the video cannot be opened, or is not what it was.
    """
    info = measured(job.path)
    if job.seen is not None:
        check_unchanged(job.path, job.digest, job.seen)
    return info


def pieces_of(
    video: Location, extent: Extent, detector: Detector, threshold: float
) -> Iterator[Piece]:
    """Yield the pieces of a video."""
    size = PIECE_FRAMES if extent.in_pieces else extent.num_frames
    for first in range(0, extent.num_frames, size):
        stop = min(first + size, extent.num_frames)
        yield Piece(video, first, stop, detector, threshold)


def search(piece: Piece) -> list[float]:
    """Decode a piece and find its cuts; runs in a worker process.

    Returns:
        When frames begin that are the first of a scene, in seconds of the whole video.

    Raises:
        VideoError: the video cannot be opened.
    """
    index = index_frames(piece.path)
    numbers = (n for n in _cuts(piece, index) if max(piece.first, 1) <= n < piece.stop)
    return [_exactly(index.times_s[number]) for number in numbers]


def _cuts(piece: Piece, index: FrameIndex) -> Iterator[int]:
    """Yield the numbers of frames that begin a scene, those in the margins too."""
    from scenedetect import FrameTimecode

    detector = _detector(piece)
    for number, frame in frames_from(piece.path, index, max(piece.first - MARGIN, 0)):
        if number >= piece.stop + MARGIN:
            return
        # Frames are counted, not timed: their distance in time is nothing to the detector.
        found = detector.process_frame(FrameTimecode(number, 1.0), _small(frame, index.size))
        yield from (timecode.frame_num for timecode in found)


def _detector(piece: Piece) -> Any:
    import cv2
    from scenedetect import AdaptiveDetector, ContentDetector

    # Several workers share the machine already, and a job's seconds of the processor are those
    # of all threads together.
    cv2.setNumThreads(1)
    # How long a scene has to be is decided over all pieces: `spans_of`.
    if piece.detector == "adaptive":
        return AdaptiveDetector(adaptive_threshold=piece.threshold, min_scene_len=0)
    return ContentDetector(threshold=piece.threshold, min_scene_len=0)


def _small(frame: VideoFrame, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a frame as BGR, uint8 [H, W, 3], at most `WIDTH` wide."""
    # By the size of the video, not of the frame: some streams change theirs on the way.
    scale = min(1.0, WIDTH / size[0])
    width, height = (max(1, round(side * scale)) for side in size)
    small = frame.to_ndarray(format="bgr24", width=width, height=height, interpolation="AREA")
    return small.astype(np.uint8, copy=False)


def _exactly(time_s: np.float32) -> float:
    """Return the shortest number that, rounded as times are, is this one."""
    return float(str(time_s))
