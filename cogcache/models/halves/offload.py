"""A half of which some parts wait elsewhere and pass through the device one at a time.

Blocks wait in main memory when the half runs on a GPU, on the disk where main memory is full or
the half runs on the CPU. What is no block stays: code that reads a parameter without calling
its module (class token, positions) would meet an empty tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import nn

from cogcache.errors import ConfigError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.partition import Half, ModulePaths
from cogcache.models.halves.sizes import block_paths, embedding_can_wait, is_tied, path_of
from cogcache.models.halves.waiting import (
    HostEmbedding,
    Parked,
    mapped_weight,
    park,
    quantize_block,
    settle,
)
from cogcache.models.quantization.head import quantize_head
from cogcache.models.quantization.layers import Quantization, left_out, linear_layers
from cogcache.models.quantization.verify import Checked, check_block
from cogcache.system import available_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE_OF_MAIN_MEMORY = 0.8
"""What blocks may fill of the main memory that is free; the rest of them waits on the disk."""


@dataclass(frozen=True, slots=True)
class Offload:
    """What of a half waits elsewhere."""

    resident_layers: int | None = None
    """How many blocks stay; None: all."""
    embedding: bool = False
    """Whether the embedding is looked up in main memory, mapped from the checkpoint."""


@dataclass
class Placement:
    """Where each part of a half goes while it is loaded, and what is done to it then.

    Args:
        meta: the whole model on meta.
        modules: which of its modules are of which half.
        half: which half.
        offload: what of it waits.
        device: where it runs.
        quantization: of the language half.
        stored: whether its layers are stored quantised; those that wait are put aside once all
            are read.
    """

    meta: PreTrainedModel
    modules: ModulePaths
    half: Half
    offload: Offload
    device: str
    quantization: Quantization | None = None
    stored: bool = False
    checked: list[Checked] = field(default_factory=list)
    """What was found of the quantised blocks before they were parked."""

    def __post_init__(self) -> None:
        own = [
            (name, parameter)
            for name, parameter in self.meta.named_parameters()
            if self.modules.half_of(name) == self.half
        ]
        self.blocks = block_paths(own)
        resident = self.offload.resident_layers
        self.waiting = [] if resident is None else self.blocks[resident:]
        self.head = self.embedding = ""
        if self.half == "language":
            if self.quantization and self.quantization.head != "none" and not is_tied(self.meta):
                self.head = path_of(self.meta, self.meta.get_output_embeddings())
            if self.offload.embedding:
                self.embedding = self._waiting_embedding()

    def _waiting_embedding(self) -> str:
        if not embedding_can_wait(self.meta):
            problem = f"the embedding of {type(self.meta).__name__} must be where the model runs"
            raise ConfigError(problem, "its output head, or more than the embedding, needs it")
        return path_of(self.meta, self.meta.get_input_embeddings())

    @property
    def moves(self) -> bool:
        """Whether anything is not simply loaded to the device."""
        return bool(self.waiting or self.head or self.embedding)

    @property
    def elsewhere(self) -> list[str]:
        """Paths of what accelerate fetches: empty until then."""
        return [] if self.quantizes else self.waiting

    @property
    def later(self) -> list[str]:
        """Paths of what is not quantised while the half is loaded, but behind that or never."""
        waiting = [] if self.stored else self.waiting
        return [path for path in (*waiting, self.head, self.embedding) if path]

    @property
    def quantizes(self) -> bool:
        """Whether the decoder's layers are quantised."""
        return self.quantization is not None and self.quantization.kind != "none"

    @property
    def quantizes_while_loading(self) -> bool:
        """Whether there are quantised layers among what stays."""
        later = (*(f"{path}." for path in self.waiting), *left_out(self.meta, self.quantization))
        layers = (path for path, _ in linear_layers(self.meta))
        some_stay = self.stored or any(not path.startswith(later) for path in layers)
        return self.quantizes and some_stay

    def device_map(self) -> dict[str, Any]:
        """Return where `from_pretrained` is to put each module and each loose parameter."""
        if not self.moves:
            return {"": self.device}
        place: Any = _place(self.device)
        if self.device == "cpu" and self.quantizes:
            place = torch.device("cpu")  # as a text transformers takes it for a place to wait at
        room = SHARE_OF_MAIN_MEMORY * available_bytes()
        found: dict[str, Any] = {}
        for path in self.blocks:
            found[path] = place
            if path in self.waiting and not self.stored:
                size = sum(p.numel() for p in self.meta.get_submodule(path).parameters()) * 2
                room -= size
                # Quantised blocks are read only to be quantised, then parked in main memory.
                beside = self.device != "cpu" and not self.quantizes and room > 0
                found[path] = "cpu" if beside else "disk"
        found |= dict.fromkeys(self._beside(), place)
        return found | dict.fromkeys(filter(None, (self.head, self.embedding)), "disk")

    def _beside(self) -> list[str]:
        """Return the outermost modules and loose parameters that hold no block."""
        parents = {"", *(p for path in self.blocks for p in _parents(path))}
        parents |= {p for path in (self.head, self.embedding) for p in _parents(path)}
        found = []
        for parent in sorted(parents):
            module = self.meta.get_submodule(parent)
            names = [name for name, _ in module.named_children()]
            names += [name for name, _ in module.named_parameters(recurse=False)]
            names += [name for name, _ in module.named_buffers(recurse=False)]
            paths = (f"{parent}.{name}".removeprefix(".") for name in names)
            found += [path for path in paths if path not in parents and path not in self.blocks]
        other = "vision" if self.half == "language" else "language"
        return [path for path in found if self.modules.half_of(path) != other]

    def arrange(
        self,
        model: PreTrainedModel,
        sources: Mapping[str, str],
        checkpoint: Checkpoint,
        folder: Path,
    ) -> None:
        """Quantise what was left for later, and put aside what waits.

        Args:
            model: the half as it was loaded with this placement's device map.
            sources: parameter name to the name in the checkpoint.
            checkpoint: the originals.
            folder: of the half's own, for blocks that wait in files.
        """
        if self.embedding:
            self._keep_embedding(model)
        if self.quantization and self.quantization.head != "none":
            head = model.get_output_embeddings()
            weight = mapped_weight(head) if self.head else head.weight.detach()
            quantize_head(model, weight, self.quantization, self.device)
        parked = self._parked(model, sources, checkpoint, folder) if self.quantizes else {}
        if self.moves and not self.elsewhere:
            remove_hook_from_module(model, recurse=True)
        for path, hook in parked.items():
            add_hook_to_module(model.get_submodule(path), hook)

    def _keep_embedding(self, model: PreTrainedModel) -> None:
        embedding = model.get_submodule(self.embedding)
        embedding.weight = nn.Parameter(mapped_weight(embedding), requires_grad=False)
        remove_hook_from_module(embedding)
        model.set_submodule(self.embedding, HostEmbedding(embedding.to("cpu"), self.device).eval())

    def _parked(
        self,
        model: PreTrainedModel,
        sources: Mapping[str, str],
        checkpoint: Checkpoint,
        folder: Path,
    ) -> dict[str, Parked]:
        """Quantise, check and put aside one block after the other, so that one is in memory."""
        assert self.quantization is not None
        found = {}
        excluded = left_out(self.meta, self.quantization)
        for path in self.waiting:
            block = model.get_submodule(path)
            inside = {name.removeprefix(f"{path}.") for name in excluded}
            if not self.stored:
                quantize_block(block, inside, self.quantization)
            named = {
                name.removeprefix(f"{path}."): source
                for name, source in sources.items()
                if name.startswith(f"{path}.")
            }
            self.checked.append(check_block(block, self.quantization, named, checkpoint))
            settle(block)
            found[path] = park(block, folder / "parked" / f"{path}.safetensors")
        return found


def _place(device: str) -> int | str:
    """Return a device as accelerate's maps name it."""
    kind, _, number = device.partition(":")
    return int(number or 0) if kind in ("cuda", "xpu") else device


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))] if path else []
