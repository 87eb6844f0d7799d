"""Where a half runs."""

from __future__ import annotations

from cogcache.errors import ConfigError


def pick_device(device: str) -> str:
    """Return the torch device for a setting; `auto` is the first GPU, else the CPU.

    Raises:
        ConfigError: the device is not there.
    """
    import torch

    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if found is None else str(found)
    kind = torch.device(device).type
    available = torch.accelerator.current_accelerator(check_available=True)
    if kind != "cpu" and (available is None or available.type != kind):
        raise ConfigError(f"there is no {kind} device here", "use --device auto or --device cpu")
    return device


def sees_gpu() -> bool:
    """Say whether `auto` would pick a GPU."""
    return pick_device("auto") != "cpu"
