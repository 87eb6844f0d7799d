"""A half of which some blocks wait elsewhere and pass through the device one at a time.

The moving is accelerate's. Blocks wait on the CPU when the half runs on a GPU, and on the disk
when it runs on the CPU. Everything that is not a block stays: code that reads a parameter
without calling its module (class token, positions) would meet an empty tensor.
"""

from __future__ import annotations

from typing import Any

from cogcache.models.halves import WholeModel, half_class
from cogcache.models.partition import Half, on_meta
from cogcache.models.sizes import block_paths


def offload_options(
    whole: WholeModel, half: Half, resident_layers: int, device: str
) -> dict[str, Any]:
    """Return what `load_half` must be given so that only the first blocks stay on `device`.

    Args:
        whole: the model.
        half: which half of it.
        resident_layers: how many blocks stay.
        device: where the half runs.
    """
    model = on_meta(half_class(whole.cls, half, whole.partition.modules), whole.config)
    blocks = block_paths(model)
    place: int | str = device if device == "cpu" else int(device.partition(":")[2] or 0)
    waiting = "disk" if device == "cpu" else "cpu"
    device_map: dict[str, int | str] = {
        path: place if number < resident_layers else waiting for number, path in enumerate(blocks)
    }
    device_map |= dict.fromkeys(_beside(model, set(blocks)), place)
    return {"device_map": device_map}


def _beside(model: Any, blocks: set[str]) -> list[str]:
    """Return the outermost modules and loose parameters that hold no block."""
    parents = {".".join(path.split(".")[:n]) for path in blocks for n in range(path.count(".") + 1)}
    parents.add("")
    found = []
    for parent in sorted(parents):
        module = model.get_submodule(parent)
        names = [name for name, _ in module.named_children()]
        names += [name for name, _ in module.named_parameters(recurse=False)]
        names += [name for name, _ in module.named_buffers(recurse=False)]
        paths = (f"{parent}.{name}".removeprefix(".") for name in names)
        found += [path for path in paths if path not in parents and path not in blocks]
    return found
