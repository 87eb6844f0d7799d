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
)


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
