"""Makes a random model of about 50 M parameters with CogVLM2's proportions, and clips for it.

Vision : language is 0.6 (the flagship: 0.56), a frame has 66 feature rows, a clip 24 frames, so a
prompt some 1,620 tokens; grouped heads, the wide vision MLP and the published layout are kept.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import ClipTensors, Family
from cogcache.models.halves.load import WholeModel, load_half, load_whole
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import family_of
from cogcache.selftest.shapes import FPS, draw_scene, render
from cogcache.settings.settings import Settings, load_settings
from cogcache.store.store import FeatureStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from checkpoints import Sizes, write_checkpoint

SCENES = 4
SCENE_FRAMES = int(6.2 * FPS)
SIZES = Sizes(
    width=512,
    inner=1792,
    layers=8,
    heads=8,
    key_value_heads=2,
    vocabulary=4096,
    vision_width=256,
    vision_inner=2176,
    vision_layers=12,
    image_size=224,
)


def write_video(path: Path, seed: int) -> None:
    """Write some 25 seconds of H.264, 640 × 360: one scene after another, with noise on them."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for _ in range(SCENES):
            scene = draw_scene(rng, SCENE_FRAMES)
            grain = rng.normal(0, 4, (360, 640, 3))
            for index in range(SCENE_FRAMES):
                square = render([scene], [index / FPS], 360)[0, 0]
                wide = np.pad(square, ((0, 0), (140, 140), (0, 0)), mode="reflect") + grain
                picture = np.clip(np.rint(wide), 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_copy(video: Path, path: Path, number: int) -> None:
    """Write a video with the same pictures and another digest: a box to skip stands behind it."""
    box = number.to_bytes(8, "big")
    path.write_bytes(video.read_bytes() + (8 + len(box)).to_bytes(4, "big") + b"free" + box)


@dataclass
class Bench:
    """A folder with the model and its clips, and what has been loaded of them.

    Args:
        folder: for the checkpoint, the clips and the caches.
        repeats: how often each figure is measured.
        num_clips: 24-second clips, of two videos; further ones have the same pictures.
        sizes: of the model.
    """

    folder: Path
    repeats: int
    num_clips: int = 6
    sizes: Sizes = SIZES

    @cached_property
    def model(self) -> str:
        """The checkpoint's folder."""
        return str(write_checkpoint(self.folder / "model", self.sizes))

    @cached_property
    def videos(self) -> list[Path]:
        """H.264 clips, each sampled to 24 frames."""
        paths = [self.folder / f"{number}.mp4" for number in range(self.num_clips)]
        for number, path in enumerate(paths):
            if number < 2:
                write_video(path, number)
            else:
                write_copy(paths[number % 2], path, number)
        return paths

    def settings(self, **changes: Any) -> Settings:
        """Return settings; random weights never end a caption, so none is tried twice."""
        return load_settings(None, {"model": self.model, "retry": False, **changes})

    @cached_property
    def family(self) -> Family:
        """The family, at the default cache point."""
        return family_of(Checkpoint.open(self.model))

    @cached_property
    def whole(self) -> WholeModel:
        """Config and partition."""
        overrides = self.family.config_overrides(self.settings().language)
        return WholeModel.of(self.family.checkpoint, **overrides)

    @cached_property
    def monolith(self) -> Any:
        """The model in one piece, bfloat16."""
        return load_whole(self.whole, dtype=torch.bfloat16)

    def language(self, kind: Any = "none") -> Any:
        """The language half, bfloat16 or 4 bits."""
        return load_half(self.whole, "language", quantization=Quantization(kind=kind)).model

    @cached_property
    def cache(self) -> Path:
        """A cache with the features of all clips."""
        from cogcache.stages.extract import extract

        done = extract(self.videos, self.folder / "cache", self.settings()).counts
        assert done.done + done.cached == self.num_clips
        return self.folder / "cache"

    @cached_property
    def features(self) -> list[ClipTensors]:
        """The features of each clip, in memory."""
        store = FeatureStore.open(self.cache)
        return [ClipTensors(store.read(key).tensors) for key in store]
