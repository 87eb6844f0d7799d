"""Adapters: small matrices beside a language half's layers, as `cogcache train` writes them.

The folder is one that peft reads too, onto the whole model: names are those that the layers have
there. Nothing is silently left out: a missing or unexpected tensor is an error, and so is an
adapter that changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cogcache.errors import (
    CheckpointError,
    ConfigError,
    QuantizationError,
    TensorMismatchError,
)
from cogcache.keys import digest
from cogcache.models.checkpoints.headers import read_header
from cogcache.models.halves.identity import HalfIdentity

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
RECORD: Final = "cogcache-training.json"
"""What the adapter was trained on and with."""
PREFIX: Final = "base_model.model."
"""What peft puts before the path of a layer."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, read as far as keys and plans need it."""

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    digest: str
    """SHA-256 over what it computes with."""
    num_bytes: int
    """Of its tensors."""

    @classmethod
    def open(cls, folder: str | Path) -> Adapter:
        """Read an adapter's small files, and digest its weights.

        Raises:
            ConfigError: the folder holds none.
            CheckpointError: a file of it cannot be read.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                problem = f"{folder} is no adapter: it has no {name}"
                raise ConfigError(problem, "give the folder that `cogcache train` wrote")
        config, record = _read_json(folder / CONFIG), _read_json(folder / RECORD)
        if config.get("peft_type") != "LORA":
            problem = f"{folder / CONFIG} is of the kind {config.get('peft_type')}, not LORA"
            raise CheckpointError(problem, "only LoRA adapters can be used")
        weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        settings = json.dumps({name: config.get(name) for name in _COMPUTED}, sort_keys=True)
        num_bytes = sum(info.num_bytes for info in read_header(folder / WEIGHTS).values())
        return cls(folder, config, record, digest({"w": weights, "c": settings}), num_bytes)

    @property
    def name(self) -> str:
        """Its name in listings, after the model's name."""
        return f"{self.folder.resolve().name}@{self.digest[:8]}"

    @property
    def cache_point(self) -> str | None:
        """Of the features that it was trained on: what lies behind it is its language half."""
        settings = self.record.get("settings")
        found = settings.get("cache_point") if isinstance(settings, Mapping) else None
        return found if isinstance(found, str) else None

    def check_base(self, language_digest: str) -> None:
        """Refuse a language half other than the one that it was trained on.

        Raises:
            ConfigError: it is another one.
        """
        trained_on = self.record.get("language_digest", language_digest)
        if trained_on != language_digest:
            problem = (
                f"{self.folder} was trained on {self.record.get('model')}, whose language half"
            )
            problem += f" has the digest {str(trained_on)[:12]}, not {language_digest[:12]}"
            raise ConfigError(problem, "give the model that it was trained on")

    def of(self, identity: HalfIdentity) -> HalfIdentity:
        """Return what a language half with this adapter is, for keys."""
        both = digest({"language_digest": identity.digest, "adapter": self.digest})
        return replace(identity, digest=both)


_COMPUTED: Final = ("r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "use_dora")
"""What of an adapter's config says what is computed; the rest is for training."""


def model_name(model: str, adapter: str | None) -> str:
    """Return the name that captions of a model with an adapter are listed by."""
    if adapter is None:
        return model
    stat = (Path(adapter) / WEIGHTS).stat()
    return f"{model}+{_name(adapter, stat.st_mtime_ns, stat.st_size)}"


@lru_cache
def _name(adapter: str, mtime_ns: int, size_bytes: int) -> str:
    """Return an adapter's name; it is asked for with every caption, and the digest takes long."""
    return Adapter.open(adapter).name


def with_adapter(identity: HalfIdentity, adapter: str | None) -> HalfIdentity:
    """Return the identity of a language half, with the adapter of a folder if there is one.

    Raises:
        ConfigError: there is no adapter in the folder, or it is of another half.
    """
    if adapter is None:
        return identity
    opened = Adapter.open(adapter)
    opened.check_base(identity.digest)
    return opened.of(identity)


def adapter_bytes(adapter: str | None) -> int:
    """Return what an adapter takes in memory."""
    return Adapter.open(adapter).num_bytes if adapter else 0


def put_on(model: PreTrainedModel, adapter: Adapter, *, trainable: bool = False) -> None:
    """Put an adapter onto a language half, or onto a whole model; the layers themselves stay.

    Args:
        model: is changed in place.
        adapter: what was trained.
        trainable: whether it goes on being trained.

    Raises:
        TensorMismatchError: a tensor is missing, unexpected or misshapen, or nothing changes.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from safetensors.torch import load_file

    config = LoraConfig.from_pretrained(str(adapter.folder))
    config.inference_mode = not trainable
    if not trainable:
        config.lora_dropout = 0.0
    inject_adapter_in_model(config, model)
    stored = load_file(adapter.folder / WEIGHTS)
    load_into(model, stored, str(adapter.folder / WEIGHTS))
    if not any(bool(t.any()) for name, t in stored.items() if ".lora_B." in name):
        problem = f"{adapter.folder} changes nothing: all its second matrices are zero"
        raise TensorMismatchError(problem, "train it; this one has not learnt a thing")
    if not trainable:
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    _check_changes(model, torch)


def merge(model: PreTrainedModel) -> int:
    """Add an adapter on a half to its weights, and take it off; return how many were changed.

    Raises:
        QuantizationError: a layer is quantised: its rounded weights would be rounded once more.
        TensorMismatchError: no weight is changed by it.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    changed = 0
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        base: Any = layer.get_base_layer()
        if not base.weight.is_floating_point():
            problem = f"{path} is quantised: what was learnt can be merged into 16 bits only"
            raise QuantizationError(problem, "give --quantization none")
        before = base.weight.detach().clone()
        layer.merge(safe_merge=True)
        changed += not torch.equal(before, base.weight)
        model.set_submodule(path, base)
    if not changed:
        raise TensorMismatchError("merging the adapter changes no weight", "train it for longer")
    return changed


def load_into(model: Any, stored: Mapping[str, Tensor], source: str) -> None:
    """Fill a model's LoRA matrices from an adapter's tensors, in the type these have.

    Raises:
        TensorMismatchError: a tensor is missing, unexpected or misshapen.
    """
    named = {_in_memory(name): tensor for name, tensor in stored.items()}
    wanted = lora_parameters(model)
    if absent := sorted(wanted.keys() ^ named.keys()):
        problem = f"{source} and the model differ in {len(absent)} tensors, such as {absent[0]}"
        raise TensorMismatchError(problem, "give the model that the adapter was trained on")
    for name, parameter in wanted.items():
        if parameter.shape != named[name].shape:
            shapes = f"{list(named[name].shape)} in place of {list(parameter.shape)}"
            raise TensorMismatchError(
                f"{source}: {name} is {shapes}", "the file is of another model"
            )
        parameter.data = named[name].to(parameter.device)


def lora_parameters(model: Any) -> dict[str, Any]:
    """Return a model's LoRA matrices by their paths, without what peft puts before these."""
    return {
        name.removeprefix(PREFIX): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


def lora_state(model: Any) -> dict[str, Tensor]:
    """Return a model's LoRA matrices under the names that peft stores them by."""
    return {
        PREFIX + name.replace(".default.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in lora_parameters(model).items()
    }


def _in_memory(name: str) -> str:
    for matrix in ("lora_A", "lora_B"):
        name = name.replace(f".{matrix}.weight", f".{matrix}.default.weight")
    return name.removeprefix(PREFIX)


def _check_changes(model: PreTrainedModel, torch: Any) -> None:
    """Check that the adapter changes the model's logits."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    ids = torch.tensor([[model.config.get_text_config(decoder=True).bos_token_id or 0]])
    with torch.no_grad():
        with_it = model(input_ids=ids.to(model.device), use_cache=False).logits
        for layer in layers:
            layer.enable_adapters(False)
        without = model(input_ids=ids.to(model.device), use_cache=False).logits
        for layer in layers:
            layer.enable_adapters(True)
    if torch.equal(with_it, without):
        problem = "the model gives the same logits with the adapter as without it"
        raise TensorMismatchError(problem, "the adapter does not fit this model; train it anew")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", "train the adapter anew"
        ) from error
    return content if isinstance(content, dict) else {}
