"""Families by name; their modules are imported when they are first needed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cogcache.checkpoint import Checkpoint
from cogcache.errors import UnknownFamilyError
from cogcache.models.family import Family

DERIVED = "cogcache.models.derived.family:DerivedFamily"
"""What runs an architecture that no family names."""
CONTRACT = "contract on a small random checkpoint: tokens equal the whole model's"


@dataclass(frozen=True, slots=True)
class FamilyEntry:
    """What is known of a family without importing it."""

    name: str
    home: str
    """Module and class, as text."""
    architectures: tuple[str, ...]
    models: tuple[str, ...]
    """Hub ids it is for."""
    tested: str
    """What shows that its two stages equal the whole model."""


def _derived(name: str, architecture: str, *models: str, home: str = DERIVED) -> FamilyEntry:
    return FamilyEntry(name, home, (architecture,), models, CONTRACT)


FAMILIES = (
    FamilyEntry(
        "cogvlm2",
        "cogcache.models.cogvlm2.family:CogVLM2Family",
        ("CogVLMVideoForCausalLM", "CogVLM2VideoForConditionalGeneration"),
        (
            "THUDM/cogvlm2-llama3-caption",
            "THUDM/cogvlm2-video-llama3-chat",
            "THUDM/cogvlm2-video-llama3-base",
            "tiny",
        ),
        "golden numbers of the published code; tokens equal the whole model's",
    ),
    _derived(
        "qwen2_vl", "Qwen2VLForConditionalGeneration",
        "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct",
    ),
    _derived(
        "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration",
        "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct",
    ),
    _derived(
        "qwen3_vl", "Qwen3VLForConditionalGeneration",
        "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct",
    ),
    _derived("glm4v", "Glm4vForConditionalGeneration", "THUDM/GLM-4.1V-9B-Thinking"),
    _derived(
        "llava_onevision", "LlavaOnevisionForConditionalGeneration",
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ),
    _derived(
        "llava_next_video", "LlavaNextVideoForConditionalGeneration",
        "llava-hf/LLaVA-NeXT-Video-7B-hf", "llava-hf/LLaVA-NeXT-Video-7B-DPO-hf",
    ),
    _derived("video_llava", "VideoLlavaForConditionalGeneration", "LanguageBind/Video-LLaVA-7B-hf"),
    _derived(
        "internvl", "InternVLForConditionalGeneration",
        "OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-8B-hf",
        home="cogcache.models.derived.internvl:InternVLFamily",
    ),
    _derived(
        "smolvlm", "SmolVLMForConditionalGeneration",
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    _derived(
        "video_llama_3", "VideoLlama3ForConditionalGeneration",
        "lkhl/VideoLLaMA3-2B-Image-HF", "lkhl/VideoLLaMA3-7B-Image-HF",
        home="cogcache.models.derived.video_llama_3:VideoLlama3Family",
    ),
)  # fmt: skip


def get_family(name: str) -> type[Family]:
    """Return a family's class by its name.

    Raises:
        UnknownFamilyError: there is none of this name.
    """
    for entry in FAMILIES:
        if entry.name == name:
            family: type[Family] = _attribute(entry.home)
            return family
    known = ", ".join(entry.name for entry in FAMILIES)
    raise UnknownFamilyError(f"there is no family {name!r}", f"the families are: {known}")


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint, made for it.

    Raises:
        UnknownFamilyError: no family knows its architecture.
    """
    for entry in FAMILIES:
        if checkpoint.architecture in entry.architectures:
            return get_family(entry.name)(checkpoint)
    if "model_type" not in checkpoint.config:
        problem = f"{checkpoint.model}: no family knows the architecture {checkpoint.architecture}"
        raise UnknownFamilyError(problem, "`cogcache models` lists what is supported")
    derived: type[Family] = _attribute(DERIVED)
    return derived(checkpoint)


def _attribute(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)
