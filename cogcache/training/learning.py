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
    Adapter,
    Family,
    Kind,
    LoadedHalf,
    Quantization,
    WholeModel,
    load_half,
    lora_state,
    merge,
    named_as_stored,
    put_on,
    sync_file,
    write_with_language,
)
from cogcache.settings import Settings
from cogcache.store import FeatureStore
from cogcache.system import Stop, blocks_given_back, seal, sync_folder
from cogcache.training import checkpoints
from cogcache.training.batches import batches_in_epochs
from cogcache.training.examples import Example
from cogcache.training.lora import prepare, unfreeze
from cogcache.training.loss import Collator
from cogcache.training.results import Record, base_kind, model_card
from cogcache.training.samples import Sampler
from cogcache.training.trainer import (
    CaptionTrainer,
    Data,
    Observer,
    TokenLosses,
    arguments_for,
    captions_alone,
)

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights as checkpoints call them."""
WEIGHT_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_language(family: Family, settings: Settings, kind: Kind, device: str) -> LoadedHalf:
    """Load a language half in the types that training computes in.

    Args:
        family: of its checkpoint, at the cache point.
        settings: the precision, and how rotary tables are built.
        kind: how the decoder's layers are stored.
        device: where.
    """
    language, training = settings.language, settings.training
    # In 16 bits, steps of all weights would be smaller than what these tell apart.
    precision = "fp32" if training.method == "full" and kind == "none" else training.precision
    dtype = WEIGHT_TYPES[precision]
    compute_dtype = str(dtype).removeprefix("torch.")
    quantization = replace(
        Quantization.of(language), kind=kind, compute_dtype=compute_dtype, head="none"
    )
    whole = WholeModel.of(family.checkpoint, **family.config_overrides(language))
    return load_half(whole, "language", dtype=dtype, device=device, quantization=quantization)


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
    losses: TokenLosses = captions_alone
    new_parts: tuple[str, ...] = ()
    """What the names of parameters begin with that are new, and trained whatever the method is."""
    folder: Path | None = None
    """Of checkpoints, where it is not `out`; the result is then a checkpoint of the whole model."""

    @property
    def run_folder(self) -> Path:
        """Where the run's checkpoints are."""
        return self.folder or self.out

    def learn(self) -> Learnt:
        """Train, and write what was learnt."""
        loaded = self._load()
        language = loaded.model
        model = prepare(language, self.settings.training)
        new_parameters = unfreeze(language, self.new_parts)
        collate = Collator(self.family, language, self.store)
        data = Data(self.train, self.held, collate, self._num_steps())
        training, folder = self.settings.training, self.run_folder
        arguments = arguments_for(training, folder, data, self.device)
        trainer = CaptionTrainer(
            model, arguments, training, data, folder, self.stop, losses=self.losses
        )
        trainer.new = new_parameters
        trainer.first_steps = self.settings.distillation.projector_steps
        sampler = self._sampler(language)

        def observe(what: str, _: Mapping[str, Any]) -> None:
            if what == "evaluated":
                sampler.look()

        if checkpoints.last(self.run_folder) is not None and sampler.examples:
            sampler.look()  # before what was learnt is put on: for the captions of the base
        trainer.observers = [observe, *self.observers]
        # Weights made for one product each, between gradients that stay, would leave holes.
        with blocks_given_back():
            trainer.go()
        return self._finish(trainer, loaded, sampler)

    def _write(self, trainer: CaptionTrainer, record: Record, lines: Sequence[str]) -> None:
        """Write what was learnt: an adapter, or a checkpoint where all of the decoder was."""
        if self.settings.training.method == "lora":
            write_adapter(self.run_folder, trainer.model, record, lines)
            if self.folder is None:
                return
            language = self._merged(trainer)
        else:
            record.write(self.run_folder)
            language = trainer.model
        whole = WholeModel.of(self.family.checkpoint, **self.family.partition_settings())
        stored = whole.checkpoint.tensors(whole.partition.language)
        types = {name: _TYPES.get(info.dtype, torch.bfloat16) for name, info in stored.items()}
        named = [
            (n, each.to(types.get(n, each.dtype))) for n, each in named_as_stored(whole, language)
        ]
        write_with_language(whole, self.out, named, made_from=record.as_dict())
        seal(self.out / "README.md", model_card(record, lines, is_adapter=False).encode())

    def _merged(self, trainer: CaptionTrainer) -> Any:
        """Return the half in 16 bits with the adapter merged into it."""
        whole = WholeModel.of(self.family.checkpoint, **self.family.partition_settings())
        language = load_half(whole, "language", dtype=torch.bfloat16).model
        seconds = [each for name, each in lora_state(trainer.model).items() if ".lora_B." in name]
        if any(bool(each.any()) for each in seconds):  # else only new parts were trained so far
            put_on(language, Adapter.open(self.run_folder))
            merge(language)
        own = dict(language.named_parameters())
        for name, parameter in trainer.model.get_base_model().named_parameters():
            if name.startswith(self.new_parts) and self.new_parts:
                own[name].data.copy_(parameter.detach())
        return language

    def _load(self) -> LoadedHalf:
        return load_language(self.family, self.settings, base_kind(self.settings), self.device)

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
    ) -> Learnt:
        state = trainer.state
        best = state.best_global_step
        chosen = best if best else state.global_step
        if chosen != state.global_step:
            checkpoints.read_trained(checkpoints.folder_of(self.run_folder, chosen), trainer.model)
        if sampler.examples and chosen:
            sampler.look()
        # The trainer's own history goes on over runs that ended early: it is in the checkpoints.
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        evaluations = [
            {"step": entry["step"], "loss": entry["eval_loss"]}
            for entry in state.log_history
            if "eval_loss" in entry
        ]
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
            self._write(trainer, record, sampler.lines())
        return Learnt(record, sampler, state.global_step >= state.max_steps, loaded, trainer)


@dataclass(frozen=True)
class Learnt:
    """The result of a training run."""

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
