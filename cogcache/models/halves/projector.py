"""The projector by itself: what lies between two cache points of one model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cogcache.errors import ConfigError
from cogcache.models.family import Family
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.halves.partition import ModulePaths

if TYPE_CHECKING:
    import torch

    from cogcache.models.halves.load import LoadedHalf


def load_projector(family: Family, dtype: torch.dtype, device: str) -> LoadedHalf:
    """Load what the language half has before its decoder, and nothing else of the model.

    Args:
        family: at the cache point before the projector.
        dtype: that of the vision half whose features are projected.
        device: where to put it.

    Raises:
        ConfigError: at this cache point the language half has no projector.
        CheckpointError: a shard is missing or cut short.
    """
    whole = WholeModel.of(family.checkpoint, **family.partition_settings())
    behind: tuple[str, ...] = getattr(whole.meta, "behind_cache_point", ())
    if not behind:
        problem = f"{family.name} has no projector behind its cache point {family.cache_point!r}"
        raise ConfigError(problem, "only features from before a projector can be projected")
    return load_half(_without_decoder(whole, behind), "language", dtype=dtype, device=device)


def _without_decoder(whole: WholeModel, behind: tuple[str, ...]) -> WholeModel:
    parts = whole.partition
    others = tuple(path for path in parts.modules.language if path not in behind)
    modules = ModulePaths(parts.modules.vision + others, behind)
    targets = parts.targets
    kept = tuple(name for name in parts.language if modules.half_of(targets[name]) == "language")
    return replace(whole, partition=replace(parts, modules=modules, language=kept, shared=()))
