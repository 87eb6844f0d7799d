"""What vLLM's worker runs: everything else is refused by name, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cogcache.errors import ConfigError
from cogcache.generation.vllm.view import FAMILIES
from cogcache.models import Family, SplitCheckpoint, stored_method
from cogcache.settings import Settings

KINDS: Final = ("auto", "none", "int8", "fp8")
STORED: Final = ("awq", "gptq", "compressed-tensors", "fp8")
"""Kinds of quantised checkpoints that are handed to vLLM."""
_HINT = "leave it out, or leave --backend vllm out"


def check_backend(settings: Settings, family: Family) -> None:
    """Refuse what vLLM's worker does not do.

    Args:
        settings: of the run, with backend vllm.
        family: of the checkpoint, at the cache point.

    Raises:
        ConfigError: names the first setting that it has no way for, and what to do.
    """
    if settings.inference.backend_python is None:
        problem = "--backend vllm needs the Python of the environment that vLLM is installed in"
        raise ConfigError(problem, "give --backend-python PATH; docs/vllm.md says how to make one")
    if family.name not in FAMILIES:
        problem = f"--backend vllm was not shown to be right for {family.name}"
        hint = f"it runs {', '.join(FAMILIES)}; docs/families.md says why not others"
        raise ConfigError(problem, f"{hint}; leave --backend vllm out")
    for problem in _refused(settings, family):
        raise ConfigError(f"--backend vllm {problem}", _HINT)
    if not settings.inference.unproven:
        for what in _unproven(settings, family):
            problem = f"--backend vllm was never run here with {what}"
            raise ConfigError(problem, "give --unproven to try it all the same, or leave it out")


def _refused(settings: Settings, family: Family) -> list[str]:
    language, generation, checkpoint = settings.language, settings.generation, family.checkpoint
    split = checkpoint.manifest.quantized if isinstance(checkpoint, SplitCheckpoint) else None
    stored = stored_method(checkpoint)
    kind, head, device = language.quantization, language.head_quantization, settings.device
    in_the_way = {
        f"has no weights in {kind} (--quantization)": kind not in KINDS,
        f"has no output head in {head} (--head-quantization)": head != "none",
        "takes no adapter (--adapter)": language.adapter is not None,
        "keeps no video parts between runs (--keep-prefix)": language.keep_prefix is not None,
        "has no beams (--num-beams)": generation.num_beams > 1,
        "follows no schema (--json-schema)": generation.json_schema is not None,
        "reads no features from before the projector (--cache-point)": (
            family.cache_point != "projected"
        ),
        "does not read the quantised half of a split (--model)": split is not None,
        f"reads no weights stored in {stored} (--model)": stored not in (None, *STORED),
        f"has weights that are stored in {stored}, not {kind} (--quantization)": (
            stored is not None and kind not in ("auto", "none")
        ),
        f"does not run on {device} (--device)": not _is_device(device),
    }
    return [problem for problem, is_so in in_the_way.items() if is_so]


def _is_device(device: str) -> bool:
    return device in ("auto", "cpu") or device.startswith("cuda")


def _unproven(settings: Settings, family: Family) -> Iterator[str]:
    if stored_method(family.checkpoint) is not None:
        yield f"weights stored in {stored_method(family.checkpoint)} (--model)"
    if settings.language.quantization == "fp8":
        yield "weights in fp8 (--quantization)"
    if settings.inference.tensor_parallel > 1:
        yield "several GPUs (--tensor-parallel)"
    if settings.machines.engine == "ray":
        yield "workers on Ray (--engine ray)"
