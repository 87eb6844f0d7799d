"""transformers' Trainer with our batches, our loss, and checkpoints without pickles.

Imported where models are trained; it needs torch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from cogcache.errors import TrainingError
from cogcache.models import raised_training
from cogcache.settings import Training
from cogcache.system import Stop
from cogcache.training import checkpoints
from cogcache.training.batches import Order, cut
from cogcache.training.examples import Example
from cogcache.training.loss import Batch, Collator, logits_of, token_losses

logger = logging.getLogger(__name__)

TokenLosses = Callable[[Tensor, Batch], Tensor]
"""From the logits at a batch's labels [B, K, V] to the loss of each, float32 [B, K]."""
Observer = Callable[[str, Mapping[str, Any]], None]
"""Told of a step, an evaluation or a checkpoint."""


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    Args:
        train: examples.
        held: those kept for evaluation.
        collate: makes a batch of examples.
        num_steps: of the whole run.
    """

    train: Sequence[Example]
    held: Sequence[Example]
    collate: Collator
    num_steps: int


def captions_alone(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy of each token of the captions."""
    return token_losses(logits, batch.labels)


class CaptionTrainer(Trainer):  # type: ignore[misc]
    """Trains on batches of captions.

    Args:
        model: prepared; see `lora.prepare`.
        arguments: see `arguments_for`.
        training: the settings.
        data: what to learn from.
        out: folder of the run.
        stop: asks the run to end.
        losses: of tokens; cross-entropy by default.
    """

    control: Any
    state: Any

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        training: Training,
        data: Data,
        out: Path,
        stop: Stop,
        losses: TokenLosses = captions_alone,
    ) -> None:
        self.new: list[nn.Parameter] = []
        """Parameters that are trained alone for `first_steps`."""
        self.first_steps = 0
        self.training, self.data, self.out, self.losses = training, data, out, losses
        self.resumed_from: Path | None = None
        self.observers: list[Observer] = []
        self.tokens_seen = 0
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.held or None,
            callbacks=[_Watcher(self, stop)],
        )
        self.remove_callback(PrinterCallback)  # it prints dictionaries, past our own lines
        # The loss is a sum over tokens, divided by all of a step's: see `compute_loss`.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False

    def go(self) -> None:
        """Train to the end, from the newest checkpoint where there is one.

        Raises:
            TrainingError: the loss is no number; the last checkpoint stays.
        """
        self.resumed_from = checkpoints.last(self.out)
        if self.resumed_from is not None:
            checkpoints.read_trained(self.resumed_from, self.model)
            self.args.eval_on_start = False
        self.train(resume_from_checkpoint=str(self.resumed_from) if self.resumed_from else None)

    # ---- data and loss ----------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Return the batches of the run that are still to come."""
        accumulate = self.args.gradient_accumulation_steps
        first = _step_of(self.resumed_from) * accumulate
        return Order(
            self.data.train,
            self.training.tokens_per_batch,
            self.training.train_seed,
            self.data.num_steps * accumulate,
            self.data.collate,
            first,
        )

    def training_step(self, model: nn.Module, *given: Any, **options: Any) -> Tensor:
        """Do one batch forwards and backwards."""
        with raised_training(self.model):
            loss: Tensor = super().training_step(model, *given, **options)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum of the tokens' losses over how many a whole step has.

        Not the mean of a batch: captions are of unequal length, and four batches of one must give
        the gradients of one batch of four.
        """
        batch: Batch = inputs["batch"]
        logits = logits_of(model, batch)
        losses = self.losses(logits, batch)
        self._check(losses, batch)
        count = (batch.labels >= 0).sum()
        self.tokens_seen += int(batch.inputs["attention_mask"].sum()) if model.training else 0
        loss = losses.sum() / (num_items_in_batch if num_items_in_batch is not None else count)
        return (loss, {"logits": logits}) if return_outputs else loss

    def _check(self, losses: Tensor, batch: Batch) -> None:
        finite = torch.isfinite(losses).all(dim=1)
        if bool(finite.all()):
            return
        example = batch.examples[int((~finite).nonzero()[0])]
        kept = checkpoints.last(self.out)
        where = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
        problem = f"step {self.state.global_step + 1}: the loss of {example.chosen.name} is no "
        hint = "lower --learning-rate, or leave that caption out; then run the same command"
        raise TrainingError(f"{problem}finite number; {where}", hint)

    def floating_point_ops(self, inputs: Any) -> int:
        """Count none: transformers would by an argument that a batch of ours does not have."""
        return 0

    # ---- evaluation -------------------------------------------------------------------------

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Return the mean loss over all tokens of the captions that are kept for it."""
        was_training = self.model.training
        self.model.eval()
        total, count = 0.0, 0
        ordered = sorted(self.data.held, key=lambda example: example.length)
        with torch.no_grad():
            for some in cut(ordered, self.training.tokens_per_batch):
                batch = self.data.collate.batch(some)
                with self.compute_loss_context_manager(), raised_training(self.model):
                    losses = token_losses(logits_of(self.model_wrapped, batch), batch.labels)
                total += float(losses.sum())
                count += int((batch.labels >= 0).sum())
        self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_loss": total / max(1, count)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.tell("evaluated", {"step": self.state.global_step, "loss": total / max(1, count)})
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best: bool = super()._determine_best_metric(metrics, trial)
        if is_best:
            self.state.best_global_step = self.state.global_step
            self.control.should_save = self.state.global_step > 0
        return is_best

    # ---- checkpoints ------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = checkpoints.write(self.out, self)
        self.tell("saved", {"step": self.state.global_step, "folder": str(folder)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.read_optimizer(Path(checkpoint), self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: `go` has read what is trained."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.read_random(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: it comes with the optimizer."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Do nothing: `checkpoints.write` saves, without pickles."""

    # ---- what others are told ---------------------------------------------------------------

    def tell(self, what: str, facts: Mapping[str, Any]) -> None:
        """Tell observers."""
        for observer in self.observers:
            observer(what, facts)


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("step-")) if checkpoint else 0


class _Watcher(TrainerCallback):  # type: ignore[misc]
    """Shows progress, and ends a run that is asked to end or that no longer gets better."""

    def __init__(self, trainer: CaptionTrainer, stop: Stop) -> None:
        self.trainer, self.stop = trainer, stop
        self.bar: tqdm[Any] | None = None
        self.began_s, self.began_tokens = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the progress bar."""
        total = state.max_steps
        self.bar = tqdm(
            total=total, initial=state.global_step, desc="train", unit="step", disable=None
        )
        self.began_s = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave all but new parameters as they are in the first steps."""
        trainer = self.trainer
        if trainer.new and state.global_step < trainer.first_steps:
            new = {id(each) for each in trainer.new}
            for parameter in trainer.model.parameters():
                if id(parameter) not in new:
                    parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say how fast it is; save and end where that is asked for."""
        seconds = time.monotonic() - self.began_s
        rate = self.trainer.tokens_seen / seconds if seconds else 0.0
        self.trainer.tell("step", {"step": state.global_step, "tokens_per_s": rate})
        if self.bar is not None:
            self.bar.set_postfix({**self._loss(state), "tokens/s": f"{rate:.0f}"}, refresh=False)
            self.bar.update()
        if self.stop:
            control.should_training_stop = control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End where several evaluations in a row were no better than the best."""
        patience = self.trainer.training.patience
        if patience is None or state.best_global_step is None:
            return
        evaluations = (state.global_step - state.best_global_step) / args.eval_steps
        if evaluations >= patience:
            self.stop.ask(f"{patience} evaluations without a better loss")
            control.should_training_stop = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the progress bar."""
        if self.bar is not None:
            self.bar.close()

    def _loss(self, state: Any) -> dict[str, str]:
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        return {"loss": f"{losses[-1]:.3f}"} if losses else {}


def arguments_for(training: Training, out: Path, data: Data, device: str) -> TrainingArguments:
    """Return the settings as transformers' Trainer takes them.

    Raises:
        TrainingError: there are several processes.
    """
    evaluates = bool(data.held)
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=training.accumulate,
        max_steps=data.num_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(training.warmup * data.num_steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip_norm,
        optim="adamw_bnb_8bit" if training.optimizer == "adamw_8bit" else "adamw_torch",
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        seed=training.train_seed,
        use_cpu=device == "cpu",
        eval_strategy="steps" if evaluates else "no",
        eval_steps=training.eval_every,
        eval_on_start=evaluates,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        save_strategy="steps",
        save_steps=training.save_every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[training.report_to] if training.report_to else [],
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,
        label_names=["labels"],
        dataloader_pin_memory=False,
    )
    if arguments.world_size > 1:
        problem = f"{arguments.world_size} processes were started to train together"
        raise TrainingError(problem, "start one: cogcache trains on one device")
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
