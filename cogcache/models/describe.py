"""What is known of the families of models, and of one checkpoint before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogcache.models.checkpoints.bounds import blamed_on
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.registry import FAMILIES, family_of
from cogcache.settings import PixelLimits

if TYPE_CHECKING:
    from cogcache.models.family import ClipTensors, Family
    from cogcache.models.halves.partition import Half
    from cogcache.video import ClipFrames

DERIVED = "not tested: derived from its class, config and processor; each clip checks itself"
SIZE = (360, 640)


@dataclass(frozen=True, slots=True)
class Description:
    """One checkpoint: what it is, how large its halves are, what a clip of it takes."""

    model: str
    family: str
    architecture: str
    tested: str
    vision_parameters: int
    language_parameters: int
    vision_bytes: int
    """In bfloat16; not quantised."""
    language_bytes: int
    num_frames: int
    frame_size: str
    """Width by height of the frames that the following is for."""
    cached: dict[str, str]
    """Name of each tensor that is cached of a clip: its type and shape."""
    cached_bytes: int
    """Of one clip, before compression."""


def families() -> list[dict[str, Any]]:
    """Return a row a family: what it is called, what was shown of it, what it is for."""
    rows = []
    for entry in FAMILIES:
        vision, language = entry.half_bytes or (None, None)
        rows.append(
            {
                "family": entry.name,
                "models": list(entry.models),
                "tested": entry.tested,
                "vision_bytes": vision,
                "language_bytes": language,
                "architectures": list(entry.architectures),
            }
        )
    return rows


def describe(
    model: str,
    *,
    revision: str | None = None,
    num_frames: int = 24,
    size: tuple[int, int] = SIZE,
    pixels: PixelLimits | None = None,
) -> Description:
    """Describe a checkpoint. Of a hub id only the small files are fetched.

    Args:
        model: a folder, a hub id, or `tiny`.
        revision: of a hub id.
        num_frames: of the clip whose features are described.
        size: height and width of its frames.
        pixels: limits that they are scaled to; None for the checkpoint's own.

    Raises:
        CheckpointError: it is nowhere to be found, or cannot be read.
        UnknownFamilyError: it cannot be run in two stages.
    """
    checkpoint = Checkpoint.open(model, revision)
    with blamed_on(checkpoint.folder):
        family = family_of(checkpoint).within(pixels)
        parameters = _parameters(checkpoint)
        cached = _expected(family, num_frames, size)
    tested = {entry.name: entry.tested for entry in FAMILIES}
    return Description(
        model=model,
        family=family.name,
        architecture=checkpoint.architecture,
        tested=tested.get(family.name, DERIVED),
        vision_parameters=parameters["vision"],
        language_parameters=parameters["language"],
        vision_bytes=2 * parameters["vision"],
        language_bytes=2 * parameters["language"],
        num_frames=num_frames,
        frame_size=f"{size[1]}x{size[0]}",
        cached={
            name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            for name, tensor in cached.tensors.items()
        },
        cached_bytes=sum(tensor.nbytes for tensor in cached.tensors.values()),
    )


def _parameters(checkpoint: Checkpoint) -> dict[Half, int]:
    """Count the parameters of each half; those of neither are in both, and next to none."""
    from cogcache.models.classes import load_config, model_class
    from cogcache.models.halves.partition import module_paths, on_meta

    cls = model_class(checkpoint)
    model = on_meta(cls, load_config(checkpoint, cls))
    modules = module_paths(model)
    counts: dict[Half, int] = {"vision": 0, "language": 0}
    for name, parameter in model.named_parameters():
        if half := modules.half_of(name):
            counts[half] += parameter.numel()
    return counts


def _expected(family: Family, num_frames: int, size: tuple[int, int]) -> ClipTensors:
    """Let the family's processor look at a clip of noise, one frame a second."""
    import torch

    inputs = family.prepare(clip_of_noise(num_frames, size), torch.bfloat16)
    return family.expected(inputs, torch.bfloat16)


def clip_of_noise(num_frames: int, size: tuple[int, int]) -> ClipFrames:
    """Return a clip that no video is needed for, one frame a second.

    Args:
        num_frames: of the clip.
        size: height and width of its frames.
    """
    import numpy as np

    from cogcache.video import ClipFrames

    seconds = np.arange(num_frames)
    return ClipFrames(
        # Noise, since some families keep less of a picture that stands still.
        frames=np.random.default_rng(0).integers(0, 256, (num_frames, *size, 3), dtype=np.uint8),
        timestamps_s=seconds.astype(np.float64),
        frame_indices=seconds * 30,
        fps=30.0,
        total_num_frames=num_frames * 30,
        duration_s=float(num_frames),
        decoder="pyav",
    )
