"""One training run: the half is loaded and prepared, trained, and what it learnt is written.

Imported where models are trained; it needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cogcache.models import (
    CONFIG,
    WEIGHTS,
    Family,
    LoadedHalf,
    Quantization,
    WholeModel,
    load_half,
    lora_state,
    sync_file,
)
from cogcache.settings import Settings
from cogcache.store import FeatureStore
from cogcache.system import Stop, seal, sync_folder
from cogcache.training import checkpoints
from cogcache.training.batches import batches_in_epochs
from cogcache.training.examples import Example
from cogcache.training.lora import prepare
from cogcache.training.loss import Collator
from cogcache.training.results import Record, base_kind, model_card
from cogcache.training.samples import Sampler
from cogcache.training.trainer import CaptionTrainer, Data, Observer, arguments_for

WEIGHT_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Run:
    """What a training run works with.

    Args:
        settings: model, precision and all of training.
        family: of the model, at the cache point.
        store: has the features.
        train: examples to learn from.
        held: examples to evaluate with.
        out: folder of the run.
        device: where.
        record: what the run is.
        stop: asks it to end.
        observers: told of steps, evaluations and checkpoints.
    """

    settings: Settings
    family: Family
    store: FeatureStore
    train: Sequence[Example]
    held: Sequence[Example]
    out: Path
    device: str
    record: Record
    stop: Stop
    observers: list[Observer] = field(default_factory=list)

    def learn(self) -> Learnt:
        """Train, and write what was learnt."""
        loaded = self._load()
        language = loaded.model
        model = prepare(language, self.settings.training)
        collate = Collator(self.family, language, self.store)
        data = Data(self.train, self.held, collate, self._num_steps())
        arguments = arguments_for(self.settings.training, self.out, data, self.device)
        trainer = CaptionTrainer(
            model, arguments, self.settings.training, data, self.out, self.stop
        )
        sampler = self._sampler(language)
        evaluations: list[dict[str, float]] = []

        def observe(what: str, facts: Mapping[str, Any]) -> None:
            if what == "evaluated":
                evaluations.append(dict(facts))
                sampler.look()

        if checkpoints.last(self.out) is not None and sampler.examples:
            sampler.look()  # before what was learnt is put on: for the captions of the base
        trainer.observers = [observe, *self.observers]
        trainer.go()
        return self._finish(trainer, loaded, sampler, evaluations)

    def _load(self) -> LoadedHalf:
        training, language = self.settings.training, self.settings.language
        dtype = WEIGHT_TYPES[training.precision]
        quantization = replace(
            Quantization.of(language),
            kind=base_kind(self.settings),
            compute_dtype=str(dtype).removeprefix("torch."),
            head="none",
        )
        if training.method == "full":
            dtype = torch.float32  # steps are smaller than what 16 bits tell apart
            quantization = replace(quantization, compute_dtype="float32")
        return load_half(
            WholeModel.of(self.family.checkpoint, **self.family.config_overrides(language)),
            "language",
            dtype=dtype,
            device=self.device,
            quantization=quantization,
        )

    def _num_steps(self) -> int:
        training = self.settings.training
        if training.max_steps is not None:
            return training.max_steps
        batches = batches_in_epochs(
            self.train, training.tokens_per_batch, training.train_seed, training.epochs
        )
        return -(-batches // training.accumulate)

    def _sampler(self, language: Any) -> Sampler:
        distinct = list({each.chosen.video_digest: each for each in self.held}.values())
        some = distinct[: self.settings.training.samples]
        return Sampler(self.family, language, self.store, some, self.settings.generation)

    def _finish(
        self,
        trainer: CaptionTrainer,
        loaded: LoadedHalf,
        sampler: Sampler,
        evaluations: list[dict[str, float]],
    ) -> Learnt:
        state = trainer.state
        best = state.best_global_step
        chosen = best if best else state.global_step
        if chosen != state.global_step:
            checkpoints.read_trained(checkpoints.folder_of(self.out, chosen), trainer.model)
        if sampler.examples and chosen:
            sampler.look()
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        figures = {
            "steps": state.global_step,
            "taken from step": chosen,
            "loss at first": losses[0] if losses else None,
            "loss at last": losses[-1] if losses else None,
            "evaluation": evaluations,
            "flags of samples": sampler.flag_rates(),
        }
        record = replace(self.record, figures=figures)
        if state.global_step:
            write_adapter(self.out, trainer.model, record, sampler.lines())
        return Learnt(record, sampler, state.global_step >= state.max_steps, loaded, trainer)


@dataclass(frozen=True)
class Learnt:
    """What came of a run."""

    record: Record
    sampler: Sampler
    is_complete: bool
    """Whether all steps were made."""
    loaded: LoadedHalf
    trainer: CaptionTrainer


def write_adapter(out: Path, model: Any, record: Record, lines: Sequence[str]) -> None:
    """Write an adapter into the folder of its run, as peft reads it.

    Its weights come last: without them the folder is no adapter.
    """
    config = model.peft_config["default"].to_dict()
    config = {name: each for name, each in config.items() if _is_plain(each)}
    config |= {"base_model_name_or_path": record.model, "inference_mode": True}
    seal(out / CONFIG, json.dumps(config, indent=1, sort_keys=True).encode())
    record.write(out)
    seal(out / "README.md", model_card(record, lines).encode())
    partial = out / f".{WEIGHTS}.partial"
    save_file(lora_state(model), partial, metadata={"format": "pt"})
    sync_file(partial)
    partial.replace(out / WEIGHTS)
    sync_folder(out)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(each) for each in value.values())
    return value is None or isinstance(value, str | int | float | bool | list)
