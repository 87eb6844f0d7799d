"""One half of a model: the same transformers class with the other half left out.

A half is filled by `from_pretrained` from a view of the checkpoint that has only its shards,
so all that the library knows (weight conversion, quantisation, device maps) stays in use.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogcache.errors import CheckpointError, QuantizationError, TensorMismatchError
from cogcache.models.checkpoints.bounds import blamed_on
from cogcache.models.checkpoints.checkpoint import Checkpoint, stored_method
from cogcache.models.classes import load_config, model_class
from cogcache.models.halves.offload import Offload, Placement
from cogcache.models.halves.partition import (
    PARTS,
    Half,
    ModulePaths,
    Partition,
    on_meta,
    partition,
    shortened,
)
from cogcache.models.quantization.layers import Quantization, check_int4, loading_config
from cogcache.models.quantization.verify import QuantizationReport, verify
from cogcache.system import Scratch, blocks_given_back, keep_giving_back, raise_if_there

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass
class LoadedHalf:
    """A half in memory, and what was read for it.

    `bytes_by_shard` counts the bytes of the tensors taken from each opened shard.
    """

    model: PreTrainedModel
    half: Half
    partition: Partition
    bytes_by_shard: Mapping[str, int]
    load_s: float
    folder: Path
    """The view; it is there as long as the model, since offloading to disk reads from it."""
    quantization: QuantizationReport | None = None


@dataclass(frozen=True)
class WholeModel:
    """What is known of a model before any weight is read: its class, config and partition."""

    checkpoint: Checkpoint
    cls: type[PreTrainedModel]
    config: Any
    meta: PreTrainedModel
    partition: Partition

    @classmethod
    def of(cls, checkpoint: Checkpoint, **config_overrides: Any) -> WholeModel:
        """Read the config and index of a checkpoint and find its halves."""
        kind = model_class(checkpoint)
        config = load_config(checkpoint, kind, **config_overrides)
        with blamed_on(checkpoint.folder):
            meta = on_meta(kind, config)
            return cls(checkpoint, kind, config, meta, partition(checkpoint, meta))


def half_class(
    cls: type[PreTrainedModel], half: Half, modules: ModulePaths
) -> type[PreTrainedModel]:
    """Return the subclass of `cls`, of the same name, whose other half is None."""
    dropped = modules.language if half == "vision" else modules.vision

    def __init__(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        for path in dropped:
            parent, _, child = path.rpartition(".")
            setattr(self.get_submodule(parent), child, None)
        # Of the tied pairs only those that touch a dropped module may go: without the rest a
        # tied output head would be left random, without a word.
        self.all_tied_weights_keys = {
            target: source
            for target, source in self.all_tied_weights_keys.items()
            if not any(name.startswith(f"{path}.") for path in dropped for name in (target, source))
        }

    attributes = {
        "__init__": __init__,
        "__module__": cls.__module__,
        "_keys_to_ignore_on_load_unexpected": [".*"],  # the other half, in a mixed shard
    }
    return type(cls.__name__, (cls,), attributes)


def load_half(
    model: str | WholeModel,
    half: Half,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    quantization: Quantization | None = None,
    offload: Offload | None = None,
) -> LoadedHalf:
    """Load the vision or the language half of a model and check that it is all there.

    Args:
        model: a folder, a hub id, `tiny`, or a `WholeModel` made from one.
        half: `vision` or `language`.
        dtype: of the weights that are not quantised; bfloat16 by default.
        device: where to put it.
        quantization: how to quantise the decoder's layers; language half only.
        offload: what of it waits elsewhere. What waits on the disk lies in the half's own
            folder, which goes when the model does.

    Raises:
        CheckpointError: a shard is missing or cut short, a tensor is missing or misshapen.
        UnknownFamilyError: the architecture is not one that can be split.
        QuantizationError: what was loaded is not what was asked for.

    Example:
        >>> load_half("tiny", "vision").half  # doctest: +SKIP
        'vision'
    """
    started = time.perf_counter()
    whole = model if isinstance(model, WholeModel) else WholeModel.of(Checkpoint.open(model))
    plan = _plan(whole, half, dtype, device, quantization, offload or Offload())
    loaded, folder = _fill(plan)
    report = _check(plan, loaded)
    read = whole.checkpoint.bytes_by_file(plan.names)
    seconds = time.perf_counter() - started
    logger.info("%s half: %d bytes in %.1f s", half, sum(read.values()), seconds)
    return LoadedHalf(loaded, half, whole.partition, read, seconds, folder, report)


@dataclass(frozen=True)
class _Plan:
    """How a half is going to be loaded; nothing of it is read yet."""

    whole: WholeModel
    placement: Placement
    names: tuple[str, ...]
    """Of its tensors in the checkpoint."""
    dtype: torch.dtype
    options: Mapping[str, Any]
    """Of `from_pretrained`."""

    @property
    def sources(self) -> dict[str, str]:
        """What each parameter is called in the checkpoint."""
        return {self.whole.partition.targets[name]: name for name in self.names}


def _plan(
    whole: WholeModel,
    half: Half,
    dtype: torch.dtype | None,
    device: str,
    quantization: Quantization | None,
    offload: Offload,
) -> _Plan:
    """Decide where each part goes and how it is quantised, and refuse what cannot be."""
    import torch

    dtype = dtype or torch.bfloat16
    if quantization is not None:
        check_int4(whole.meta, quantization, device)
        _prove_int4(quantization, device, offload)
    names = whole.partition.names(half)
    _refuse_parts(whole, half, names)
    whole.checkpoint.tensors(names)
    stored = is_stored(whole, names, str(dtype).removeprefix("torch."), quantization)
    placement = Placement(
        whole.meta, whole.partition.modules, half, offload, device, quantization, stored=stored
    )
    options: dict[str, Any] = {"device_map": placement.device_map()}
    if quantization is not None and placement.quantizes_while_loading:
        settings = loading_config(quantization, whole.meta, placement.later)
        if stored:
            whole = _reading_as_stored(whole, settings)
        else:
            options["quantization_config"] = settings
    return _Plan(whole, placement, names, dtype, options)


def _prove_int4(quantization: Quantization, device: str, offload: Offload) -> None:
    """See that a GPU multiplies int4 weights as it should, before anything is read.

    Raises:
        QuantizationError: it does not; or parts of the half would wait in main memory, where
            weights have another order.
    """
    if not quantization.has_int4 or device.startswith("cpu"):
        return
    from cogcache.models.quantization.int4_products import check_product

    if offload != Offload():
        problem = f"int4 on {device} is for a half that fits there whole"
        raise QuantizationError(problem, "take --quantization nf4, or more --memory")
    check_product(device, quantization.group_size)
    logger.warning("int4 has not been tried on a GPU yet; a small product on %s was right", device)


def _refuse_parts(whole: WholeModel, half: Half, names: Sequence[str]) -> None:
    """Refuse a half whose weights lie quantised in a way that is not ours.

    Raises:
        CheckpointError: such as AWQ's.
    """
    parts = [name for name in names if name.rpartition(".")[2] in PARTS]
    if parts:
        method, model = stored_method(whole.checkpoint), whole.checkpoint.model
        problem = f"the {half} half of {model} is stored in {method}: {shortened(parts, 3)}"
        hint = "name the model that it was made of; --backend vllm reads language halves like it"
        raise CheckpointError(problem, hint)


def _fill(plan: _Plan) -> tuple[PreTrainedModel, Path]:
    """Load a half from a view of the checkpoint; return it and the view's folder."""
    whole, placement = plan.whole, plan.placement
    kind = half_class(whole.cls, placement.half, whole.partition.modules)
    keep_giving_back(placement.moves and placement.device == "cpu")
    with ExitStack() as undo:
        folder = undo.enter_context(closing(Scratch())).path
        whole.checkpoint.view(plan.names, folder)
        options = {**plan.options, "offload_folder": str(folder / "offload")}
        with blocks_given_back(), warnings.catch_warnings():
            # A device map names loose parameters too; accelerate looks for modules only.
            warnings.filterwarnings("ignore", message="The following device_map keys")
            loaded = _from_pretrained(kind, whole, str(folder), plan.dtype, options)
            placement.arrange(loaded, plan.sources, whole.checkpoint, folder)
        weakref.finalize(loaded, undo.pop_all().close)
    return loaded, folder


def _check(plan: _Plan, loaded: PreTrainedModel) -> QuantizationReport | None:
    """Check that a half is all there, and quantised as asked."""
    whole, placement = plan.whole, plan.placement
    check_half(loaded, placement.half, whole.partition.modules, placement.elsewhere)
    if placement.quantization is None:
        return None
    checkpoint, put_aside = whole.checkpoint, placement.checked
    return verify(loaded, placement.quantization, plan.sources, checkpoint, put_aside)


def is_stored(
    whole: WholeModel,
    names: Collection[str],
    dtype: str,
    quantization: Quantization | None = None,
) -> bool:
    """Say whether layers are stored as they are asked for, and only need to be read.

    Raises:
        QuantizationError: they are stored in a form from which that cannot be had.
    """
    asked = quantization if quantization and quantization.kind != "none" else None
    fields = replace(asked, head="none").fields() if asked else {}
    return whole.checkpoint.is_stored_as(names, dtype, fields)


def _reading_as_stored(whole: WholeModel, settings: Any) -> WholeModel:
    """Have layers that are stored quantised read as they are, not quantised once more."""
    from cogcache.models.quantization.stored import stored_config

    config = copy.deepcopy(whole.config)
    config.quantization_config = stored_config(settings)
    return replace(whole, config=config)


def load_whole(model: str | WholeModel, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a model in one piece on the CPU: what the two stages are compared with."""
    import torch

    whole = model if isinstance(model, WholeModel) else WholeModel.of(Checkpoint.open(model))
    folder = str(whole.checkpoint.folder)
    return _from_pretrained(whole.cls, whole, folder, dtype or torch.bfloat16, {})


def check_half(
    model: PreTrainedModel, half: Half, modules: ModulePaths, waiting: Sequence[str] = ()
) -> None:
    """Check that a half holds nothing of the other and that all of it has values.

    Args:
        model: the half.
        half: which it is.
        modules: of both halves.
        waiting: paths of blocks whose values come when they are needed.

    Raises:
        TensorMismatchError: a tensor of the other half is there, or one is left without values.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    foreign = [name for name, _ in tensors if modules.half_of(name) not in (half, None)]
    if foreign:
        raise TensorMismatchError(f"the {half} half holds {shortened(foreign)} of the other")
    empty = [
        name
        for name, tensor in tensors
        if tensor.device.type == "meta" and not name.startswith(tuple(f"{p}." for p in waiting))
    ]
    if empty:
        raise TensorMismatchError(f"the {half} half was left without {shortened(empty)}")


def _from_pretrained(
    cls: type[PreTrainedModel],
    whole: WholeModel,
    folder: str,
    dtype: torch.dtype,
    options: Mapping[str, Any],
) -> PreTrainedModel:
    from transformers.utils import logging as transformers_logging

    # That parameters wait elsewhere is what was asked for.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    hint = f"fetch {whole.checkpoint.model} anew"
    with blamed_on(whole.checkpoint.folder):
        try:
            model, info = cls.from_pretrained(
                folder, config=whole.config, dtype=dtype, output_loading_info=True, **options
            )
        except RuntimeError as error:
            misshapen = _misshapen(whole, Path(folder))
            if not misshapen:
                raise
            problem = (
                f"{whole.checkpoint.model} has {len(misshapen)} tensors of another shape than its"
            )
            hint = "its config.json and its weights may be of different models"
            raise TensorMismatchError(
                f"{problem} config says: {shortened(misshapen)}", hint
            ) from error
        except OSError as error:
            raise_if_there(error, Path(folder))
            raise CheckpointError(f"{whole.checkpoint.model}: {error}", hint) from error
    if missing := info["missing_keys"]:
        names = _names_on_disk(whole, missing)
        problem = f"{whole.checkpoint.model} lacks {len(names)} tensors: {shortened(names)}"
        raise TensorMismatchError(problem, hint)
    return model.eval()


def _names_on_disk(whole: WholeModel, parameters: Collection[str]) -> dict[str, Tensor]:
    """Return what a checkpoint calls parameters of the whole model, with the shapes they have."""
    from transformers.core_model_loading import revert_weight_conversion

    state = {name: each for name, each in whole.meta.state_dict().items() if name in parameters}
    named: dict[str, Tensor] = revert_weight_conversion(whole.meta, state)
    return named


def _misshapen(whole: WholeModel, folder: Path) -> list[str]:
    expected = _names_on_disk(whole, whole.meta.state_dict().keys())
    view = Checkpoint(whole.checkpoint.model, folder)  # other shards may not be there
    described = view.tensors(expected.keys() & view.weight_map.keys())
    return [
        f"{name} {list(info.shape)} in place of {list(expected[name].shape)}"
        for name, info in described.items()
        if info.shape != tuple(expected[name].shape)
    ]
