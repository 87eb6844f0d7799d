"""The vision half's blocks through torch.compile, which needs a compiler on the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cogcache.errors import ConfigError
from cogcache.models.halves.sizes import block_paths

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def compile_blocks(model: PreTrainedModel) -> None:
    """Have each block of a vision half compiled when it is first called.

    One block's code serves all of them and batches of any size. That it can be made is tried out
    on a function of one line first: it fails here, and not in the middle of a run.

    Raises:
        ConfigError: nothing can be compiled here, or blocks pass through the device one at a time.
    """
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        problem = "--compile needs all blocks of the vision half in memory at once"
        raise ConfigError(problem, "give more --memory, or leave --compile out")
    check_compiler(str(model.device))
    for path in block_paths(model.named_parameters()):
        model.get_submodule(path).compile(dynamic=True)


def check_compiler(device: str) -> None:
    """Compile one line for a device.

    Raises:
        ConfigError: it cannot be done; says why.
    """
    import torch

    try:
        torch.compile(_one_line, dynamic=True)(torch.ones(2, 64, device=device))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"--compile: torch.compile cannot make code for {device}: {reason}"
        needed = "a C++ compiler such as g++" if device == "cpu" else "Triton and a C compiler"
        raise ConfigError(problem, f"install {needed}, or leave --compile out") from error


def _one_line(values: Tensor) -> Tensor:
    return (values * 2).relu().sum(dim=-1)
