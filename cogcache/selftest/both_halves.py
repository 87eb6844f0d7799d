"""Runs the two stages on some clips, each in its own process, and records what a model is given.

Stage one runs the vision half, and its features go through feature files; stage two runs the
language half on what it reads from them. `recorded` reads off both sides of a comparison alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cogcache.keys import digest
from cogcache.models import ClipTensors, Family, PromptRow, WholeModel, load_whole, open_family
from cogcache.planning import Fitted, LanguageLoader, VisionLoader
from cogcache.selftest.reference import pixels_of, recorded
from cogcache.settings import Settings
from cogcache.store import FeatureStore
from cogcache.system import pick_device
from cogcache.video import ClipFrames, read_clip

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

OURS: Final = "ours"
"""What the files of the two stages are called, behind a clip's name."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the processes have to do.

    Args:
        folder: for their files.
        settings: model, precision, device, memory and which frames.
        clips: videos by the names of their files.
        question: asked of each.
        new_tokens: how many are generated.
    """

    folder: Path
    settings: Settings
    clips: Mapping[str, Path]
    question: str
    new_tokens: int

    def frames_of(self, family: Family, name: str) -> ClipFrames:
        """Decode the chosen frames of a clip."""
        return read_clip(self.clips[name], family.frames_of(self.settings.sampling))


def run_vision_half(work: Work) -> None:
    """Run stage one: pixels and a feature file of each clip."""
    import torch
    from safetensors.torch import save_file

    family = open_family(work.settings)
    half = Fitted(VisionLoader(family, work.settings), lambda notes: None)
    store = FeatureStore.create_or_open(work.folder / "cache")
    for name in work.clips:
        prepared = family.prepare(work.frames_of(family, name), torch.float32)
        save_file(pixels_of(prepared.tensors), work.folder / f"{name}.pixels.safetensors")
        inputs = _cast(prepared, half.model.dtype)
        batch = work.settings.vision.frames_per_batch
        [features] = family.encode(half.model, [inputs], batch)
        tensors = {each: tensor.cpu() for each, tensor in features.tensors.items()}
        told = {"texts": dict(features.texts), **features.facts}
        store.write(_key(name), tensors, told)


def run_language_half(work: Work) -> None:
    """Run stage two on the feature files: ids, positions, logits and tokens of each clip."""
    family = open_family(work.settings)
    store = FeatureStore.open(work.folder / "cache")
    rows = {name: _row(family, _read(store, name), work) for name in work.clips}
    longest = max(row.length for row in rows.values())
    half = Fitted(LanguageLoader(family, work.settings, longest), lambda notes: None)
    for name, row in rows.items():
        _record(half.model, family, row, work, f"{name}.{OURS}")


def run_own_whole(work: Work) -> None:
    """Run our own model in one piece, where there is no other code that may be run."""
    import torch

    family = open_family(work.settings)
    overrides = family.config_overrides(work.settings.language)
    dtype = getattr(torch, work.settings.vision.vision_dtype)
    model = load_whole(WholeModel.of(family.checkpoint, **overrides), dtype=dtype)
    model.to(pick_device(work.settings.device))
    for name in work.clips:
        inputs = family.prepare(work.frames_of(family, name), dtype)
        [features] = family.encode(model, [inputs], work.settings.vision.frames_per_batch)
        _record(model, family, _row(family, features, work), work, f"{name}.reference")


def _record(model: PreTrainedModel, family: Family, row: PromptRow, work: Work, name: str) -> None:
    from safetensors.torch import save_file

    inputs = family.model_inputs([row], model)
    found = recorded(model, inputs, slots_of(family, row), work.new_tokens)
    save_file(found, work.folder / f"{name}.safetensors")


def slots_of(family: Family, row: PromptRow) -> Tensor:
    """Say of each token of a prompt whether features stand in its place. bool [L]."""
    import torch

    if (known := slot_ids(family)) is None:
        return row.sequences["token_type_ids"].bool()
    return torch.isin(row.sequences["input_ids"], torch.tensor(sorted(known)))


def slot_ids(family: Family) -> frozenset[int] | None:
    """Return the tokens that stand for features; None where a family marks their places."""
    processor = getattr(family, "processor", None)
    found: frozenset[int] | None = getattr(processor, "slot_ids", None)
    return found


def _row(family: Family, features: ClipTensors, work: Work) -> PromptRow:
    return family.row(features, work.question, family.layout(work.settings.language))


def _read(store: FeatureStore, name: str) -> ClipTensors:
    stored = store.read(_key(name))
    told: Any = stored.attributes["texts"]
    texts = {each: str(text) for each, text in told.items()}
    return ClipTensors(stored.tensors, texts, stored.attributes)


def _key(name: str) -> str:
    return digest({"clip": name})


def _cast(clip: ClipTensors, dtype: torch.dtype) -> ClipTensors:
    """Return a clip's inputs with its pixels as the vision half reads them."""
    tensors = {
        name: each.to(dtype) if name.startswith("pixel_values") else each
        for name, each in clip.tensors.items()
    }
    return ClipTensors(tensors, clip.texts, clip.facts)


def write_frames(work: Work) -> dict[str, dict[str, Any]]:
    """Write the frames of each clip for another program; return what is known of them."""
    import torch
    from safetensors.torch import save_file

    told = {}
    family = open_family(work.settings)
    for name in work.clips:
        clip = work.frames_of(family, name)
        frames = {"frames": torch.from_numpy(clip.frames.copy())}
        save_file(frames, work.folder / f"{name}.frames.safetensors")
        told[name] = {
            "frame_indices": [int(index) for index in clip.frame_indices],
            "fps": clip.fps,
            "total_num_frames": clip.total_num_frames,
            "duration_s": clip.duration_s,
        }
    return told


def write_job(work: Work, facts: Mapping[str, Any]) -> None:
    """Write what the other program is to do."""
    content = json.dumps({"folder": str(work.folder), **facts}, indent=1)
    (work.folder / "job.json").write_text(content, encoding="utf-8")
