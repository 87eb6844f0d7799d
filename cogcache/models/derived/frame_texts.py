"""What stands in a prompt in place of a video: the texts between its frames, and their slots.

Pure functions of frame times and of the number of slots a picture has, each as the family's first
release of transformers wrote it (`Qwen3VLProcessor` of 4.57, `Glm4vProcessor` of 4.53,
`Glm46VProcessor` of 5.0, `InternVLProcessor` of 4.52).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cogcache.models.derived.times import FrameTimes


@dataclass(frozen=True, slots=True)
class Frames:
    """What a frame text is made of.

    Args:
        times: of the frames that were taken.
        pictures: number of pictures that have slots; of two frames to a patch, half as many.
        slots: number of feature slots of a picture.
        processor: the checkpoint's processor, which knows the family's marks.
    """

    times: FrameTimes
    pictures: int
    slots: int
    processor: Any


def qwen3_text(frames: Frames) -> str:
    """Return `<1.2 seconds>` and a picture, for each pair of frames: the mean of their times."""
    mark = frames.processor
    picture = f"{mark.vision_start_token}{mark.video_token * frames.slots}{mark.vision_end_token}"
    return "".join(f"<{time:.1f} seconds>{picture}" for time in _means(frames))


def glm_text(frames: Frames) -> str:
    """Return a picture and the whole second of its first frame, for each pair of frames."""
    picture = _glm_picture(frames)
    return "".join(f"{picture}{int(time)}" for time in _firsts(frames))


def glm46_text(frames: Frames) -> str:
    """Return a picture and `1.2 seconds`, for each pair of frames: the time of the first."""
    picture = _glm_picture(frames)
    return "".join(f"{picture}{time:.1f} seconds" for time in _firsts(frames))


def internvl_text(frames: Frames) -> str:
    """Return `Frame1: ` and a picture, a line a frame."""
    mark = frames.processor
    slots = mark.image_token * mark.image_seq_length
    picture = f"{mark.start_image_token}{slots}{mark.end_image_token}"
    count = len(frames.times.timestamps_s)
    return "\n".join(f"Frame{number}: {picture}" for number in range(1, count + 1))


FRAME_TEXTS: Mapping[str, Callable[[Frames], str]] = {
    "Qwen3VLProcessor": qwen3_text,
    "Glm4vProcessor": glm_text,
    "Glm46VProcessor": glm46_text,
    "InternVLProcessor": internvl_text,
}
"""By the class of the processor, which families share. Others write nothing between frames, or
counts that only pixels tell (VideoLLaMA 3): their texts are those that stage one stored."""

WHOLE_PLACEHOLDERS = ("Qwen3VLProcessor",)
"""Their frames bring their own start and end: those that the chat template puts around the video's
placeholder go with it. 4.57 to 5.9 replaced the three as a whole; 5.10 and later leave the two."""


def whole_placeholder(text: str, processor: Any) -> str:
    """Take away the marks around the placeholder where the frames have their own.

    Args:
        text: a prompt as the chat template lays it out.
        processor: the checkpoint's.
    """
    if type(processor).__name__ not in WHOLE_PLACEHOLDERS:
        return text
    token = processor.video_token
    around = f"{processor.vision_start_token}{token}{processor.vision_end_token}"
    return text.replace(around, token)


def _glm_picture(frames: Frames) -> str:
    return f"<|begin_of_image|>{frames.processor.image_token * frames.slots}<|end_of_image|>"


def _firsts(frames: Frames) -> Sequence[float]:
    firsts = frames.times.seconds[::2][: frames.pictures]
    return [*firsts, *[firsts[-1]] * (frames.pictures - len(firsts))]


def _means(frames: Frames) -> Sequence[float]:
    """Return the mean of the first and last time of each patch; the last frame fills it up."""
    seconds = frames.times.seconds
    size = -(-len(seconds) // frames.pictures)
    seconds = [*seconds, *[seconds[-1]] * (size * frames.pictures - len(seconds))]
    return [(seconds[i] + seconds[i + size - 1]) / 2 for i in range(0, len(seconds), size)]
