"""Which frames a family's release takes of a clip: the strategy `published`.

Each function is one published rule: a pure function of how many frames a clip has and of its
average rate, of which it returns indices. A rule that rounds in float32 does so here, by the same
call of torch, since one frame more or less moves every later token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from cogcache.errors import CheckpointError, ConfigError, VideoError
from cogcache.models.derived.conversation import read_json
from cogcache.settings import Sampling

FILES: Final = (
    ("processor_config.json", ("video_processor",)),
    ("video_preprocessor_config.json", ()),
    ("preprocessor_config.json", ()),
)
"""Of a checkpoint, and where in them a video processor's settings are."""
MOST: Final = 1_000_000
Numbers = Mapping[str, Any]
"""Of a processor's files, or in their place the release's own: `fps`, `max_frames` and the like."""


class TooFewFramesError(ValueError):
    """A rule cannot be followed on so short a clip, as in the release itself."""


def qwen2_frames(num_frames: int, fps: float) -> list[int]:
    """Return 2 frames a second, 4 to 768 and an even number of them, from the first to the last.

    The rule is `smart_nframes` of qwen-vl-utils 0.0.14, which Qwen's authors call before the
    processor of Qwen2-VL, Qwen2.5-VL and, as qwen-omni-utils, of their Omni models.
    """
    import torch

    most = min(768, num_frames) // 2 * 2
    count = math.floor(min(max(num_frames / fps * 2.0, 4), most, num_frames) / 2) * 2
    if count < 2:
        raise TooFewFramesError("2 frames are the least")
    return [int(index) for index in torch.linspace(0, num_frames - 1, count).round().long()]


def qwen3_frames(
    num_frames: int, fps: float, *, wanted_fps: float, min_frames: int, max_frames: int
) -> list[int]:
    """Return `wanted_fps` frames a second within limits, from the first frame to the last.

    The rule is `Qwen3VLVideoProcessor.sample_frames` of transformers 4.57.
    """
    count = int(num_frames / fps * wanted_fps)
    count = min(max(count, min_frames), max_frames, num_frames)
    return [int(index) for index in np.linspace(0, num_frames - 1, count).round()]


def glm4v_frames(
    num_frames: int, fps: float, *, wanted_fps: float, max_duration: float
) -> list[int]:
    """Return the first frame at or after each moment, `wanted_fps` moments a second.

    Of a clip longer than `max_duration` seconds, as many moments as that has are spread over all
    of it. An odd number of frames is made even with the last one twice. The rule is
    `Glm4vVideoProcessor.sample_frames` of transformers 4.53.
    """
    duration_s, last = num_frames / fps, num_frames - 1
    if duration_s <= max_duration:
        moments = range(math.floor(duration_s * wanted_fps))
        chosen = [min(last, math.ceil(moment * fps / wanted_fps)) for moment in moments]
    elif (count := int(max_duration * wanted_fps)) >= num_frames:
        chosen = list(range(num_frames))
    else:
        chosen = [min(last, math.ceil(time * fps)) for time in np.linspace(0, duration_s, count)]
    if not chosen:
        raise TooFewFramesError(f"it is shorter than {1 / wanted_fps:g} s")
    return _even(chosen)


def glm46v_frames(num_frames: int, fps: float, *, temporal_patch_size: int) -> list[int]:
    """Return 3, 1 or 0.5 pairs of frames a second, 640 frames at most: fewer the longer it is.

    The rule is `Glm46VVideoProcessor.sample_frames` of transformers 5.0, whose pairs are 3 a
    second up to 30 s, and 1 up to 300 s; times beyond 2400 s do not count.
    """
    duration_s = num_frames / fps
    seen_s = min(duration_s, 2400.0)
    pairs_a_s = 3 if seen_s <= 30 else 1 if seen_s <= 300 else 0.5
    count = min(int(seen_s * pairs_a_s * temporal_patch_size), 640)
    chosen = _every(num_frames, fps, 1 / (temporal_patch_size * pairs_a_s), int(duration_s))
    if num_frames < count:
        chosen = _linear(0, num_frames - 1, count)
    elif len(chosen) < count:
        chosen = _linear(chosen[0], chosen[-1], count)
    elif len(chosen) > count:
        chosen = _linear(0, num_frames - 1, count)
    if not chosen:
        raise TooFewFramesError("it has less than one pair of frames")
    return _even(chosen)


def smolvlm_frames(num_frames: int, fps: float, *, wanted_fps: float, max_frames: int) -> list[int]:
    """Return `wanted_fps` frames a second, at most `max_frames`, from the first to the last.

    Of a clip that is longer than these, its first and last second are left out. The rule is
    `smolvlm_sample_indices_fn` of transformers 4.50, as its processor calls it.
    """
    duration_s = num_frames / fps
    count = max(min(round(wanted_fps * duration_s), max_frames), 1)
    first, last = 0, num_frames - 1
    if duration_s - 2 > max_frames * wanted_fps:
        first, last = int(fps), min(int(num_frames - fps), last)
    if first >= last:
        first, last = 0, num_frames - 1
    return [int(index) for index in np.unique(np.linspace(first, last, count, dtype=int))]


def midpoint_frames(num_frames: int, fps: float, *, count: int) -> list[int]:
    """Return the frame in the middle of each of `count` equal parts; some twice in a short clip.

    The rule is `InternVLProcessor.sample_indices_fn` of transformers 4.52.
    """
    step = num_frames / count
    return [int(index) for index in np.arange(step / 2, num_frames, step)]


def first_of_part_frames(num_frames: int, fps: float, *, count: int) -> list[int]:
    """Return the first frame of each of `count` equal parts; some twice in a short clip.

    The rule is that of the examples that transformers 4.42 and 4.45 give for LLaVA-OneVision,
    LLaVA-NeXT-Video and Video-LLaVA, whose processors take no frames by themselves. They take 8.
    """
    return [int(index) for index in np.arange(0, num_frames, num_frames / count)]


def llama3_frames(
    num_frames: int, fps: float, *, wanted_fps: float, min_frames: int, max_frames: int
) -> list[int]:
    """Return the first frame of equal parts, `wanted_fps` parts a second within limits.

    The rule is `VideoLlama3VideoProcessor.sample_frames` of transformers 5.0; the rate of 1 is
    what the authors' examples ask for.
    """
    count = min(max(num_frames / fps * wanted_fps, min_frames), max_frames, num_frames)
    return _parts(num_frames, math.floor(count))


def ernie_frames(
    num_frames: int, fps: float, *, wanted_fps: float | None, min_frames: int, max_frames: int
) -> list[int]:
    """Return the first frame of equal parts: of as many as there are frames, within limits.

    With `wanted_fps` there are so many parts a second; their number need not be whole. The rule is
    `Ernie4_5_VL_MoeVideoProcessor.sample_frames` of transformers 5.0.
    """
    count = num_frames / fps * wanted_fps if wanted_fps else num_frames
    return _parts(num_frames, min(max(count, min_frames), max_frames, num_frames))


def molmo2_frames(num_frames: int, fps: float, *, count: int, max_fps: float | None) -> list[int]:
    """Return the first frame of `count` equal parts, but no more than `max_fps` a second.

    The rule is `Molmo2VideoProcessor.sample_frames` of transformers 5.20.
    """
    if max_fps is not None and fps > max_fps:
        count = min(count, int(num_frames / fps * max_fps))
    return _parts(num_frames, max(min(count, num_frames), 1))


def gemma4_frames(num_frames: int, fps: float, *, count: int) -> list[int]:
    """Return the first frame of `count` equal parts; a clip needs as many frames.

    The rule is `BaseVideoProcessor.sample_frames` of transformers 5.5, with Gemma 4's number.
    """
    if num_frames < count:
        raise TooFewFramesError(f"the release wants {count} frames or more")
    return _parts(num_frames, count)


def minicpm_frames(num_frames: int, fps: float, *, max_frames: int, stack: int) -> list[int]:
    """Return the frame at each whole second; of a clip with more than `max_frames`, so many.

    These are spread over all tenths of a second. The rule is
    `MiniCPMV4_6VideoProcessor.sample_frames` of transformers 5.7, without stacking.

    Raises:
        ConfigError: the checkpoint stacks frames.
    """
    if stack > 1:
        problem = f"the checkpoint stacks {stack} frames a second, for which there is no rule here"
        raise ConfigError(problem, "take --strategy spread")
    duration_s = num_frames / fps
    if duration_s <= max_frames:
        return [int(second * fps) for second in range(math.ceil(duration_s))]
    tenths = [round(tenth * 0.1, 1) for tenth in range(int(duration_s / 0.1))]
    chosen = [min(int(time * fps), num_frames - 1) for time in tenths]
    return [chosen[place] for place in _linear(0, len(chosen) - 1, max_frames)]


@dataclass(frozen=True, slots=True)
class PublishedRule:
    """How a family's release takes frames.

    Args:
        frames: the rule itself.
        numbers: its arguments by name: where a processor's files say each, and the release's own.
        counted: name of the argument that the release leaves to its user: `max_frames`.
    """

    frames: Callable[..., list[int]]
    numbers: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    counted: str = ""


_FPS: Final = ("fps", 2)
_LLAVA = PublishedRule(first_of_part_frames, counted="count")
_QWEN2 = PublishedRule(qwen2_frames)
_QWEN3 = PublishedRule(
    qwen3_frames,
    {"wanted_fps": _FPS, "min_frames": ("min_frames", 4), "max_frames": ("max_frames", 768)},
)
_GLM4V = PublishedRule(glm4v_frames, {"wanted_fps": _FPS, "max_duration": ("max_duration", 300)})
_GLM46V = PublishedRule(glm46v_frames, {"temporal_patch_size": ("temporal_patch_size", 2)})
_MINICPM = PublishedRule(
    minicpm_frames, {"max_frames": ("max_num_frames", 128), "stack": ("stack_frames", 1)}
)
RULES: Final[Mapping[str, PublishedRule]] = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_5_omni_thinker": _QWEN2,
    "qwen3_omni_moe_thinker": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "lfm3_vl": _QWEN3,
    "cohere_compass": _QWEN3,
    "glm4v": _GLM4V,
    "glm4v_moe": _GLM4V,
    "glm46v": _GLM46V,
    "glm_ocr": _GLM46V,
    "smolvlm": PublishedRule(
        smolvlm_frames,
        {
            "wanted_fps": ("video_sampling.fps", 1),
            "max_frames": ("video_sampling.max_frames", 64),
        },
    ),
    "internvl": PublishedRule(midpoint_frames, counted="count"),
    "llava_onevision": _LLAVA,
    "llava_next_video": _LLAVA,
    "video_llava": _LLAVA,
    "video_llama_3": PublishedRule(
        llama3_frames,
        {
            "wanted_fps": ("fps", 1),
            "min_frames": ("min_frames", 4),
            "max_frames": ("max_frames", 180),
        },
    ),
    "ernie4_5_vl_moe": PublishedRule(
        ernie_frames,
        {
            "wanted_fps": ("fps", None),
            "min_frames": ("min_frames", 16),
            "max_frames": ("max_frames", 180),
        },
    ),
    "molmo2": PublishedRule(
        molmo2_frames, {"count": ("num_frames", 64), "max_fps": ("max_fps", 2)}
    ),
    "gemma4": PublishedRule(gemma4_frames, {"count": ("num_frames", 32)}),
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM,
}
"""By family. The releases of all others take no frames of a video by themselves."""


@dataclass(frozen=True, slots=True)
class PublishedFrames:
    """The frames that a family's release takes, as `read_clip` asks for them.

    Args:
        family: its name.
        numbers: the rule's arguments, by name.
    """

    family: str
    numbers: Numbers

    def of_clip(self, num_frames: int, fps: float) -> Sequence[int]:
        """Return indices into a clip's frames.

        Raises:
            VideoError: the release cannot take frames of so short a clip (``too_few_frames``).
        """
        try:
            return RULES[self.family].frames(num_frames, fps, **self.numbers)
        except TooFewFramesError as error:
            problem = f"the release of {self.family} takes no frames of a clip of {num_frames}"
            hint = "take --strategy spread, or cut longer clips"
            raise VideoError("too_few_frames", f"{problem}: {error}", hint) from error


def published_frames(family: str, folder: Path, sampling: Sampling) -> PublishedFrames:
    """Return the frames that a family's release takes.

    Args:
        family: its name.
        folder: of the checkpoint, whose processor files may say numbers other than the release's.
        sampling: settings. `max_frames` counts where the release leaves the number to its user.

    Raises:
        ConfigError: the release takes no frames by itself, or a setting would have no effect.
        CheckpointError: the checkpoint says a number that is none.
    """
    rule = RULES.get(family)
    if rule is None:
        problem = f"the release of {family} takes no frames of a video by itself: its user does"
        raise ConfigError(problem, "take --strategy spread, uniform or per_second")
    _check_unused(family, rule, sampling)
    numbers = {name: _told(folder, path, own) for name, (path, own) in rule.numbers.items()}
    if rule.counted:
        numbers[rule.counted] = sampling.max_frames
    return PublishedFrames(family, numbers)


def _check_unused(family: str, rule: PublishedRule, sampling: Sampling) -> None:
    usual = Sampling.model_fields["max_frames"].default
    if not rule.counted and sampling.max_frames != usual:
        problem = f"max_frames = {sampling.max_frames} has no effect with the strategy published"
        problem += f": the release of {family} takes as many frames as it does"
        raise ConfigError(problem, f"leave max_frames at {usual}, or set strategy to spread")


def _told(folder: Path, path: str, own: Any) -> Any:
    """Return a number of the video processor, from the file that transformers would read first."""
    for file, inside in FILES:
        value: Any = read_json(folder / file)
        for name in [*inside, *path.split(".")]:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST:
            problem = f"{folder / file} says {path} = {value!r}, which is no number to sample by"
            raise CheckpointError(problem, "fetch the file anew, or take --strategy spread")
        return value
    return own


def _even(indices: Sequence[int]) -> list[int]:
    """Return each index once, and the last twice where that makes their number even."""
    once = list(dict.fromkeys(indices))
    return once + once[-1:] if len(once) % 2 else once


def _linear(first: int, last: int, count: int) -> list[int]:
    return [int(index) for index in np.linspace(first, last, count, dtype=int)]


def _parts(num_frames: int, count: float) -> list[int]:
    import torch

    if count <= 0:
        raise TooFewFramesError("it is too short")
    return [int(index) for index in torch.arange(0, num_frames, num_frames / count).int()]


def _every(num_frames: int, fps: float, step_s: float, end_s: int) -> list[int]:
    """Return the first frame at or after each moment, until the moments reach `end_s`."""
    chosen, moment_s, frame_s = [], 0.0, 1 / fps
    for index in range(num_frames):
        if index * frame_s >= moment_s:
            moment_s += step_s
            chosen.append(index)
            if moment_s >= end_s:
                break
    return chosen
