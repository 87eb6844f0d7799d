"""The proof that a loaded language half is quantised as asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cogcache.errors import QuantizationError
from cogcache.quantization import (
    Kind,
    Quantization,
    dequantized,
    kind_of,
    left_out,
    linear_layers,
    quantized_bytes,
)
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cogcache.checkpoint import Checkpoint

ERROR_BOUND = {"nf4": 0.16, "fp4": 0.22, "int8": 0.05}
"""Largest relative (Frobenius) error of a sampled weight. Gaussian weights give 0.09 in nf4,
0.12 to 0.13 in fp4 and 0.01 in int8; heavy tails give more, a wrong weight gives above 1."""
BYTES_TOLERANCE = 0.02
SAMPLED_LAYERS = 4


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

    def summary(self) -> str:
        """Return the report as one line."""
        if self.kind == "none":
            return f"language half not quantised, {format_bytes(self.memory_bytes)}"
        left_out = f", left out: {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{self.kind}: {self.num_quantized} of {self.num_linears} linear layers, "
            f"{self.share:.1%} of the decoder's weights, {format_bytes(self.memory_bytes)} "
            f"of {format_bytes(self.source_bytes)}, weight error {self.worst_error:.3f}{left_out}"
        )


def verify(
    model: PreTrainedModel,
    quantization: Quantization,
    sources: Mapping[str, str],
    checkpoint: Checkpoint,
) -> QuantizationReport:
    """Check that a loaded language half is quantised as asked, and say how much of it is.

    Args:
        model: the language half.
        quantization: what was asked for.
        sources: parameter name to the name in the checkpoint, where they are the same tensor.
        checkpoint: the originals, for a sample of weights.

    Raises:
        QuantizationError: a layer is not quantised though it should be, or is though it should
            not; or the bytes in memory or a weight's error are out of bounds; or the modules
            are in training mode, where the CPU product takes its slow way.
    """
    excluded, linears = set(left_out(model)), linear_layers(model)
    plain = replace(quantization, kind="none")
    wrong = [
        path
        for path, module in linears
        if not _is_stored_as(module, plain if path in excluded else quantization)
    ]
    if wrong:
        problem = f"asked for {quantization.kind}, but {len(wrong)} layers differ: {wrong[:5]}"
        raise QuantizationError(problem, "use --quantization none, or report the model")
    if any(module.training for module in model.modules()):
        raise QuantizationError("modules are in training mode", "call eval() on the model")
    actual, expected = _memory_bytes(model), _expected_bytes(model, quantization)
    if abs(actual - expected) > BYTES_TOLERANCE * expected:
        problem = f"{format_bytes(actual)} in memory where {format_bytes(expected)} were expected"
        raise QuantizationError(problem, "the weights are not of the precision asked for")
    done = [path for path, module in linears if kind_of(module) != "none"]
    worst = _worst_error(model, done, sources, checkpoint) if quantization.kind != "none" else 0.0
    if worst > ERROR_BOUND.get(quantization.kind, 1.0):
        problem = f"a weight's relative error is {worst:.2f} in {quantization.kind}"
        raise QuantizationError(problem, "these weights do not suit it; try --quantization int8")
    return QuantizationReport(
        kind=quantization.kind,
        num_quantized=len(done),
        num_linears=len(linears),
        left_out=tuple(sorted(excluded)),
        share=_share(model),
        memory_bytes=actual,
        source_bytes=sum(i.num_bytes for i in checkpoint.tensors(set(sources.values())).values()),
        worst_error=worst,
    )


def _is_stored_as(module: Any, quantization: Quantization) -> bool:
    if kind_of(module) != quantization.kind:
        return False
    if quantization.kind in ("int8", "none"):
        return True
    is_double = module.weight.quant_state.nested == quantization.double_quant
    return is_double and str(module.compute_dtype) == f"torch.{quantization.compute_dtype}"


def _tensors(model: PreTrainedModel) -> Iterator[Tensor]:
    """Every tensor in memory, the scales of quantised weights included."""
    from torch import Tensor

    yield from model.parameters()
    yield from model.buffers()
    for _, module in linear_layers(model):
        state = getattr(module.weight, "quant_state", None)
        while state is not None:
            yield from (value for value in vars(state).values() if isinstance(value, Tensor))
            state = state.state2
        scales = getattr(module.weight, "SCB", None)
        if scales is not None:
            yield scales


def _memory_bytes(model: PreTrainedModel) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(model)}
    return sum(storage.nbytes() for storage in storages.values())


def _expected_bytes(model: PreTrainedModel, quantization: Quantization) -> float:
    linears = {path: m for path, m in linear_layers(model) if kind_of(m) != "none"}
    rest = {
        t.data_ptr(): t.numel() * t.element_size()
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if name.rpartition(".")[0] not in linears or not name.endswith("weight")
    }
    shapes = [(m.out_features, m.in_features) for m in linears.values()]
    return sum(rest.values()) + sum(quantized_bytes(*shape, quantization) for shape in shapes)


def _share(model: PreTrainedModel) -> float:
    """Part of the decoder's matrices, embeddings apart, that is quantised."""
    from torch import nn

    quantized = total = 0
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for _, module in linear_layers(model.get_decoder()):
        count = module.in_features * module.out_features
        total += count
        quantized += count if kind_of(module) != "none" else 0
        embeddings.add(id(module.weight))
    others = (p for p in model.get_decoder().parameters() if id(p) not in embeddings)
    total += sum(p.numel() for p in others if p.ndim > 1)
    return quantized / total if total else 0.0


def _worst_error(
    model: PreTrainedModel, paths: list[str], sources: Mapping[str, str], checkpoint: Checkpoint
) -> float:
    errors = [0.0]
    for path in _sample(model, paths, sources, checkpoint):
        rows, original = checkpoint.originals(sources[f"{path}.weight"])
        stored = dequantized(model.get_submodule(path))[rows]
        difference = stored.cpu().float() - original.float()
        errors.append(float(difference.norm() / original.float().norm()))
    return max(errors)


def _sample(
    model: PreTrainedModel, paths: list[str], sources: Mapping[str, str], checkpoint: Checkpoint
) -> list[str]:
    """Choose layers, the first to the last, whose weights are whole tensors on disk.

    Layers cut from a fused tensor go first: at an even step all of the sample could be such.
    """
    described = checkpoint.tensors(set(sources.values()))
    candidates = [
        path
        for path, module in ((path, model.get_submodule(path)) for path in paths)
        if (source := sources.get(f"{path}.weight"))
        and described[source].shape == (module.out_features, module.in_features)
    ]
    if not candidates:
        problem = f"none of {len(paths)} quantised layers can be compared with {checkpoint.model}"
        raise QuantizationError(problem, "use --quantization none, or report the model")
    ends = SAMPLED_LAYERS - 1
    chosen = {step * (len(candidates) - 1) // ends for step in range(SAMPLED_LAYERS)}
    return [candidates[index] for index in sorted(chosen)]
