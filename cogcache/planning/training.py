"""What training will hold in memory, from shapes alone, before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from cogcache.errors import TrainingError
from cogcache.models import (
    Family,
    Kind,
    Quantization,
    WholeModel,
    language_sizes,
    linear_layers,
)
from cogcache.planning.choices import StagePlan
from cogcache.planning.estimates import raised_bytes
from cogcache.planning.fitted import memory_for
from cogcache.settings import Settings
from cogcache.system import pick_device
from cogcache.units import MIB, format_bytes, parse_bytes

_ITEM_BYTES: Final = {"bf16": 2, "fp16": 2, "fp32": 4}
_KEPT: Final = {
    ("lora", 2): (52, 12.4),
    ("lora", 4): (70, 20),
    ("full", 2): (38, 14),
    ("full", 4): (36, 16),
}
"""Bytes that one layer keeps of one token for its gradients: so many for each number of the hidden
width, and for each of the intermediate one. Counted with torch's hooks of saved tensors on Llama
decoders of two and three layers (docs/measurements.md)."""
_LOGIT_BYTES: Final = 12
"""Of each word's logit beside itself: in float32, after the softmax, and its gradient."""
_BUFFERS_BYTES: Final = 48 * MIB
"""What the first steps leave on a CPU whatever the model's size: compiled kernels, buffers of
products, small blocks of the heap (docs/measurements.md)."""
_CAPTION_TOKENS: Final = 200
"""Of a caption that is learnt, where none is at hand to be counted."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What one step of training is expected to hold, in bytes, besides the bare process."""

    weights_bytes: int
    adapters_bytes: int
    """LoRA matrices in float32; 0 where all of the decoder is trained."""
    optimizer_bytes: int
    """Gradients, and what the optimizer remembers of them."""
    activations_bytes: int
    activations_plain_bytes: int
    """The same without gradient checkpointing."""
    activations_checkpointed_bytes: int
    logits_bytes: int
    tokens: int
    """Of a batch."""
    buffers_bytes: int = 0
    """Kernels and buffers of the CPU's products."""
    teacher_bytes: int = 0
    """On the disk: what `distill` keeps of a teacher's probabilities for one caption."""

    @property
    def peak_bytes(self) -> int:
        """Sum of the parts."""
        return self.as_stage().peak_bytes

    def as_stage(self) -> StagePlan:
        """Return the plan as reports of runs have it."""
        held = self.weights_bytes + self.adapters_bytes + self.optimizer_bytes
        return StagePlan(
            held + self.buffers_bytes, self.activations_bytes, logits_bytes=self.logits_bytes
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the parts by name, and their sum."""
        return {**asdict(self), "peak_bytes": self.peak_bytes}

    def lines(self) -> list[str]:
        """Return the plan for a reader."""
        plain = format_bytes(self.activations_plain_bytes)
        checkpointed = format_bytes(self.activations_checkpointed_bytes)
        return [
            f"training: {format_bytes(self.peak_bytes)} for batches of {self.tokens:,} tokens",
            f"  weights {format_bytes(self.weights_bytes)}, adapters "
            f"{format_bytes(self.adapters_bytes)}, gradients and optimizer "
            f"{format_bytes(self.optimizer_bytes)}, logits {format_bytes(self.logits_bytes)}"
            + (f", buffers {format_bytes(self.buffers_bytes)}" if self.buffers_bytes else ""),
            f"  activations {checkpointed} with gradient checkpointing, {plain} without",
        ]


def plan_training(
    family: Family,
    settings: Settings,
    kind: Kind,
    row_tokens: int,
    label_tokens: int = _CAPTION_TOKENS,
) -> TrainingPlan:
    """Plan one step of training.

    Args:
        family: of the model, at the cache point.
        settings: the precision, the method, the most tokens of a batch.
        kind: how the decoder's layers are stored.
        row_tokens: of the longest example, its caption included.
        label_tokens: of its caption.
    """
    training = settings.training
    item = _ITEM_BYTES[training.precision]
    whole = WholeModel.of(family.checkpoint, **family.config_overrides(settings.language))
    config = family.full_config()
    text = config.get("text_config") or config
    full = training.method == "full"
    quantization = Quantization(kind=kind, double_quant=settings.language.double_quant)
    sizes = language_sizes(
        whole.meta, whole.partition.modules, quantization, 4 if full else item, on_cpu=False
    )
    trained = _trained_bytes(whole, settings, sizes.total_bytes)
    remembered = 2 if training.optimizer == "adamw" else 0.5
    layers, hidden = int(text["num_hidden_layers"]), int(text["hidden_size"])
    wide = int(text.get("intermediate_size") or 4 * hidden)
    of_hidden, of_wide = _KEPT[training.method, item]
    tokens = max(row_tokens, training.tokens_per_batch // row_tokens * row_tokens)
    one_layer = int(tokens * (of_hidden * hidden + of_wide * wide))
    moment = _product_bytes(settings, sizes.largest_matrix, tokens, wide)
    plain = layers * one_layer + moment
    checkpointed = layers * tokens * hidden * item + one_layer + moment
    labels = label_tokens * max(1, tokens // row_tokens)
    return TrainingPlan(
        weights_bytes=sizes.total_bytes,
        adapters_bytes=0 if full else trained,
        optimizer_bytes=int(trained * (1 + remembered)),
        activations_bytes=checkpointed if training.gradient_checkpointing else plain,
        activations_plain_bytes=plain,
        activations_checkpointed_bytes=checkpointed,
        logits_bytes=labels * int(text["vocab_size"]) * (item + _LOGIT_BYTES),
        tokens=tokens,
        buffers_bytes=_BUFFERS_BYTES if pick_device(settings.device) == "cpu" else 0,
        teacher_bytes=teacher_bytes(settings.distillation.teacher_top_k, label_tokens),
    )


def teacher_bytes(top_k: int, num_tokens: int) -> int:
    """Return what is kept of a teacher's probabilities for a caption, before compression.

    Ids and numbers of four bytes each.

    Args:
        top_k: how many tokens are kept at each place.
        num_tokens: places of the caption.
    """
    return 8 * top_k * num_tokens


def _product_bytes(settings: Settings, largest_matrix: int, tokens: int, wide: int) -> int:
    """Return what a product takes for the moment.

    A matrix in 4 bits is multiplied in 16, dequantised, both ways.
    """
    is_bf16 = settings.training.precision == "bf16"
    raised = raised_bytes(settings, "bfloat16", wide) if is_bf16 else 0
    return 2 * largest_matrix + tokens * raised


def _trained_bytes(whole: WholeModel, settings: Settings, all_bytes: int) -> int:
    """Return what is trained, in float32."""
    training = settings.training
    if training.method == "full":
        return all_bytes
    inside = {id(module) for module in whole.meta.get_decoder().modules()}
    pattern = training.targets
    return sum(
        4 * training.rank * (layer.in_features + layer.out_features)
        for path, layer in linear_layers(whole.meta)
        if id(layer) in inside and (pattern is None or re.fullmatch(pattern, path))
    )


def check_fits(plan: TrainingPlan, settings: Settings, device: str) -> None:
    """Check that the memory that there is holds a step.

    Args:
        plan: of a step.
        settings: the memory that was given; the method and precision, for what would help.
        device: where training is to run.

    Raises:
        TrainingError: it does not fit.
    """
    given = memory_for(settings, device)
    if plan.peak_bytes <= given:
        return
    problem = " ".join(plan.lines())
    if settings.memory == "auto":
        problem += f"; {format_bytes(given)} are free"
        enough = f"free {format_bytes(plan.peak_bytes)} or more"
    else:
        taken = parse_bytes(settings.memory) - given
        held = f", of which the process itself holds {format_bytes(taken)}" if taken else ""
        problem += f"; this does not fit {settings.memory}{held}"
        enough = f"give --memory {-(-(plan.peak_bytes + taken) // MIB)}MiB or more"
    raise TrainingError(problem, f"{enough}; or try {', '.join(_savings(plan, settings))}")


def _savings(plan: TrainingPlan, settings: Settings) -> list[str]:
    """Name options that would make a step smaller."""
    training, is_lora = settings.training, settings.training.method == "lora"
    is_wide = settings.language.quantization == "none"
    options = {
        "--gradient-checkpointing": not training.gradient_checkpointing,
        "--method lora": not is_lora,
        "--quantization nf4": is_lora and is_wide,
        "a smaller --tokens-per-batch": plan.tokens <= training.tokens_per_batch,
        "a lower --rank": is_lora,
    }
    return [name for name, helps in options.items() if helps]
