"""Settings of `train` and `distill`: how a language half learns from cached features."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cogcache.settings import AtLeastOne, NoneIfEmpty, NoneIfZero, Positive, Table

Share = Annotated[float, Field(ge=0, lt=1)]


def _is_pattern(text: str | None) -> str | None:
    try:
        re.compile(text or "")
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


class Training(Table):
    """How the language half is trained (`train`, `distill`). Part of no key."""

    method: Literal["lora", "full"] = "lora"
    """What is trained: small matrices beside the decoder's layers (LoRA), or all of the decoder."""
    rank: AtLeastOne = 16
    """Rank of the LoRA matrices."""
    alpha: Positive = 32.0
    """What a LoRA layer's output is scaled by is alpha / rank."""
    dropout: Share = 0.05
    """Share of a LoRA layer's inputs that a training step leaves out at random."""
    targets: Annotated[str | None, AfterValidator(_is_pattern), NoneIfEmpty] = None
    """Regular expression that the whole path of a layer must match to get LoRA matrices; "" takes
    every linear layer of the decoder."""
    train_embedding: bool = False
    """Train the token embedding and the output head too; `full` only."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type that products are computed in; `fp16` scales gradients and needs a GPU."""
    gradient_checkpointing: bool = True
    """Keep a layer's inputs alone and compute the rest anew for the gradients: less memory, about
    a third more time."""
    tokens_per_batch: AtLeastOne = 2048
    """Most tokens, padding included, that go through the model at once; a longer clip goes
    alone."""
    accumulate: AtLeastOne = 8
    """Batches whose gradients make one step."""
    learning_rate: Positive = 2e-4
    """Highest learning rate; it falls to zero as a cosine."""
    warmup: Share = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm where theirs is greater; 0 leaves them."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit`: bitsandbytes' AdamW, whose memory of gradients takes a quarter."""
    epochs: Positive = 3.0
    """How often each caption is trained on."""
    max_steps: Annotated[int | None, Field(ge=1), NoneIfZero] = None
    """Steps to train for, in place of epochs; 0 goes by epochs."""
    train_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Start of the random numbers: order of the data, first weights, dropout."""
    eval_share: Share = 0.1
    """Share of the videos that are kept for evaluation; 0 for none."""
    eval_every: AtLeastOne = 50
    """Steps from one evaluation to the next."""
    patience: Annotated[int | None, Field(ge=1), NoneIfZero] = None
    """Evaluations in a row without a better loss after which training ends; 0 never ends it."""
    save_every: AtLeastOne = 50
    """Steps from one checkpoint to the next."""
    samples: Annotated[int, Field(ge=0)] = 4
    """Clips kept for evaluation whose captions are shown beside those of the untrained model."""
    report_to: Annotated[str | None, NoneIfEmpty] = None
    """Where figures go besides: tensorboard, trackio or wandb; "" for nowhere."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.train_embedding and self.method == "lora":
            raise ValueError("train_embedding is for --method full; LoRA leaves both as they are")
        if self.report_to not in (None, "tensorboard", "trackio", "wandb"):
            raise ValueError(f"report_to must be tensorboard, trackio or wandb: {self.report_to!r}")
        return self


class Distillation(Table):
    """How a student learns from a teacher (`distill`). Part of no key."""

    teacher_top_k: AtLeastOne = 32
    """How many of the teacher's likeliest tokens are kept at each place of a caption."""
    kd_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the loss that compares with the teacher's probabilities; the rest, with captions."""
    projector_steps: Annotated[int, Field(ge=0)] = 200
    """First steps, in which a student of another model trains its projector alone."""
