"""Tokens of vLLM against those of transformers, in float32, greedy: `make test-vllm`.

Small random checkpoints, a cache of each with clips that were encoded by its own vision half, and
the same requests to both backends. `COGCACHE_VLLM_PYTHON` names the Python of vLLM's environment.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from checkpoints import Sizes, write_checkpoint
from contracts import clip as random_clip
from scenes import catalog_of

from cogcache.catalog import rows as catalog_rows
from cogcache.generation.vllm import supported
from cogcache.generation.vllm.decoder import VllmDecoder
from cogcache.generation.vllm.opening import opening_of
from cogcache.generation.vllm.view import FAMILIES
from cogcache.models import Family, WholeModel, identify, load_half, open_family
from cogcache.settings import Settings, load_settings
from cogcache.stages.captioning import vllm_half
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
ALL = bool(os.environ.get("COGCACHE_VLLM_ALL"))
"""Whether families are tried that are refused as yet."""
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""vLLM's attention on CPUs takes heads of 32 and up: those of the zoo are 16 wide."""
ANIMALS = {
    animal.name: animal
    for animal in (
        zoo.QWEN2_VL, zoo.QWEN2_5_VL, zoo.QWEN3_VL, zoo.LLAVA_ONEVISION, zoo.LLAVA_NEXT_VIDEO,
        zoo.VIDEO_LLAVA, zoo.INTERNVL, zoo.SMOLVLM, zoo.VIDEO_LLAMA_3,
    )
}  # fmt: skip
NAMES = ["tiny", *(name for name in ("cogvlm2", *ANIMALS) if ALL or name in FAMILIES)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON, reason="COGCACHE_VLLM_PYTHON is not set"),
]
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
    if name == "cogvlm2":
        sizes = Sizes(width=128, inner=256, layers=3, image_size=112)
        return str(write_checkpoint(folder, sizes, config={"template_version": "chat"}))
    animal = ANIMALS[name]
    wide = dataclasses.replace(animal, config=lambda ids: widened(animal.config(ids)))
    return str(wide.write(folder))


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


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Iterator[Callable[[str], Kept]]:
    made: dict[str, Kept] = {}

    def of(name: str) -> Kept:
        if name not in made:
            made[name] = Kept(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


def check(expected: Tokens, found: Tokens) -> None:
    differing = [key for key in expected if expected[key] != found.get(key)]
    first = differing[:1] and (expected[differing[0]], found.get(differing[0]))
    assert not differing, f"{len(differing)} of {len(expected)} differ, first {first}"
    assert found.keys() == expected.keys()


@pytest.mark.parametrize("name", NAMES)
def test_tokens_equal_those_of_transformers(kept, name, monkeypatch):
    monkeypatch.setattr(supported, "FAMILIES", ("cogvlm2", *ANIMALS))
    of = kept(name)
    found, captioner = tokens_of(of.cache, on_vllm(of.model))
    check(of.expected, found)
    whole = WholeModel.of(captioner.stage.family.checkpoint)
    facts = captioner.half.decoder.facts
    assert facts["num_tensors"] == len({*whole.partition.language})
    assert captioner.half.decoder.cached_tokens > 0


def _opening_with(monkeypatch, **asked: object) -> None:
    """Have workers opened with more than cogcache asks for."""

    def changed(settings: Settings, view: Path) -> Any:
        made = opening_of(settings, view)
        return dataclasses.replace(made, asked={**made.asked, **asked})

    monkeypatch.setattr(vllm_half, "opening_of", changed)


@pytest.mark.parametrize(
    "asked", [{"prefix_caching": False}, {"chunk_tokens": 64}], ids=["no prefix cache", "chunks"]
)
@pytest.mark.parametrize("name", [name for name in ("cogvlm2", "qwen3_vl") if name in NAMES])
def test_neither_shared_prefixes_nor_chunks_of_a_prefill_change_a_token(
    kept, monkeypatch, name, asked
):
    of = kept(name)
    _opening_with(monkeypatch, **asked)
    found, captioner = tokens_of(of.cache, on_vllm(of.model))
    check(of.expected, found)
    assert (captioner.half.decoder.cached_tokens > 0) == ("prefix_caching" not in asked)


def test_a_worker_killed_in_the_middle_changes_no_token(kept):
    of = kept("cogvlm2")

    def kill(captioner: Captioner, made: int) -> None:
        if made in (3, NUM_CLIPS * 2):
            decoder: VllmDecoder = captioner.half.decoder
            os.kill(decoder.pid, 9)

    found, captioner = tokens_of(of.cache, on_vllm(of.model), kill)
    check(of.expected, found)
    assert captioner.half.decoder.restarts == 2


def test_rotary_tables_in_bfloat16_are_the_same_on_both_sides(kept):
    of = kept("cogvlm2")
    rounded = {"rotary_dtype": "bfloat16"}
    expected, _ = tokens_of(of.cache, settings_of(of.model, **rounded))
    found, _ = tokens_of(of.cache, on_vllm(of.model, **rounded))
    check(expected, found)
    assert expected != of.expected


def test_positions_of_vllm_s_own_would_give_other_tokens(kept, monkeypatch):
    of = kept("cogvlm2")
    plain = lambda _, row: torch.arange(row.length)  # noqa: E731
    monkeypatch.setattr(type(open_family(settings_of(of.model))), "positions", plain)
    found, _ = tokens_of(of.cache, on_vllm(of.model))
    assert sum(found[key] == of.expected[key] for key in found) < len(found) / 2


def test_bfloat16_is_compared_and_promised_nothing(kept, record_property):
    of = kept("tiny")
    changes = {"compute_dtype": "bfloat16", "rotary_dtype": "bfloat16"}
    expected, _ = tokens_of(of.cache, settings_of(of.model, **changes))
    found, _ = tokens_of(of.cache, on_vllm(of.model, **changes))
    equal = sum(found[key] == expected[key] for key in expected)
    begin = sum(found[key][:16] == expected[key][:16] for key in expected)
    print(f"bfloat16: {equal} of {len(expected)} captions equal, {begin} in their first 16 tokens")
    assert found.keys() == expected.keys()


def test_a_family_without_its_vision_shards_is_captioned_all_the_same(kept, tmp_path):
    of = kept("cogvlm2")
    folder = tmp_path / "half"
    folder.mkdir()
    family: Family = open_family(settings_of(of.model))
    parts = WholeModel.of(family.checkpoint).partition
    needed = {*family.checkpoint.shards_of(parts.names("language"))}
    for file in Path(of.model).iterdir():
        if file.suffix != ".safetensors" or file.name in needed:
            (folder / file.name).symlink_to(file)
    assert len([*folder.glob("*.safetensors")]) < len([*Path(of.model).glob("*.safetensors")])
    found, _ = tokens_of(of.cache, on_vllm(str(folder)))
    check(of.expected, found)
