"""The files that a training run leaves: its record, the adapter, and a README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

from cogcache.errors import ConfigError, QuantizationError, TrainingError
from cogcache.keys import digest
from cogcache.models import RECORD, Kind
from cogcache.settings import Settings
from cogcache.system import make_folder, pick_device, remove_dead, seal, version_of
from cogcache.training.examples import Chosen

LIBRARIES: Final = ("cogcache", "torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Record:
    """What a run is: the model, the data and the settings. Written before the first step.

    Args:
        model: what the base was called.
        family: of the model.
        language_digest: of the half that is trained.
        settings: of training, and the precision of the base.
        train: digests of what is learnt, by the caption's key.
        held: the same of what is kept for evaluation.
    """

    model: str
    family: str
    language_digest: str
    settings: Mapping[str, Any]
    train: Mapping[str, str]
    held: Mapping[str, str]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        settings: Settings,
        family: str,
        language_digest: str,
        train: Sequence[Chosen],
        held: Sequence[Chosen],
        more: Mapping[str, Any] | None = None,
    ) -> Record:
        """Return the record of a new run."""
        language = settings.language
        wanted = {
            **settings.training.model_dump(exclude={"report_to", "samples"}),
            "quantization": base_kind(settings),
            "double_quant": language.double_quant,
            "rotary_dtype": language.rotary_dtype,
            "layout": language.layout,
            "cache_point": settings.vision.cache_point,
            **(more or {}),
        }
        return cls(
            settings.model,
            family,
            language_digest,
            wanted,
            {each.caption_key: each.content for each in train},
            {each.caption_key: each.content for each in held},
        )

    @property
    def data_digest(self) -> str:
        """Digest of the captions that are trained on."""
        return digest({"train": dict(self.train), "held": dict(self.held)})

    def as_dict(self) -> dict[str, Any]:
        """Return the record as its file has it."""
        return {
            "model": self.model,
            "family": self.family,
            "language_digest": self.language_digest,
            "data_digest": self.data_digest,
            "settings": dict(self.settings),
            "train": dict(self.train),
            "held": dict(self.held),
            "figures": dict(self.figures),
            "made_with": {name: _version(name) for name in LIBRARIES},
        }

    def write(self, out: Path) -> None:
        """Write the record into the folder of the run."""
        content = json.dumps(self.as_dict(), indent=1, ensure_ascii=False)
        seal(out / RECORD, content.encode())


def begin(out: Path, record: Record, names: Mapping[str, str]) -> bool:
    """Make the folder of a run, or see that the run that is there is the same; say which.

    Args:
        out: the folder.
        record: of the run to be.
        names: of captions, by key, for messages.

    Returns:
        Whether there is a run to go on with.

    Raises:
        ConfigError: the folder holds something else.
        TrainingError: the run there has other data or settings; says which.
    """
    remove_dead([out])  # of a run that was killed at its first word
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        make_folder(out.absolute())
        record.write(out)
        return False
    if not (out / RECORD).is_file():
        problem = f"{out} is there already, and is no folder of a training run"
        raise ConfigError(problem, "give a folder that is not there")
    there = _read(out / RECORD)
    if differs := _differences(there, record, names):
        shown = "; ".join(differs[:5])
        problem = f"{out} was begun with something else: {shown}"
        raise TrainingError(problem, "give another folder to begin anew, or what it was begun with")
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", "give another folder") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is no record of a training run", "give another folder")
    return content


def _differences(there: Mapping[str, Any], record: Record, names: Mapping[str, str]) -> list[str]:
    """Return how the run in a folder differs from the one that was asked for."""
    found = [
        f"{name} was {there.get(name)}, is {now} now"
        for name, now in (("model", record.model), ("language_digest", record.language_digest))
        if there.get(name) != now
    ]
    before = there.get("settings", {})
    found += [
        f"{name} was {before.get(name)}, is {now} now"
        for name, now in record.settings.items()
        if before.get(name) != now
    ]
    for part, now in (("train", record.train), ("held", record.held)):
        was = there.get(part, {})
        found += [
            f"the caption of {names.get(key, key[:12])} has changed"
            for key in was.keys() & now.keys()
            if was[key] != now[key]
        ]
        if gone := was.keys() - now.keys():
            found.append(f"{len(gone)} captions of then are not among those chosen now ({part})")
        if new := now.keys() - was.keys():
            found.append(f"{len(new)} captions are new, such as {names[min(new)]} ({part})")
    return found


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError

    try:
        return version_of(package)
    except PackageNotFoundError:
        return None


_ADAPTER: Final = """# An adapter

It holds LoRA matrices for the decoder. The vision half was not loaded, and is not changed.

    cogcache caption --adapter FOLDER --model MODEL --cache CACHE

or, onto the whole model: `peft.PeftModel.from_pretrained(model, "FOLDER")`.
"""
_CHECKPOINT: Final = """# A model with a new language half

Its vision half is that of the model that it was made from, so features of that one serve it too.

    cogcache caption --model FOLDER --cache CACHE
"""


def model_card(record: Record, lines: Sequence[str], *, is_adapter: bool = True) -> str:
    """Return the page of an adapter, or of a model with a new language half: README.md."""
    settings = "\n".join(f"| {name} | {value} |" for name, value in record.settings.items())
    figures = "\n".join(f"| {name} | {value} |" for name, value in record.figures.items())
    text = "\n".join(lines)
    return f"""---
base_model: {record.model}
{"library_name: peft" if is_adapter else "library_name: cogcache"}
tags: [video-captioning, cogcache]
---

{_ADAPTER if is_adapter else _CHECKPOINT}
Trained with cogcache {_version("cogcache")} on cached features, from {record.model} (family
{record.family}); the digest of its language half is `{record.language_digest}`.

| figure | value |
| --- | --- |
{figures}

Trained on {len(record.train)} captions, {len(record.held)} kept for evaluation; digest of the data
`{record.data_digest}`.

| setting | value |
| --- | --- |
{settings}

Captions of clips kept for evaluation, before and after:

```text
{text}
```
"""


def base_kind(settings: Settings) -> Kind:
    """Return how the layers are stored that are trained: what suits captioning best may not do.

    Raises:
        QuantizationError: the kind that is asked for has no gradient.
    """
    asked: str = settings.language.quantization
    if asked == "int4":
        problem = "int4 has no gradient: what is learnt would not reach the layers before"
        raise QuantizationError(problem, "train on --quantization nf4 or none")
    return cast(Kind, "nf4" if asked == "auto" else asked)


def check_method(settings: Settings) -> None:
    """Refuse what cannot be trained.

    Raises:
        ConfigError: all of the decoder is to be trained, but it is quantised; or several devices
            are to be at work.
        TrainingError: the device does not compute in that precision, or the service that figures
            are to go to is not installed.
        QuantizationError: the kind that is asked for has no gradient.
    """
    kind = base_kind(settings)
    if settings.training.method == "full" and kind != "none":
        problem = f"--method full cannot train weights in {kind}"
        raise ConfigError(problem, "give --quantization none, or --method lora")
    if settings.machines.is_distributed:
        raise ConfigError("training works on one device", "leave out --devices and --engine ray")
    if settings.language.adapter is not None:
        problem = "training begins with the model itself, not with an adapter on it"
        raise ConfigError(problem, "leave out --adapter; `cogcache split --adapter` merges one")
    device, service = pick_device(settings.device), settings.training.report_to
    if settings.training.precision == "fp16" and not device.startswith("cuda"):
        raise TrainingError(f"--precision fp16 needs a GPU, not {device}", "give --precision bf16")
    if service and find_spec(service) is None:
        problem = f"--report-to {service} needs {service}, which is not installed"
        raise TrainingError(problem, f"pip install {service}, or leave out --report-to")
