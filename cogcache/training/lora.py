"""Makes a language half trainable: LoRA matrices beside its layers, or its whole decoder.

Imported where models are trained; it needs torch and peft.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cogcache.errors import ConfigError, TrainingError
from cogcache.models import linear_layers
from cogcache.settings import Training
from cogcache.system import extra_hint


def prepare(model: PreTrainedModel, training: Training) -> Any:
    """Make a loaded language half ready to be trained.

    What is not trained stays as it was loaded, in 16 or 4 bits; LoRA matrices are float32.

    Args:
        model: the half; changed in place.
        training: the method, and what it is told.

    Returns:
        What transformers' Trainer takes: peft's model around the half, or the half itself.

    Raises:
        ConfigError: no layer matches `targets`.
        TrainingError: peft is not installed.
    """
    keep_differentiable(model)
    model.requires_grad_(False)
    if training.gradient_checkpointing:
        checkpoint_activations(model.get_decoder())
    if training.method == "full":
        return _unfrozen(model, training)
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        problem = "--method lora needs peft, which is not installed"
        raise TrainingError(problem, extra_hint("train")) from error
    torch.manual_seed(training.train_seed)  # of the first matrices
    config = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,  # type: ignore[arg-type]  # any number serves
        lora_dropout=training.dropout,
        target_modules=targets_of(model, training.targets),
        bias="none",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks for checkpointing by the name that it had up to transformers 5.22.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        return get_peft_model(model, config)


def targets_of(model: PreTrainedModel, pattern: str | None) -> str:
    """Return a regular expression of the whole paths of the layers to train.

    Paths are those in the whole model, so that the expression names the same layers there and none
    of the vision half's.

    Raises:
        ConfigError: no linear layer of the decoder matches `pattern`.
    """
    inside = {id(module) for module in model.get_decoder().modules()}
    paths = [path for path, layer in linear_layers(model) if id(layer) in inside]
    if pattern is not None:
        found = [path for path in paths if re.fullmatch(pattern, path)]
        if not found:
            problem = f"no linear layer of the decoder matches --targets {pattern!r}"
            raise ConfigError(problem, f"paths are such as {paths[0]}")
        paths = found
    # A number in a path is that of a layer: one expression for all of them.
    kinds = sorted({re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(path)) for path in paths})
    return "|".join(kinds)


def _unfrozen(model: PreTrainedModel, training: Training) -> PreTrainedModel:
    """Have the decoder trained, its token embedding and the head only where that is asked for."""
    model.get_decoder().requires_grad_(True)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        if part is not None:
            part.requires_grad_(training.train_embedding)
    return model


def checkpoint_activations(decoder: Any) -> None:
    """Have a decoder's layers keep their inputs alone and run again for the gradients.

    Not re-entrant: with frozen weights and features for inputs nothing that goes in asks for
    gradients, and the re-entrant kind then gives none at all.
    """
    arguments = {"use_reentrant": False}
    if hasattr(decoder, "activation_checkpointing_enable"):
        decoder.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
    else:  # its name up to transformers 5.22
        decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    # Layers do so in training mode alone; nothing in a frozen decoder depends on it otherwise.
    decoder.train()


def keep_differentiable(model: PreTrainedModel) -> None:
    """Keep quantised layers from laying their weights out for the CPU.

    They would at the first evaluation, and the product that then serves has no gradient: it would
    be left out of all that lies before, without a word.
    """
    layers: list[tuple[str, Any]] = [*linear_layers(model)]
    for _, layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by name."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def unfreeze(model: PreTrainedModel, beginnings: tuple[str, ...]) -> list[nn.Parameter]:
    """Have parameters trained, in float32, whose names begin so; return them."""
    new = [each for name, each in model.named_parameters() if name.startswith(beginnings)]
    for parameter in new if beginnings else []:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return new if beginnings else []
