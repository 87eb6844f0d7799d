"""Families by name; their modules are imported when they are first needed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cogcache.errors import UnknownFamilyError
from cogcache.models.checkpoints.bounds import blamed_on
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.family import Family
from cogcache.settings import Settings

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
    half_bytes: tuple[int, int] | None = None
    """Bytes of the vision and the language half in bfloat16, where they are known."""


def _derived(
    name: str, architecture: str, *models: str, home: str = "family:DerivedFamily"
) -> FamilyEntry:
    return FamilyEntry(name, f"cogcache.models.derived.{home}", (architecture,), models, CONTRACT)


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
        (8_954_538_496, 16_060_522_496),
    ),
    _derived(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        "Qwen/Qwen2-VL-2B-Instruct",
        "Qwen/Qwen2-VL-7B-Instruct",
    ),
    _derived(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "Qwen/Qwen2.5-VL-7B-Instruct",
    ),
    _derived(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        "Qwen/Qwen3-VL-4B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
    ),
    _derived("glm4v", "Glm4vForConditionalGeneration", "zai-org/GLM-4.1V-9B-Thinking"),
    _derived(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ),
    _derived(
        "llava_next_video",
        "LlavaNextVideoForConditionalGeneration",
        "llava-hf/LLaVA-NeXT-Video-7B-hf",
    ),
    _derived("video_llava", "VideoLlavaForConditionalGeneration", "LanguageBind/Video-LLaVA-7B-hf"),
    _derived(
        "internvl",
        "InternVLForConditionalGeneration",
        "OpenGVLab/InternVL3-1B-hf",
        "OpenGVLab/InternVL3-8B-hf",
        home="internvl:InternVLFamily",
    ),
    _derived("smolvlm", "SmolVLMForConditionalGeneration", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
    _derived(
        "video_llama_3",
        "VideoLlama3ForConditionalGeneration",
        "lkhl/VideoLLaMA3-2B-Image-HF",
        home="video_llama_3:VideoLlama3Family",
    ),
    _derived(
        "ernie4_5_vl_moe", "Ernie4_5_VLMoeForConditionalGeneration", "baidu/ERNIE-4.5-VL-28B-A3B-PT"
    ),
    _derived("exaone4_5", "Exaone4_5_ForConditionalGeneration", "LGAI-EXAONE/EXAONE-4.5-33B"),
    _derived("gemma3", "Gemma3ForConditionalGeneration", "google/gemma-3-4b-it"),
    _derived("gemma4", "Gemma4ForConditionalGeneration", "google/gemma-4-e2b-it"),
    _derived("glm46v", "Glm46VForConditionalGeneration"),
    _derived("glm4v_moe", "Glm4vMoeForConditionalGeneration", "zai-org/GLM-4.5V"),
    _derived("glm_ocr", "GlmOcrForConditionalGeneration", "zai-org/GLM-OCR"),
    _derived("lfm2_vl", "Lfm2VlForConditionalGeneration", "LiquidAI/LFM2-VL-1.6B"),
    _derived("lfm3_vl", "Lfm3VlForConditionalGeneration", "LiquidAI/LFM3-VL-2B"),
    _derived("minicpmv4_6", "MiniCPMV4_6ForConditionalGeneration", "openbmb/MiniCPM-V-4.6"),
    _derived("minicpmv4_7", "MiniCPMV4_7ForConditionalGeneration", "openbmb/MiniCPM-V-4.7-1B"),
    _derived("minimax_m3_vl", "MiniMaxM3SparseForConditionalGeneration", "MiniMaxAI/MiniMax-M3"),
    _derived("molmo2", "Molmo2ForConditionalGeneration", "allenai/Molmo2-8B"),
    _derived("qwen2_5_omni_thinker", "Qwen2_5OmniThinkerForConditionalGeneration"),
    _derived("qwen3_5", "Qwen3_5ForConditionalGeneration", "Qwen/Qwen3.5-27B"),
    _derived("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "Qwen/Qwen3.5-35B-A3B"),
    _derived(
        "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", "Qwen/Qwen3-VL-30B-A3B-Instruct"
    ),
    _derived(
        "cohere_compass",
        "CohereCompassForConditionalGeneration",
        "CohereLabs/North-Micro-Vision-Instruct",
    ),
    _derived("idefics3", "Idefics3ForConditionalGeneration", "HuggingFaceM4/Idefics3-8B-Llama3"),
    _derived("llava", "LlavaForConditionalGeneration", "llava-hf/llava-1.5-7b-hf"),
    _derived(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    ),
    _derived("qwen3_omni_moe_thinker", "Qwen3OmniMoeThinkerForConditionalGeneration"),
)


def get_family(name: str) -> type[Family]:
    """Return a family's class by its name.

    Raises:
        UnknownFamilyError: there is none of this name.

    Example:
        >>> get_family("qwen2_5_vl").__name__
        'DerivedFamily'
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
            with blamed_on(checkpoint.folder):
                return get_family(entry.name)(checkpoint)
    if "model_type" not in checkpoint.config:
        problem = f"{checkpoint.model}: no family knows the architecture {checkpoint.architecture}"
        raise UnknownFamilyError(problem, "`cogcache models` lists what is supported")
    derived: type[Family] = _attribute("cogcache.models.derived.family:DerivedFamily")
    return derived(checkpoint)


def open_family(settings: Settings, checkpoint: str | None = None) -> Family:
    """Open the checkpoint that settings name, and return its family at their cache point.

    Args:
        settings: model, revision and cache point.
        checkpoint: where the model lies, if not where the settings say; a folder's whole path,
            for a process that works in another folder.

    Raises:
        CheckpointError: the checkpoint is not there, or cannot be read.
        UnknownFamilyError: no family knows its architecture.
        ConfigError: the family has no such cache point.
    """
    opened = Checkpoint.open(checkpoint or settings.model, settings.revision)
    return family_of(opened).at(settings.vision.cache_point)


def _attribute(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)
