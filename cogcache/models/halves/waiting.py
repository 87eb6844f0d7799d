"""What of a half waits elsewhere, and is fetched for the time of its pass.

Blocks that are not quantised are accelerate's to move: it reads them from the checkpoint. Blocks
in 4 or 8 bits are made while loading, so they are parked here: in main memory beside a GPU, in a
file where there is no room for them or no GPU. The embedding is looked up where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import ModelHook, remove_hook_from_module
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cogcache.models.quantization.int4 import Int4Linear
from cogcache.models.quantization.layers import Quantization, linear_layers, quantized_linear
from cogcache.system import available_bytes

Slot = tuple[Any, str]
"""An object and its attribute that holds a tensor."""
Fetch = Callable[[], Mapping[str, Tensor]]


class HostEmbedding(nn.Module):
    """An embedding that stays in main memory, mapped from its file; only the rows asked for move.

    Args:
        embedding: in main memory.
        device: where the model runs.
    """

    def __init__(self, embedding: nn.Embedding, device: str) -> None:
        super().__init__()
        self._kept = [embedding]  # in a list, so that it is no submodule
        # A model is where its first parameter is, and that of a waiting block is nowhere.
        nothing = torch.empty(0, dtype=embedding.weight.dtype, device=device)
        self.place = nn.Parameter(nothing, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The table. Shape [vocabulary, hidden]."""
        return self._kept[0].weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of token ids, on the device of these."""
        rows: Tensor = self._kept[0](ids.to("cpu"))
        return rows.to(ids.device)


class Parked(ModelHook):  # type: ignore[misc]
    """Fetches a block's tensors before its pass and lets go of them behind it."""

    def __init__(self, slots: Mapping[str, Slot], fetch: Fetch) -> None:
        self.slots, self.fetch = slots, fetch
        self.empty = {
            name: torch.empty(0, dtype=(held := getattr(*slot)).dtype, device=held.device)
            for name, slot in slots.items()
        }

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Put the tensors where the block looks for them."""
        self._put(self.fetch())
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Let go of them."""
        self._put(self.empty)
        return output

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, (holder, attribute) in self.slots.items():
            setattr(holder, attribute, tensors[name])


def mapped_weight(module: nn.Module) -> Tensor:
    """Return the weight of a module that accelerate has on the disk, mapped from its file."""
    weights: Any = module._hf_hook.weights_map  # type: ignore[union-attr]
    kept, weights.dataset.device = weights.dataset.device, "cpu"
    try:
        weight: Tensor = weights["weight"]
    finally:
        weights.dataset.device = kept
    return weight.to(module.weight.dtype)  # type: ignore[arg-type]


def quantize_block(block: nn.Module, excluded: set[str], quantization: Quantization) -> None:
    """Take a waiting block over from accelerate and quantise its layers.

    Args:
        block: whose weights accelerate would fetch, to where the half runs.
        excluded: paths within it of the layers that stay as they are.
        quantization: how to store the others.
    """
    for module in block.modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None and hook.offload:
            # safetensors takes the name of a device only.
            hook.weights_map.dataset.device = str(hook.execution_device)
            hook.pre_forward(module)
    remove_hook_from_module(block, recurse=True)
    for path, layer in linear_layers(block):
        if path not in excluded:
            weight = layer.weight.detach()
            block.set_submodule(
                path, quantized_linear(weight, layer.bias, quantization, weight.device)
            )


def settle(module: nn.Module) -> None:
    """Have quantised layers lay their weights out for the CPU now, one after the other.

    They would at their first product, in some seven bytes a weight, while the activations of a
    first prefill are in memory too. Off the CPU nothing is to be done.
    """
    with torch.no_grad():
        for _, layer in linear_layers(module):
            if isinstance(layer, Int4Linear) and layer.weight.numel():
                layer.lay_out()
            quantized = hasattr(layer.weight, "quant_state") or hasattr(layer, "state")
            if quantized and layer.weight.device.type == "cpu" and layer.weight.numel():
                layer(torch.zeros(1, layer.in_features, dtype=torch.bfloat16))


def park(block: nn.Module, file: Path) -> Parked:
    """Put a block's tensors aside; the hook returned brings them back, once it is added.

    Args:
        block: on the device where it runs.
        file: to write them to where main memory is not the place for them.
    """
    slots = _slots(block)
    tensors = {name: getattr(*slot).detach() for name, slot in slots.items()}
    device = next(iter(tensors.values())).device
    size = sum(tensor.nbytes for tensor in tensors.values())
    hook: Parked
    if device.type != "cpu" and available_bytes() > 4 * size:
        hook = Parked(slots, _in_main_memory(tensors, device))
    else:
        hook = Parked(slots, _in_file(tensors, device, file))
    hook.post_forward(block, None)
    return hook


def _slots(block: nn.Module) -> dict[str, Slot]:
    """Name every place in a block that holds a tensor of weight."""
    slots: dict[str, Slot] = {}
    for path, module in block.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            slots[f"{path}.{name}"] = (parameter, "data")
        if getattr(state := getattr(module, "state", None), "CB", None) is not None:
            slots[f"{path}.CB"] = (state, "CB")
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        while state is not None:
            slots[f"{path}.absmax.{len(slots)}"] = (state, "absmax")
            state = getattr(state, "state2", None)
    return slots


def _in_main_memory(tensors: Mapping[str, Tensor], device: torch.device) -> Fetch:
    kept = {name: tensor.to("cpu") for name, tensor in tensors.items()}
    return lambda: {name: tensor.to(device) for name, tensor in kept.items()}


def _in_file(tensors: Mapping[str, Tensor], device: torch.device, file: Path) -> Fetch:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Cloned: a tensor must not be in the file twice, and int8 layers hold theirs under two names.
    names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    distinct = {name: tensors[name].contiguous() for name in names.values()}
    save_file(distinct, file)
    source = {name: names[tensor.data_ptr()] for name, tensor in tensors.items()}

    def fetch() -> Mapping[str, Tensor]:
        with safe_open(file, framework="pt") as opened:
            found = {name: opened.get_tensor(name).to(device) for name in distinct}
        return {name: found[held] for name, held in source.items()}

    return fetch
