"""4 and 8 bits for the language half, through bitsandbytes, and the proof that they are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from cogcache.errors import QuantizationError
from cogcache.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from cogcache.checkpoint import Checkpoint

Kind = Literal["nf4", "fp4", "int8", "none"]
BLOCK_SIZE = 64
"""Weights that share a scale; what bitsandbytes uses when it quantises while loading."""
ERROR_BOUND = {"nf4": 0.16, "fp4": 0.22, "int8": 0.05}
"""Largest relative (Frobenius) error of a sampled weight. Gaussian weights give 0.09 in nf4,
0.12 to 0.13 in fp4 and 0.01 in int8; heavy tails give more, a wrong weight gives above 1."""
BYTES_TOLERANCE = 0.02
SAMPLED_LAYERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the decoder's linear layers are stored."""

    kind: Kind = "nf4"
    double_quant: bool = True
    compute_dtype: str = "bfloat16"

    def fields(self) -> dict[str, str | bool]:
        """Return what a caption depends on, for its key."""
        return asdict(self)


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


def bnb_config(quantization: Quantization, meta: PreTrainedModel) -> BitsAndBytesConfig:
    """Return the bitsandbytes settings that quantise the decoder's layers and nothing else.

    Args:
        quantization: what is asked for.
        meta: the whole model on meta, to find what must be left out.
    """
    import torch
    from transformers import BitsAndBytesConfig

    _bitsandbytes()
    if quantization.kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left_out(meta))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        llm_int8_skip_modules=left_out(meta),
    )


def left_out(model: PreTrainedModel) -> list[str]:
    """Name the linear layers that are not quantised.

    Those are all outside the decoder (a list of our own replaces the library's, so the output
    head must be on it), and within it those whose shape the 4-bit product on the CPU cannot
    take: it fails at the first forward pass, after a clean load.
    """
    inside = {id(module) for module in model.get_decoder().modules()}
    head = model.get_output_embeddings()
    return [
        path
        for path, module in _linears(model)
        if id(module) not in inside
        or module is head
        or module.out_features % 32
        or module.in_features % BLOCK_SIZE
    ]


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
    excluded = set(left_out(model))
    linears = _linears(model)
    named = {path for path, _ in linears if path in excluded}
    wanted = [path for path, _ in linears if path not in excluded and quantization.kind != "none"]
    done = [path for path, module in linears if _kind_of(module) == quantization.kind]
    if quantization.kind != "none" and sorted(done) != sorted(wanted):
        wrong = sorted(set(done) ^ set(wanted))
        problem = f"asked for {quantization.kind}, but {len(wrong)} layers differ: {wrong[:5]}"
        raise QuantizationError(problem, "use --quantization none, or report the model")
    if any(module.training for module in model.modules()):
        raise QuantizationError("modules are in training mode", "call eval() on the model")
    actual, expected = _memory_bytes(model), _expected_bytes(model, quantization)
    if abs(actual - expected) > BYTES_TOLERANCE * expected:
        problem = f"{format_bytes(actual)} in memory where {format_bytes(expected)} were expected"
        raise QuantizationError(problem, "the weights are not of the precision asked for")
    worst = _worst_error(model, done, sources, checkpoint) if quantization.kind != "none" else 0.0
    if worst > ERROR_BOUND.get(quantization.kind, 1.0):
        problem = f"a weight's relative error is {worst:.2f} in {quantization.kind}"
        raise QuantizationError(problem, "these weights do not suit it; try --quantization int8")
    return QuantizationReport(
        kind=quantization.kind,
        num_quantized=len(done) if quantization.kind != "none" else 0,
        num_linears=len(linears),
        left_out=tuple(sorted(named)),
        share=_share(model),
        memory_bytes=actual,
        source_bytes=sum(i.num_bytes for i in checkpoint.tensors(set(sources.values())).values()),
        worst_error=worst,
    )


def _bitsandbytes() -> Any:
    """Import bitsandbytes without its advice to install a package that fetches code at run time."""
    import logging

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def _linears(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    from torch import nn

    return [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]


def _kind_of(module: nn.Module) -> Kind:
    bitsandbytes = _bitsandbytes()
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        kind: Kind = module.weight.quant_type
        return kind if module.weight.quant_state is not None else "none"
    return "int8" if isinstance(module, bitsandbytes.nn.Linear8bitLt) else "none"


def _tensors(model: PreTrainedModel) -> Iterator[Tensor]:
    """Every tensor in memory, the scales of quantised weights included."""
    from torch import Tensor

    yield from model.parameters()
    yield from model.buffers()
    for _, module in _linears(model):
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
    linears = {path: m for path, m in _linears(model) if _kind_of(m) != "none"}
    rest = {
        t.data_ptr(): t.numel() * t.element_size()
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if name.rpartition(".")[0] not in linears or not name.endswith("weight")
    }
    shapes = [(m.out_features, m.in_features) for m in linears.values()]
    return sum(rest.values()) + sum(quantized_bytes(*shape, quantization) for shape in shapes)


def quantized_bytes(num_rows: int, num_columns: int, quantization: Quantization) -> int:
    """Return the bytes that one quantised matrix takes, with its scales and tables.

    A block of 64 weights has a float32 scale, and a layer a table of 16 float32. Double
    quantisation turns a scale into one byte and a float32 for 256 blocks, and adds a table of
    256 float32 and an offset. int8 has a float32 scale a row.
    """
    num_weights = num_rows * num_columns
    if quantization.kind == "int8":
        return num_weights + 4 * num_rows
    blocks = -(-num_weights // BLOCK_SIZE)
    double = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4
    scales = double if quantization.double_quant else 4 * blocks
    return -(-num_weights // 2) + scales + 4 * 16


def _share(model: PreTrainedModel) -> float:
    """Part of the decoder's matrices, embeddings apart, that is quantised."""
    from torch import nn

    quantized = total = 0
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for _, module in _linears(model.get_decoder()):
        count = module.in_features * module.out_features
        total += count
        quantized += count if _kind_of(module) != "none" else 0
        embeddings.add(id(module.weight))
    others = (p for p in model.get_decoder().parameters() if id(p) not in embeddings)
    total += sum(p.numel() for p in others if p.ndim > 1)
    return quantized / total if total else 0.0


def _worst_error(
    model: PreTrainedModel, paths: list[str], sources: Mapping[str, str], checkpoint: Checkpoint
) -> float:
    errors = [0.0]
    for path in _sample(model, paths, sources, checkpoint):
        original = _original(checkpoint, sources[f"{path}.weight"]).float()
        stored = dequantized(model.get_submodule(path))
        errors.append(float((stored.cpu().float() - original).norm() / original.norm()))
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


def _original(checkpoint: Checkpoint, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(checkpoint.folder / checkpoint.weight_map[name], framework="pt") as shard:
        tensor: Tensor = shard.get_tensor(name)
        return tensor


def dequantized(module: Any) -> Tensor:
    """Return a quantised layer's weight as the product sees it. Shape [out, in]."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense
    row_scaled: Tensor = int8_vectorwise_dequant(weight.data, weight.SCB)
    return row_scaled


def quantized_linear(layer: nn.Linear, device: str) -> nn.Module:
    """Return a layer's NF4 twin, as the language half's layers are loaded."""
    import torch

    twin: nn.Module = _bitsandbytes().nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=torch.bfloat16,
        compress_statistics=True,
        quant_type="nf4",
    )
    twin.load_state_dict(layer.state_dict())
    return twin.to(device)
