"""What the release of transformers that a family came with made of a clip, and how far off we are.

Goldens lie in tests/golden/families; README.md there says what is in them.
"""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.registry import family_of
from cogcache.video.frame_index import index_frames
from cogcache.video.pyav_reader import pyav_frames
from cogcache.video.reading import ClipFrames

GOLDENS = Path(__file__).parents[1] / "golden" / "families"
TAKEN = (0, 25, 50, 75, 112, 150, 200, 275)
"""Numbers of the frames in frames.xz."""
LIMITS = {"pixels": 0.2, "pixels_mean": 1e-3, "features": 2e-2, "logits": 2e-2}
"""Largest difference of pixels after normalising, and of the rest relative to the whole: resizes
of Pillow and torchvision are a level of 256 apart."""


WIDE = {"glm4v": {"pixels": 0.5, "pixels_mean": 5e-3, "features": 0.1, "logits": 0.15}}
"""4.53 resized bicubically without antialiasing; later releases with it, as every other family."""


@dataclass(frozen=True)
class Golden:
    """One family's golden: how the clip was made, and what came of it."""

    folder: Path
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, name: str, goldens: Path = GOLDENS) -> Golden:
        folder = goldens / name
        facts = json.loads((folder / "golden.json").read_text())
        return cls(folder, facts, load_file(folder / "golden.safetensors"))

    def checkpoint(self, folder: Path) -> Path:
        """Write the checkpoint, unpacked, into a folder."""
        shutil.copytree(self.folder / "checkpoint", folder)
        packed = folder / "model.safetensors.xz"
        (folder / "model.safetensors").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
        return folder

    def clip(self) -> ClipFrames:
        """Return the frames that the release was given."""
        if (path := self.folder / "short.mp4").is_file():
            return self._decoded(path)
        facts, packed = self.facts, (self.folder.parent / "frames.xz").read_bytes()
        frames = load(lzma.decompress(packed))["frames"].numpy()
        indices = np.array(facts["frame_indices"], np.int64)
        return ClipFrames(
            frames=frames[[TAKEN.index(index) for index in facts["frame_indices"]]],
            timestamps_s=indices / facts["fps"],
            frame_indices=indices,
            fps=facts["fps"],
            total_num_frames=round(facts["fps"] * facts["duration_s"]),
            duration_s=float(facts["duration_s"]),
            decoder="pyav",
        )

    def _decoded(self, path: Path) -> ClipFrames:
        index, numbers = index_frames(path), self.facts["frame_indices"]
        return ClipFrames(
            frames=pyav_frames(path, index, numbers)[0],
            timestamps_s=index.times_s[numbers].astype(np.float64),
            frame_indices=np.array(numbers, np.int64),
            fps=index.fps,
            total_num_frames=len(index.times_s),
            duration_s=index.duration_s,
            decoder="pyav",
        )


def apart(one: Tensor, other: Tensor) -> float:
    """Return how far two tensors are apart, relative to the second; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.double(), other.double()
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


@torch.inference_mode()
def made(golden: Golden, checkpoint: Path) -> dict[str, Tensor]:
    """Return what the two stages make of the golden's clip, under the golden's names."""
    family = family_of(Checkpoint.open(str(checkpoint)))
    whole = WholeModel.of(family.checkpoint)
    vision, language = (
        load_half(whole, half, dtype=torch.float32).model for half in ("vision", "language")
    )
    prepared = family.prepare(golden.clip(), torch.float32)
    pixels = next(v for k, v in prepared.tensors.items() if "pixel_values" in k).flatten()
    features = family.encode(vision, [prepared], 48)[0]
    row = family.row(features, golden.facts["question"], "")
    seen: list[Any] = []
    hook = language.get_decoder().register_forward_pre_hook(
        lambda module, positional, named: seen.append(named.get("position_ids")), with_kwargs=True
    )
    try:
        out = language.generate(
            **family.model_inputs([row], language),
            max_new_tokens=len(golden.tensors["generated"]),
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        hook.remove()
    ids = row.sequences["input_ids"]
    if golden.facts.get("expands_in_model"):
        ids = _collapsed(ids, family.processor.slot_ids)
    found = {
        "input_ids": ids,
        "pixels": pixels[:: max(1, len(pixels) // 4096)],
        "pixels_mean": pixels.double().mean()[None],
        "features": _rows(features.tensors),
        "logits": torch.cat(out.logits),
        "generated": out.sequences[0, -len(out.logits) :],
    }
    for name, place in zip(("positions", "next_position"), seen, strict=False):
        if place is not None:
            found[name] = place[-3:, 0] if place.ndim == 3 else place[:1].expand(3, -1)
    extras = {name: each for name, each in features.tensors.items() if name.startswith("extra.")}
    return found | extras


def _collapsed(ids: Tensor, slots: Collection[int]) -> Tensor:
    """Return ids with a run of a slot as one: the first releases made room in the model."""
    kept = [
        token
        for place, token in enumerate(ids.tolist())
        if not (place and token in slots and token == int(ids[place - 1]))
    ]
    return torch.tensor(kept)


def _rows(tensors: Any) -> Tensor:
    names = [name for name in tensors if name == "features" or name.startswith("features.")]
    return torch.cat([tensors[name].reshape(-1, tensors[name].shape[-1]) for name in names])


def differences(golden: Golden, found: dict[str, Tensor]) -> list[str]:
    """Name what is not as the release had it, with by how much."""
    told = []
    for name, each in golden.tensors.items():
        wanted = each
        if name not in found:
            continue
        value = found[name]
        if name == "logits":  # those behind a token that differs say nothing
            value, wanted = value[:1], wanted[:1]
        if name in ("pixels", "pixels_mean"):
            far = float((value - wanted).abs().max()) if value.shape == wanted.shape else np.inf
        elif wanted.is_floating_point():
            far = apart(value.flatten(), wanted.flatten())
        else:
            far = 0.0 if torch.equal(value.cpu().long().flatten(), wanted.flatten()) else np.inf
        if far > WIDE.get(golden.folder.name, {}).get(name, LIMITS.get(name, 1e-4)):
            told.append(f"{name}: {far:.1e}")
    return told
