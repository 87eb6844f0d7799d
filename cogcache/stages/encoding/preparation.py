"""What a decode worker does with one clip: read its frames and turn them into pixels.

Runs in processes of its own, which may die or hang without harm to the run. Tensors travel
back as safetensors bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cogcache.errors import VideoError
from cogcache.keys import Field
from cogcache.models import Checkpoint, family_of, hush_transformers
from cogcache.settings import Sampling
from cogcache.system import Location, file_of
from cogcache.video import Decoder, Seen, VideoInfo, check_unchanged, measured, read_clip, thumbnail

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore

    from cogcache.models import ClipTensors, Family


@dataclass(frozen=True, slots=True)
class ClipSource:
    """Where a clip is to be read from."""

    video: Location
    start_s: float
    end_s: float | None
    sampling: Sampling
    digest: str = ""
    """SHA-256 that the video's bytes had; "" where that is not known."""
    seen: Seen | None = None
    """What the file was when that was found; None where nobody can change it."""
    decoder: Decoder = "auto"
    """What reads the frames."""


@dataclass(frozen=True, slots=True)
class PreparedClip:
    """One clip ready for the vision half."""

    payload: bytes
    """The vision half's inputs, as safetensors."""
    texts: Mapping[str, str]
    num_frames: int
    facts: Mapping[str, Field]
    """What a reader of the feature file wants to know of the clip: times, indices, decoder."""
    info: VideoInfo
    """Of the whole video."""
    thumbnail: bytes

    def tensors(self) -> ClipTensors:
        """Return the vision half's inputs."""
        from safetensors.torch import load

        from cogcache.models import ClipTensors

        return ClipTensors(load(self.payload), self.texts)


class _Worker:
    """What a worker process keeps between clips."""

    family: Family
    dtype: str
    strict: bool


def start_worker(
    model: str,
    revision: str | None,
    dtype: str,
    strict: bool = False,
    first: Semaphore | None = None,
    quiet: bool = False,
) -> None:
    """Make a process ready: build the family, and keep torch to one thread.

    Args:
        model: folder or hub id of the checkpoint.
        revision: of a hub id.
        dtype: of what is prepared.
        strict: whether clips that are decoded with faults are refused.
        first: of several workers the one that gets it shows what transformers warns of; the others
            would say the same again. None: this one shows it.
        quiet: whether a worker of another pool shows it.
    """
    if quiet or (first is not None and not first.acquire(block=False)):
        hush_transformers()
    import torch

    torch.set_num_threads(1)
    _Worker.family = family_of(Checkpoint.open(model, revision))
    _Worker.dtype = dtype
    _Worker.strict = strict


def prepare(source: ClipSource) -> PreparedClip:
    """Decode, sample and preprocess one clip.

    Raises:
        VideoError: the clip cannot be read.
    """
    import torch
    from safetensors.torch import save

    span, video = (source.start_s, source.end_s), file_of(source.video)
    rule = _Worker.family.frames_of(source.sampling)
    clip = read_clip(video, rule, *span, decoder=source.decoder)
    if _Worker.strict and clip.suspect:
        problem = f"{video} can be decoded, but not without fault: {clip.suspect}"
        raise VideoError("suspect", problem, "fetch it anew, or leave out --strict")
    family = _Worker.family.within(source.sampling.pixels)
    inputs = family.prepare(clip, getattr(torch, _Worker.dtype))
    info = measured(video)
    if source.seen is not None:  # not before: it may change while it is read
        check_unchanged(video, source.digest, source.seen)
    facts: dict[str, Field] = {
        "timestamps_s": clip.timestamps_s.tolist(),
        "frame_indices": clip.frame_indices.tolist(),
        "fps": clip.fps,
        "duration_s": clip.duration_s,
        "offset_s": clip.offset_s,
        "total_num_frames": clip.total_num_frames,
        "width": info.width,
        "height": info.height,
        "codec": info.codec,
        "decoder": clip.decoder,
        "suspect": clip.suspect,
    }
    return PreparedClip(
        save({name: tensor.contiguous() for name, tensor in inputs.tensors.items()}),
        inputs.texts,
        len(clip.timestamps_s),
        facts,
        info,
        thumbnail(clip.frames),
    )
