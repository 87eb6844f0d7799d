"""The proof that a loaded language half is quantised as asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cogcache.errors import QuantizationError
from cogcache.models.quantization.layers import (
    Kind,
    Quantization,
    kind_of,
    left_out,
    linear_layers,
    quantized_bytes,
)
from cogcache.models.quantization.weight_errors import comparable, sampled_error, worst_error
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from cogcache.models.checkpoints.checkpoint import Checkpoint

ERROR_BOUND = {"nf4": 0.16, "fp4": 0.22, "int8": 0.05, "int4": 0.18}
"""Largest relative (Frobenius) error of a sampled weight. Gaussian weights give 0.09 in nf4,
0.12 to 0.13 in fp4, 0.01 in int8, and in int4 0.07 to 0.10 for groups of 32 to 256; heavy tails
give more, a wrong weight gives above 1."""
BYTES_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What was found in memory after loading."""

    kind: Kind
    num_quantized: int
    num_linears: int
    left_out: tuple[str, ...]
    share: float
    """Part of the decoder's matrix weights that is really quantised, 0 to 1."""
    memory_bytes: int
    source_bytes: int
    worst_error: float
    """Largest relative error of the sampled weights."""
    head: Kind = "none"

    def summary(self) -> str:
        """Return the report as one line."""
        head = f", output head in {self.head}" if self.head != "none" else ""
        if self.kind == "none":
            return f"language half not quantised{head}, {format_bytes(self.memory_bytes)}"
        left_out = f", left out: {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{self.kind}: {self.num_quantized} of {self.num_linears} linear layers, "
            f"{self.share:.1%} of the decoder's weights, {format_bytes(self.memory_bytes)} "
            f"of {format_bytes(self.source_bytes)}, weight error {self.worst_error:.3f}"
            f"{head}{left_out}"
        )


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of one quantised block before it was put aside."""

    memory_bytes: int
    expected_bytes: float
    worst_error: float


def check_block(
    block: nn.Module,
    quantization: Quantization,
    sources: Mapping[str, str],
    checkpoint: Checkpoint,
) -> Checked:
    """Weigh one block and compare one of its quantised weights with the original.

    Args:
        block: of the language half.
        quantization: what was asked for.
        sources: parameter name within the block to the name in the checkpoint.
        checkpoint: the originals.
    """
    done = [path for path, module in linear_layers(block) if kind_of(module) != "none"]
    names = comparable(block, done, sources, checkpoint)[:1]
    error = worst_error(block, names, sources, checkpoint)
    expected = _expected_bytes(block, lambda _: quantization)
    return Checked(_memory_bytes(block), expected, error)


def verify(
    model: PreTrainedModel,
    quantization: Quantization,
    sources: Mapping[str, str],
    checkpoint: Checkpoint,
    put_aside: Sequence[Checked] = (),
) -> QuantizationReport:
    """Check that a loaded language half is quantised as asked, and say how much of it is.

    Args:
        model: the language half.
        quantization: what was asked for.
        sources: parameter name to the name in the checkpoint, where they are the same tensor.
        checkpoint: the originals, for a sample of weights.
        put_aside: what was found of blocks that wait elsewhere and are empty by now.

    Raises:
        QuantizationError: a layer is not quantised though it should be, or is though it should
            not; or the bytes in memory or a weight's error are out of bounds; or the modules
            are in training mode, where the CPU product takes its slow way.
    """
    excluded = set(left_out(model, quantization))
    asked_of = _asked(model, quantization, excluded)
    _check_layers(model, quantization, asked_of)
    memory_bytes = _checked_bytes(model, asked_of, put_aside)
    done = [path for path, module in linear_layers(model) if kind_of(module) != "none"]
    some_must_be = quantization.kind != "none" and not put_aside
    worst = max(
        sampled_error(model, done, sources, checkpoint, some_must_be),
        *(block.worst_error for block in put_aside),
        0.0,
    )
    _check_error(worst, quantization)
    return QuantizationReport(
        kind=quantization.kind,
        num_quantized=len(done),
        num_linears=len(linear_layers(model)),
        left_out=tuple(path for path in sorted(excluded) if asked_of(path).kind == "none"),
        share=_share(model),
        memory_bytes=memory_bytes,
        source_bytes=sum(i.num_bytes for i in checkpoint.tensors(set(sources.values())).values()),
        worst_error=worst,
        head=quantization.head,
    )


Asked = Callable[[str], Quantization]
"""What was asked for of a layer, by its path."""


def _check_layers(model: PreTrainedModel, quantization: Quantization, asked_of: Asked) -> None:
    """See that each layer is stored as asked, and takes its fast way."""
    linears = linear_layers(model)
    wrong = [path for path, module in linears if not _is_stored_as(module, asked_of(path))]
    if wrong:
        problem = f"asked for {quantization.kind}, but {len(wrong)} layers differ: {wrong[:5]}"
        raise QuantizationError(problem, "use --quantization none, or report the model")
    if any(module.training for module in model.modules()):
        raise QuantizationError("modules are in training mode", "call eval() on the model")


def _checked_bytes(model: PreTrainedModel, asked_of: Asked, put_aside: Sequence[Checked]) -> int:
    """Return the bytes in memory, once they are seen to be those that are expected."""
    actual = _memory_bytes(model) + sum(block.memory_bytes for block in put_aside)
    expected = _expected_bytes(model, asked_of) + sum(each.expected_bytes for each in put_aside)
    if abs(actual - expected) > BYTES_TOLERANCE * expected:
        problem = f"{format_bytes(actual)} in memory where {format_bytes(expected)} were expected"
        raise QuantizationError(problem, "the weights are not of the precision asked for")
    return actual


def _check_error(worst: float, quantization: Quantization) -> None:
    kinds = {quantization.kind, quantization.head}
    bound = max((ERROR_BOUND[kind] for kind in kinds if kind in ERROR_BOUND), default=1.0)
    if worst > bound:
        problem = f"a weight's relative error is {worst:.2f} in {quantization.kind}"
        raise QuantizationError(problem, "these weights do not suit it; try --quantization int8")


def _asked(model: PreTrainedModel, quantization: Quantization, excluded: Set[str]) -> Asked:
    """Return what was asked for of a layer, by its path."""
    head = model.get_output_embeddings()
    inside = {id(module) for module in head.modules()} if head is not None else set()
    of_head = {path for path, module in linear_layers(model) if id(module) in inside}

    def asked_of(path: str) -> Quantization:
        if path in of_head:
            return quantization.of_head
        return replace(quantization, kind="none") if path in excluded else quantization

    return asked_of


def _is_stored_as(module: Any, quantization: Quantization) -> bool:
    if kind_of(module) != quantization.kind:
        return False
    if quantization.kind == "int4":
        return bool(module.group_size == quantization.group_size)
    if quantization.kind in ("int8", "none"):
        return True
    state = module.weight.quant_state  # laid out for the CPU, its scales are not nested any more
    is_double = getattr(state, "original_nested", state.nested) == quantization.double_quant
    return is_double and str(module.compute_dtype) == f"torch.{quantization.compute_dtype}"


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor in memory, the scales of quantised weights included.

    Of layers that were put aside small tables stay; they were counted with their block.
    """
    from torch import Tensor

    yield from model.parameters()
    yield from model.buffers()
    for _, module in linear_layers(model):
        if not module.weight.numel():
            continue
        state = getattr(module.weight, "quant_state", None)
        while state is not None:
            yield from (value for value in vars(state).values() if isinstance(value, Tensor))
            state = getattr(state, "state2", None)
        scales = getattr(module.weight, "SCB", None)
        if scales is not None:
            yield scales


def _memory_bytes(model: nn.Module) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(model)}
    return sum(storage.nbytes() for storage in storages.values())


def _expected_bytes(model: nn.Module, asked_of: Asked) -> float:
    """Add up what a model takes; layers that were put aside count nothing."""
    linears = {path: m for path, m in linear_layers(model) if kind_of(m) != "none"}
    rest = {
        t.data_ptr(): t.numel() * t.element_size()
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if name.rpartition(".")[0] not in linears or name.endswith("bias")
    }
    return sum(rest.values()) + sum(
        quantized_bytes(layer.out_features, layer.in_features, asked_of(path))
        for path, layer in linears.items()
        if layer.weight.numel()
    )


def _share(model: PreTrainedModel) -> float:
    """Part of the decoder's matrices, embeddings apart, that is quantised."""
    from torch import nn

    quantized = total = 0
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for _, module in linear_layers(model.get_decoder()):
        count = module.in_features * module.out_features
        total += count
        quantized += count if kind_of(module) != "none" else 0
        embeddings |= {id(each) for each in module.parameters()}
    others = (p for p in model.get_decoder().parameters() if id(p) not in embeddings)
    total += sum(p.numel() for p in others if p.ndim > 1)
    return quantized / total if total else 0.0
