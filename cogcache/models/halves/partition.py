"""Which modules and which tensors of a checkpoint belong to which half.

The rule is the same for every family: the language half is the decoder with its embeddings and
its output head; the vision half is every other module beside them on the way down from the
root. A parameter that hangs directly on a shared parent (LLaVA's `image_newline`) is in both.
Where a model caches features from before its projector, it says what else the language half has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from cogcache.errors import TensorMismatchError, UnknownFamilyError
from cogcache.models.checkpoints.checkpoint import Checkpoint, stored_method

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Half = Literal["vision", "language"]
PARTS: Final = frozenset(
    {
        *("qweight", "qzeros", "scales", "g_idx"),
        *("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
        *("input_scale", "input_zero_point", "weight_scale_inv"),
    }
)
"""Names of what stands for a weight that AWQ, GPTQ, compressed-tensors or fp8 have quantised."""


@dataclass(frozen=True, slots=True)
class ModulePaths:
    """Paths of the outermost modules of each half; a path may be that of a parameter."""

    vision: tuple[str, ...]
    language: tuple[str, ...]

    def half_of(self, name: str) -> Half | None:
        """Return the half that a parameter is in, or None where it hangs on a shared parent."""
        if _inside(f"{name}.", self.language):
            return "language"
        return "vision" if _inside(f"{name}.", self.vision) else None


@dataclass(frozen=True, slots=True)
class Partition:
    """Every tensor of a checkpoint, in exactly one of four lists of checkpoint names.

    `shared` are in both halves, `dropped` in none (copies that the class declares needless).
    `targets` maps each kept name to the first parameter of the whole model it goes to.
    """

    modules: ModulePaths
    vision: tuple[str, ...]
    language: tuple[str, ...]
    shared: tuple[str, ...]
    dropped: tuple[str, ...]
    targets: Mapping[str, str]

    def names(self, half: Half) -> tuple[str, ...]:
        """Return the checkpoint's names that a half is filled from."""
        return (self.vision if half == "vision" else self.language) + self.shared


def on_meta(cls: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """Build a model without its weights: names and shapes only."""
    import torch

    with torch.device("meta"):
        return cls(config)


def loaded_types(cls: type[PreTrainedModel], config: Any, dtype: str) -> dict[str, torch.dtype]:
    """Return the types that parameters get when a half is loaded in `dtype`.

    Left out are those that the class may keep in float32, and buffers: their types are no
    matter of `dtype`.
    """
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = on_meta(cls, config)
    finally:
        torch.set_default_dtype(before)
    kept: set[str] = set()
    for module in model.modules():
        kept |= {*(getattr(module, "_keep_in_fp32_modules", None) or ())}
        kept |= {*(getattr(module, "_keep_in_fp32_modules_strict", None) or ())}
    return {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if kept.isdisjoint(name.split("."))
    }


def module_paths(model: PreTrainedModel) -> ModulePaths:
    """Find the outermost modules of each half of a whole model.

    Raises:
        UnknownFamilyError: the model does not say which part of it is the decoder.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    found = {paths[id(part)] for part in parts if part is not None and id(part) in paths}
    if not found or "" in found:
        problem = f"{type(model).__name__} does not tell its decoder from the rest"
        raise UnknownFamilyError(problem, "`cogcache models` lists what is supported")
    found |= {*getattr(model, "behind_cache_point", ())}
    language = [path for path in found if not _inside(path, found - {path})]
    parents = {"", *(parent for path in language for parent in _parents(path))}
    beside = (
        f"{parent}.{child}".removeprefix(".")
        for parent in sorted(parents)
        for child, _ in model.get_submodule(parent).named_children()
    )
    vision = [path for path in beside if path not in parents and path not in language]
    return ModulePaths(tuple(vision), tuple(sorted(language)))


def partition(checkpoint: Checkpoint, model: PreTrainedModel) -> Partition:
    """Say of every tensor of the checkpoint which half it belongs to.

    Args:
        checkpoint: its index is read, no shard is.
        model: the whole model on meta.

    Raises:
        TensorMismatchError: the checkpoint has a tensor that the model has no place for.
    """
    modules = module_paths(model)
    needless = [*(model._keys_to_ignore_on_load_unexpected or ())]
    parts: dict[str, list[str]] = {"vision": [], "language": [], "shared": [], "dropped": []}
    targets, unexpected = {}, []
    known = model.state_dict()
    for name, target in _targets(checkpoint.weight_map, model, known).items():
        if target in known or _weight_of(target, checkpoint) in known:
            targets[name] = target
            parts[modules.half_of(target) or "shared"].append(name)
        elif any(re.search(pattern, target) for pattern in needless):
            parts["dropped"].append(name)
        else:
            unexpected.append(name)
    if unexpected:
        problem = f"{checkpoint.model} has {len(unexpected)} tensors that {type(model).__name__} "
        hint = "its config.json and its weights may be of different models"
        raise TensorMismatchError(f"{problem}has no place for: {shortened(unexpected)}", hint)
    lists = {part: tuple(names) for part, names in parts.items()}
    return Partition(modules, **lists, targets=targets)


def _weight_of(target: str, checkpoint: Checkpoint) -> str:
    """Return the weight that a tensor is a part of, where the checkpoint is stored quantised."""
    layer, _, part = target.rpartition(".")
    is_part = stored_method(checkpoint) is not None and part in PARTS
    return f"{layer}.weight" if is_part else target


def shortened(names: Iterable[str], most: int = 10) -> str:
    """Join names for a message; at most `most` of them, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _inside(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _targets(
    names: Iterable[str], model: PreTrainedModel, known: Mapping[str, nn.Parameter]
) -> dict[str, str]:
    """Rename checkpoint names as transformers does while loading, in the same order."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix
    targets = {}
    for name in sorted(names, key=dot_natural_key):
        target, _ = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, _ = rename_source_key(name, [], [], prefix, known)
        targets[name] = target
    return targets
