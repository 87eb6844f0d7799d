"""Where a half runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cogcache.errors import ConfigError
from cogcache.system.free_memory import available_bytes


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


def check_devices(names: Sequence[str]) -> None:
    """Check that devices exist, before workers are started on them.

    Raises:
        ConfigError: one of them is not.
    """
    import torch

    for name in names:
        device = torch.device(pick_device(name))
        count = torch.accelerator.device_count() if device.type != "cpu" else 1
        if device.type != "cpu" and (device.index or 0) >= count:
            problem = f"there is no {name}: {count} devices of this kind are here, from 0 on"
            raise ConfigError(problem, "`cogcache doctor` lists what there is")


def free_bytes(device: str) -> int:
    """Return the free memory of a GPU; of the CPU, what this process can still allocate. Bytes."""
    import torch

    if device.startswith("cpu"):
        return available_bytes()
    if device.startswith("mps"):  # its memory is the machine's; Metal says how much it may use
        return int(torch.mps.recommended_max_memory())
    return int(torch.accelerator.get_memory_info(device)[0])


def accelerator_in_use() -> bool:
    """Say whether this process has begun to use a GPU; never loads torch or a driver to tell."""
    torch = sys.modules.get("torch")
    # Absent, or another thread is importing it: parts of it are there already.
    if (
        torch is None
        or not hasattr(torch, "accelerator")
        or not hasattr(torch, "get_device_module")
    ):
        return False
    device = torch.accelerator.current_accelerator()
    if device is None:
        return False
    return bool(getattr(torch.get_device_module(device), "is_initialized", bool)())
