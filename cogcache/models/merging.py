"""An adapter merged into the 16-bit weights of its model: a checkpoint that needs no adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.errors import ConfigError, QuantizationError
from cogcache.models.adapters import Adapter, merge, put_on
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.checkpoints.tensor_files import sha256_of
from cogcache.models.family import Family
from cogcache.models.halves.identity import identify
from cogcache.models.halves.load import WholeModel, load_half
from cogcache.models.quantization.layers import Quantization
from cogcache.models.registry import family_of
from cogcache.models.rewritten import named_as_stored, write_with_language
from cogcache.settings import Settings
from cogcache.system import make_folder, put_right, sync_folder, temporary_name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_PROBE = "Please describe this video in detail."


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was written, and what quantising it again would cost."""

    folder: Path
    num_changed: int
    merged_divergence: float
    """Of the merged half in 4 bits from the merged half: KL in nats, the mean over a prompt."""
    beside_divergence: float
    """The same of the adapter beside 4-bit weights."""

    def lines(self) -> list[str]:
        """Return what a reader wants to know."""
        return [
            f"{self.folder}: {self.num_changed} weights changed by the adapter",
            f"  quantised to nf4 again, its logits move by {self.merged_divergence:.4f} nats; with "
            f"the adapter beside nf4 weights, by {self.beside_divergence:.4f}",
        ]


def merge_adapter(model: str, out: Path, settings: Settings) -> MergeReport:
    """Write a model whose language half has an adapter merged into it, in 16 bits.

    Args:
        model: a folder, a hub id, or `tiny`.
        out: the folder to be; there must be none, or an empty one.
        settings: the adapter; no quantisation.

    Raises:
        ConfigError: the folder is there already, or the adapter is of another model.
        QuantizationError: 4 or 8 bits are asked for: rounded weights would be rounded once more.
    """
    import torch

    language = settings.language
    if language.quantization != "none":
        problem = f"an adapter is merged into 16 bits, not into {language.quantization}"
        raise QuantizationError(problem, "give --quantization none; `caption` quantises it anew")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is there already", "give a folder that is not there")
    adapter = Adapter.open(str(language.adapter))
    family = family_of(Checkpoint.open(model, settings.revision))
    family = family.at(adapter.cache_point or family.cache_point)
    adapter.check_base(identify(family, "language", _Nothing()).digest)
    whole = _whole(family.checkpoint, family)
    half = load_half(whole, "language", dtype=torch.bfloat16).model
    put_on(half, adapter)
    changed = merge(half)
    target = out.absolute()
    make_folder(target.parent)
    put_right(target)
    partial = temporary_name(target)
    try:
        made_from = {"model": model, "adapter": adapter.digest}
        write_with_language(whole, partial, named_as_stored(whole, half), made_from=made_from)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(target.parent)
    wanted = _log_probabilities(half, family)
    merged = _whole(Checkpoint.open(str(out)), family)
    again = load_half(merged, "language", quantization=Quantization()).model
    beside = load_half(whole, "language", quantization=Quantization()).model
    put_on(beside, adapter)
    found = [_divergence(wanted, _log_probabilities(each, family)) for each in (again, beside)]
    return MergeReport(out, changed, *found)


def _whole(checkpoint: Checkpoint, family: Family) -> WholeModel:
    """Return a model with its halves where the family's cache point parts them."""
    return WholeModel.of(checkpoint, **family.partition_settings())


def _log_probabilities(model: PreTrainedModel, family: Family) -> Tensor:
    """Return what a half makes of a prompt about no clip. float32 [L, V]."""
    import torch

    row = family.text_row(_PROBE, family.layout(Settings().language))
    inputs = family.model_inputs([row], model)
    with torch.inference_mode():
        return torch.log_softmax(model(**inputs, use_cache=False).logits[0].float(), dim=-1)


def _divergence(wanted: Tensor, found: Tensor) -> float:
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


class _Nothing:
    """Remembers no digest from one run to the next."""

    def recall(self, name: str) -> Mapping[str, Any] | None:
        return None

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Let it go."""

    def digest_of(self, path: Path) -> str:
        return sha256_of(path)
