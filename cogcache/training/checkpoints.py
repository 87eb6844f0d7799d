"""Checkpoints of a training run: whole or absent, in safetensors and JSON alone.

transformers' own are pickles. A checkpoint holds all that the next step depends on: what is
trained, the optimizer, the scheduler, random numbers, and the place in the data.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cogcache.errors import TrainingError
from cogcache.models import sync_file
from cogcache.system import make_folder, remove_dead, sync_folder, temporary_name
from cogcache.training.lora import trained_parameters

TRAINED, OPTIMIZER, STATE, PLACE = (
    "trained.safetensors",
    "optimizer.safetensors",
    "state.json",
    "trainer_state.json",
)
"""The last is the name under which transformers' Trainer looks for where a run is."""
_HINT: Final = "remove that folder to go on from the checkpoint before it"


def folder_of(out: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return out / "checkpoints" / f"step-{step:08}"


def last(out: Path) -> Path | None:
    """Return the newest checkpoint of a run."""
    found = sorted((out / "checkpoints").glob("step-????????"))
    return found[-1] if found else None


def write(out: Path, trainer: Any) -> Path:
    """Write a checkpoint of a transformers Trainer as it is now, and remove those not needed.

    Returns:
        Its folder.
    """
    folder = folder_of(out, trainer.state.global_step)
    make_folder(folder.parent)
    if not folder.exists():
        remove_dead([folder.parent])
        partial = temporary_name(folder)
        try:
            partial.mkdir()
            _fill(partial, trainer)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(folder.parent)
    _remove_older(out, folder, trainer.state.best_global_step)
    return folder


def _fill(folder: Path, trainer: Any) -> None:
    save_file(_trained_state(trainer.model), folder / TRAINED)
    tensors, rest = _packed(trainer.optimizer.state_dict())
    tensors |= {f"random.{name}": each for name, each in _random_tensors().items()}
    save_file(tensors, folder / OPTIMIZER)
    scaler = trainer.accelerator.scaler
    state = {
        "optimizer": rest,
        "scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "random": {"python": random.getstate(), "numpy": _numpy_state()},
    }
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    trainer.state.save_to_json(str(folder / PLACE))
    for name in (TRAINED, OPTIMIZER, STATE, PLACE):
        sync_file(folder / name)
    sync_folder(folder)


def _remove_older(out: Path, newest: Path, best_step: int | None) -> None:
    """Delete all checkpoints but the newest and the best."""
    kept = {newest, folder_of(out, best_step) if best_step else newest}
    for folder in (out / "checkpoints").glob("step-????????"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def read_trained(folder: Path, model: nn.Module) -> None:
    """Put what a checkpoint holds of the trained weights into a model.

    Raises:
        TrainingError: it cannot be read, or is of another model.
    """
    stored = _load(folder / TRAINED)
    wanted = trained_parameters(model)
    if stored.keys() != wanted.keys():
        differing = sorted(stored.keys() ^ wanted.keys())
        problem = f"{folder / TRAINED} and the model differ in {len(differing)} tensors, such as "
        raise TrainingError(problem + differing[0], _HINT)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])


def read_optimizer(folder: Path, trainer: Any) -> None:
    """Put optimizer, scheduler and scaler of a checkpoint into a Trainer."""
    tensors, state = _load(folder / OPTIMIZER), _state(folder)
    own = {name: each for name, each in tensors.items() if not name.startswith("random.")}
    trainer.optimizer.load_state_dict(_unpacked(own, state["optimizer"]))
    trainer.lr_scheduler.load_state_dict(state["scheduler"])
    if state["scaler"] is not None and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])


def read_random(folder: Path) -> None:
    """Set all random numbers to go on as they would have behind a checkpoint."""
    tensors, state = _load(folder / OPTIMIZER), _state(folder)["random"]
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *others = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *others))


def _trained_state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: each.detach().cpu().contiguous() for name, each in trained_parameters(model).items()
    }


def _random_tensors() -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _numpy_state() -> list[Any]:
    kind, keys, *others = np.random.get_state()
    return [kind, [int(key) for key in keys], *others]


def _packed(optimizer: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state in two parts: tensors by name, and the rest for JSON."""
    tensors: dict[str, Tensor] = {}
    of_each: Mapping[int, Mapping[str, Any]] = optimizer["state"]
    rest = {str(index): _without(tensors, str(index), each) for index, each in of_each.items()}
    return tensors, {"state": rest, "param_groups": optimizer["param_groups"]}


def _without(tensors: dict[str, Tensor], path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Move tensors over, by their path; bitsandbytes keeps those in 8 bits a table deeper."""
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            # Cloned: two of them may share their memory, which a file cannot say.
            tensors[f"{path}.{name}"] = value.detach().cpu().clone().contiguous()
        else:
            is_table = isinstance(value, Mapping)
            rest[name] = _without(tensors, f"{path}.{name}", value) if is_table else value
    return rest


def _unpacked(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in rest["state"].items()}
    for name, tensor in tensors.items():
        index, *tables, field = name.split(".")
        values = state[int(index)]
        for table in tables:
            values = values[table]
        values[field] = tensor
    groups = [
        {name: tuple(each) if name == "betas" else each for name, each in group.items()}
        for group in rest["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", _HINT) from error


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise TrainingError(f"{folder / STATE} cannot be read: {error}", _HINT) from error
    if not isinstance(state, dict):
        raise TrainingError(f"{folder / STATE} is no state of a training run", _HINT)
    return state
