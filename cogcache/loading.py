"""Loads a half so that it keeps within the memory it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cogcache.budget import VisionChoice, choose_vision, usable_bytes
from cogcache.config import Settings
from cogcache.devices import free_bytes, pick_device
from cogcache.errors import ConfigError
from cogcache.memory import sample
from cogcache.models.family import Family
from cogcache.models.halves import LoadedHalf, WholeModel, load_half
from cogcache.models.offload import offload_options
from cogcache.models.sizes import half_sizes
from cogcache.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    import torch


def load_vision(
    whole: WholeModel, family: Family, settings: Settings
) -> tuple[LoadedHalf, VisionChoice]:
    """Load the vision half, with some of its blocks elsewhere where not all of them fit.

    Returns:
        The half, and how it is to be run.

    Raises:
        ConfigError: not even one block with one frame fits.
    """
    device = pick_device(settings.device)
    given = memory_for(settings, device)
    usable = usable_bytes(given, on_device=device != "cpu")
    sizes = half_sizes(whole.checkpoint, whole.partition, "vision")
    choice = choose_vision(sizes, family.full_config(), settings, usable)
    if not choice.fits:
        problem = f"stage one does not fit {format_bytes(given)}: {choice.reason}"
        raise ConfigError(problem, "`cogcache plan` says what fits; give more with --memory")
    if choice.resident_layers == choice.num_layers:
        return load_half(whole, "vision", dtype=_dtype(settings), device=device), choice
    options = offload_options(whole, "vision", choice.resident_layers, device)
    return load_half(whole, "vision", dtype=_dtype(settings), device=device, **options), choice


def memory_for(settings: Settings, device: str) -> int:
    """Return the memory that a stage may fill from now on, in bytes.

    On the CPU a given size is that of the whole process, so what its libraries already hold is
    taken off; `auto` takes what is free.
    """
    if settings.memory == "auto":
        return free_bytes(device)
    given = parse_bytes(settings.memory)
    return given - sample().host_bytes if device == "cpu" else given


def _dtype(settings: Settings) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, settings.vision.vision_dtype)
    return dtype
