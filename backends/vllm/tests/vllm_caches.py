"""Small random checkpoints, a cache of each, and its captions by either backend."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import zoo
import zoo_wide
from checkpoints import MINI, Sizes, copy_golden, write_checkpoint
from contracts import clip as random_clip
from safetensors.torch import load_file, save_file
from scenes import catalog_of

from cogcache.catalog import rows as catalog_rows
from cogcache.models import WholeModel, identify, load_half, open_family
from cogcache.settings import Settings, load_settings
from cogcache.stages.captioning.captioner import Captioner
from cogcache.stages.captioning.read_ahead import read_ahead, reader_for
from cogcache.stages.captioning.results import Made
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.tasks import list_captions
from cogcache.stages.clips.worklist import Clip, Wanted, clip_row
from cogcache.stages.runs.report import Counts, RunReport, Timings
from cogcache.store import FeatureStore

PYTHON = os.environ.get("COGCACHE_VLLM_PYTHON", "")
NUM_CLIPS = int(os.environ.get("COGCACHE_VLLM_CLIPS", "20"))
NEW_TOKENS = 24
PROMPTS = {
    "what": "What is it?",
    "how": "Tell me how it moves, please.",
    "colours": "Describe the colours in this video in one sentence.",
    "end": "And how does it end?",
}
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""vLLM's attention on CPUs takes heads of 32 and up: those of the zoo are 16 wide."""
ANIMALS = {
    animal.name: animal
    for animal in (
        zoo.QWEN2_VL, zoo.QWEN2_5_VL, zoo.QWEN3_VL, zoo.LLAVA_ONEVISION, zoo.LLAVA_NEXT_VIDEO,
        zoo.VIDEO_LLAVA, zoo.INTERNVL, zoo.SMOLVLM, zoo.VIDEO_LLAMA_3,
        zoo_wide.LLAVA, zoo_wide.IDEFICS3, zoo_wide.MISTRAL3,
    )
}  # fmt: skip
ANIMALS["internvl_qwen3"] = dataclasses.replace(
    zoo.INTERNVL,
    config=lambda ids: {
        **zoo.INTERNVL.config(ids), "text_config": zoo.text_config(model_type="qwen3")
    },
)  # fmt: skip
NAMES = ["tiny", "golden", "cogvlm2", *ANIMALS]
Tokens = dict[tuple[str, str], tuple[int, ...]]


def widened(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model's config with a decoder whose heads are wide enough."""
    text = {**config["text_config"], **WIDE}
    if "rope_parameters" in text:
        rope = {**text["rope_parameters"], "mrope_section": [4, 6, 6]}
        text["rope_parameters"] = rope
    vision = dict(config["vision_config"])
    if "out_hidden_size" in vision:
        vision["out_hidden_size"] = WIDE["hidden_size"]
    elif "embed_dim" in vision:
        vision["hidden_size"] = WIDE["hidden_size"]
    return {**config, "text_config": text, "vision_config": vision}


def checkpoint(name: str, folder: Path) -> str:
    if name == "tiny":
        return "tiny"
    if name == "golden":
        return str(golden(folder))
    if name == "cogvlm2":
        sizes = Sizes(width=128, inner=256, layers=3, image_size=112)
        return str(write_checkpoint(folder, sizes, config={"template_version": "chat"}))
    animal = ANIMALS[name]
    wide = dataclasses.replace(animal, config=lambda ids: widened(animal.config(ids)))
    return str(wide.write(folder))


def golden(folder: Path) -> Path:
    """Write the golden checkpoint with heads of 32 in place of 16, which compute the same.

    What is added to a head is zero. Its halves are turned by the same angles, for the base of the
    angles is squared; the products of queries and keys are divided by more, so queries grow.
    """
    copy_golden(folder)
    config = json.loads((MINI / "config.json").read_text())
    theta = 500_000.0**2
    config |= {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(MINI / "model.safetensors")
    save_file({name: _wide(name, each) for name, each in tensors.items()}, folder / MODEL)
    return folder


MODEL = "model.safetensors"


def _wide(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the golden checkpoint for heads of 32: four of queries, two of keys."""
    if name.endswith("rotary_emb.inv_freq"):
        return torch.tensor([500_000.0 ** (-4 * i / 32) for i in range(16)]).to(tensor.dtype)
    if name.endswith("language_expert_query_key_value.weight"):
        heads = tensor.view(8, 2, 8, -1)
        turned = torch.nn.functional.pad(heads[:6], (0, 0, 0, 8)).clone()
        turned[:4] *= 2**0.5
        straight = torch.nn.functional.pad(heads[6:].reshape(2, 16, -1), (0, 0, 0, 16))
        return torch.cat([turned.reshape(6 * 32, -1), straight.reshape(2 * 32, -1)])
    if name.endswith("language_expert_dense.weight"):
        heads = torch.nn.functional.pad(tensor.view(-1, 4, 16), (0, 16))
        return heads.reshape(len(tensor), 4 * 32).contiguous()
    return tensor


def settings_of(model: str, **changes: object) -> Settings:
    given = {
        "model": model, "vision_dtype": "float32", "compute_dtype": "float32",
        "quantization": "none", "rotary_dtype": "float32", "retry": False, "prompts": PROMPTS,
        "max_new_tokens": NEW_TOKENS, "device": "cpu",
    }  # fmt: skip
    return load_settings(None, {**given, **changes})


def on_vllm(model: str, **changes: object) -> Settings:
    small = {"backend": "vllm", "backend_python": PYTHON, "kv_cache_gib": 0.5}
    return settings_of(model, **{**small, **changes})


def make_cache(root: Path, settings: Settings, clips: int = NUM_CLIPS) -> None:
    """Encode random clips of many lengths with the model's vision half."""
    family, store = open_family(settings), FeatureStore.create_or_open(root)
    whole = WholeModel.of(family.checkpoint, **family.partition_settings())
    vision = load_half(whole, "vision", dtype=torch.float32).model
    with catalog_of(root) as catalog:
        wanted = Wanted(settings, family, identify(family, "vision", catalog.files))
        run = catalog.runs.start("extract", settings.model, {})
        for number in range(clips):
            size = (48, 32) if number % 2 else (32, 48)
            frames = random_clip(4 + 2 * (number % 5), size, number, number % 3)
            inputs = family.prepare(frames, torch.float32)
            [features] = family.encode(vision, [inputs], 8)
            digest = f"{number:064x}"
            clip = Clip(Path(f"/videos/{number}.mp4"), wanted.key(digest, (0.0, None)))
            about = {
                **clip.key.fields(), **dict(features.facts or _facts(frames)),
                "video": str(clip.video), "model": settings.model,
                "texts": dict(features.texts), "suspect": None, "decoder": "pyav",
            }  # fmt: skip
            store.write(clip.key.digest, features.tensors, about)
            catalog.files.add_videos([_video(clip, digest)])
            catalog.clips.add([clip_row(clip, settings.model, run)])


def _facts(frames: Any) -> dict[str, Any]:
    return {
        "timestamps_s": frames.timestamps_s.tolist(),
        "frame_indices": frames.frame_indices.tolist(),
        "fps": frames.fps, "duration_s": frames.duration_s,
        "total_num_frames": frames.total_num_frames,
    }  # fmt: skip


def _video(clip: Clip, digest: str) -> catalog_rows.VideoRow:
    return {
        "digest": digest, "path": str(clip.video), "duration_s": 60.0, "fps": 30.0, "width": 8,
        "height": 8, "total_num_frames": 9, "codec": "h264", "size_bytes": 1,
    }  # fmt: skip


def tokens_of(
    cache: Path, settings: Settings, look: Callable[[Captioner, int], None] | None = None
) -> tuple[Tokens, Captioner]:
    """Make all captions of a cache; `look` is called with the number of each that is made."""
    store, family = FeatureStore.open(cache), open_family(settings)
    report = RunReport(0, "caption", settings.model, Counts(), Timings())
    with catalog_of(cache) as catalog:
        stage = StageTwo(settings, family, identify(family, "language", catalog.files))
        tasks = list_captions(stage, catalog).missing
    clips = (
        (of_clip, features)
        for of_clip, features in read_ahead(
            tasks, store, lambda: report.timings.time("wait"), reader_for(stage)
        )
    )
    found: Tokens = {}
    with closing(Captioner(stage, report, store)) as captioner:
        for made in captioner.captions(clips):
            assert isinstance(made, Made), made.error
            found[made.task.key.feature_key, made.task.prompt_name] = made.tokens
            if look:
                look(captioner, len(found))
    return found, captioner


class Kept:
    """A family's cache, and the tokens that transformers makes of it."""

    def __init__(self, name: str, root: Path) -> None:
        self.model = checkpoint(name, root / "checkpoint")
        self.cache = root / "cache"
        make_cache(self.cache, settings_of(self.model))
        self.expected, _ = tokens_of(self.cache, settings_of(self.model))
        assert len(self.expected) == NUM_CLIPS * len(PROMPTS)
        assert len({*self.expected.values()}) > NUM_CLIPS, "these tokens tell too little apart"


def check(expected: Tokens, found: Tokens) -> None:
    differing = [key for key in expected if expected[key] != found.get(key)]
    first = differing[:1] and (expected[differing[0]], found.get(differing[0]))
    assert not differing, f"{len(differing)} of {len(expected)} differ, first {first}"
    assert found.keys() == expected.keys()
