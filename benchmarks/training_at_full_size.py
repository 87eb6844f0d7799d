"""Two steps of training at the flagship's full size; `full_size` measures what they take."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cogcache.models import PromptRow, family_of
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.planning import check_fits, plan_training
from cogcache.store.store import FeatureStore
from cogcache.system import Stop
from cogcache.training import Chosen, Example, Record, base_kind
from cogcache.training.learning import Run

CAPTION_TOKENS = 100
NUM_STEPS = 2
SETTINGS: dict[str, Any] = {
    "max_steps": NUM_STEPS,
    "accumulate": 1,
    "tokens_per_batch": 256,
    "eval_share": 0.0,
    "samples": 0,
    "save_every": 100,
}


def plan(stage: Any, row: PromptRow) -> None:
    """Plan a step, as `train` does before it reads a weight.

    Raises:
        TrainingError: it does not fit.
    """
    settings = stage.settings
    family = family_of(Checkpoint.open(settings.model))
    kind, tokens = base_kind(settings), row.length + CAPTION_TOKENS
    planned = plan_training(family, settings, kind, tokens, CAPTION_TOKENS)
    check_fits(planned, settings, "cpu")
    stage.report.planned = planned.as_stage()
    stage.report.notes += planned.lines()


def take(stage: Any, row: PromptRow, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train on one caption; what stays of the weights is copied into memory of its own."""
    from benchmarks.full_size import Laps

    settings = stage.settings
    key = f"{options.frames:064x}"
    store = FeatureStore.open(folder / "cache")
    if key not in store:
        store.write(key, row.features.tensors, {"texts": {}})
    family = family_of(Checkpoint.open(settings.model))
    example = example_of(row, key)
    record = Record.of(settings, family.name, "0" * 64, [example.chosen], [])
    laps = Laps()
    facts: list[dict[str, Any]] = []

    def observe(what: str, told: Any) -> None:
        if what == "step":
            laps.lap(f"step {told['step']}")
            facts.append(dict(told))

    out = folder / "adapter"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    given = (settings, family, store, [example], [], out, "cpu", record, Stop(), [observe])
    run = _Copied(*given)
    run.loaded = lambda model: (stage.loaded(model, options), laps.lap("load"))
    learnt = run.learn()
    stage.split.lap("train")
    losses = [each["loss"] for each in learnt.trainer.state.log_history if "loss" in each]
    return {"seconds": laps.seconds, "losses": losses, "frames": options.frames}


class _Copied(Run):
    """A run that tells when its weights are there."""

    loaded: Callable[[Any], object]

    def _load(self) -> Any:
        half = super()._load()
        self.loaded(half.model)
        return half


def example_of(row: PromptRow, key: str) -> Example:
    """Return a caption of random tokens behind a clip and its prompt."""
    numbers = torch.Generator().manual_seed(0)
    answer = torch.randint(1000, 100_000, (CAPTION_TOKENS,), generator=numbers)
    sequences = {
        name: torch.cat((each, answer if name == "input_ids" else torch.zeros_like(answer)))
        for name, each in row.sequences.items()
    }
    chosen = Chosen("caption", key, "video", "a clip", "detail", "What?", "Random words.")
    return Example(chosen, row.length, sequences)
