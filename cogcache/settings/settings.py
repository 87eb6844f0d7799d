"""Settings: frozen, validated once, the same in TOML files, in options and in the docs.

Defaults are overridden by a TOML file, the file by options. A key's name is unique over all
tables, so that ``max_frames`` under ``[sampling]`` is ``--max-frames`` on the command line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, Field, ValidationError, model_validator

from cogcache.settings import templates
from cogcache.settings.explain import explain, unknown_key
from cogcache.settings.fields import MemorySize, NoneIfEmpty, PromptName, PromptText, Table
from cogcache.settings.inference import Inference
from cogcache.settings.machines import Limits, Machines
from cogcache.settings.stage_one import Clips, Sampling, Vision
from cogcache.settings.stage_two import Generation, Language, Quality, Summary
from cogcache.settings.toml_files import read_toml
from cogcache.settings.training import Distillation, Training

DEFAULT_PROMPT = "Please describe this video in detail."
DEFAULT_PROMPTS = {"default": DEFAULT_PROMPT}


def _distinct(prompts: dict[str, str]) -> dict[str, str]:
    """Refuse two names of one prompt: a caption is known by the prompt's text, and has one name."""
    names: dict[str, str] = {}
    for name, text in prompts.items():
        if names.setdefault(text, name) != name:
            raise ValueError(f"{names[text]!r} and {name!r} are the same prompt: leave one out")
    return prompts


Prompts = Annotated[
    dict[PromptName, PromptText],
    Field(min_length=1),
    AfterValidator(_distinct),
    AfterValidator(templates.check),
]


class Settings(Table):
    """All that a run can be told. Made by `load_settings`.

    Example:
        >>> settings = load_settings(None, {"model": "tiny", "quantization": "none"})
        >>> settings.language.quantization, settings.sampling.max_frames
        ('none', 24)
    """

    model: str = ""
    """Model to caption with: a checkpoint's folder, a Hugging Face hub id, or `tiny`, which knows
    only moving coloured shapes; "" for the one that the cache remembers."""
    revision: Annotated[str | None, NoneIfEmpty] = None
    """Commit, tag or branch of a hub id; "" takes the newest."""
    profile: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    """Name under which the cache remembers model, sampling and cuts: taken from there where it is
    known, else remembered so; "" for the first one of the model."""
    device: Annotated[str, Field(pattern=r"^(auto|mps|(cpu|cuda|xpu)(:\d+)?)$")] = "auto"
    """Where the halves run: `auto` is the first GPU, else the CPU; or `cpu`, `cuda`, `cuda:1`."""
    memory: MemorySize = "auto"
    """Memory that a stage may fill, such as `8GiB`: a GPU's, or on the CPU the whole process';
    `auto` is what is free, also of a container. Parts of a half that do not fit wait elsewhere."""
    sampling: Sampling = Field(default_factory=Sampling)
    clips: Clips = Field(default_factory=Clips)
    vision: Vision = Field(default_factory=Vision)
    language: Language = Field(default_factory=Language)
    inference: Inference = Field(default_factory=Inference)
    generation: Generation = Field(default_factory=Generation)
    summary: Summary = Field(default_factory=Summary)
    quality: Quality = Field(default_factory=Quality)
    limits: Limits = Field(default_factory=Limits)
    machines: Machines = Field(default_factory=Machines)
    training: Training = Field(default_factory=Training)
    distillation: Distillation = Field(default_factory=Distillation)
    prompts: Prompts = Field(default=DEFAULT_PROMPTS)
    """Prompts by name; each clip is captioned with all of them."""
    prompt_sets: dict[PromptName, Prompts] = Field(default={})
    """Further prompts, in sets of which --prompt-set takes one or several in place of `prompts`."""

    @model_validator(mode="after")
    def _text_only_prompts_have_something_to_go_by(self) -> Self:
        sets = (*self.prompt_sets.values(), self.prompts)
        templates.check_text_only(self.language.text_only, sets)
        return self

    @model_validator(mode="after")
    def _the_backend_has_the_precision(self) -> Self:
        if self.language.quantization == "fp8" and not self.inference.is_vllm:
            raise ValueError("quantization fp8 needs backend vllm; give nf4, int8, int4 or none")
        return self

    @model_validator(mode="after")
    def _summaries_and_prompts_fit(self) -> Self:
        self.summary.check(self.prompts)
        return self


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting, as the command line and the docs need it."""

    name: str
    """The key in TOML; unique over all tables."""
    table: str
    """The table that the key stands under; "model" for keys above all tables."""
    type: type[bool] | type[int] | type[float] | type[str]
    choices: tuple[str, ...]
    """The texts that are allowed; empty where any of the type is."""
    default: bool | int | float | str | tuple[str, ...] | None
    description: str

    @property
    def several(self) -> bool:
        """Whether it takes any number of values."""
        return isinstance(self.default, tuple)

    @property
    def option(self) -> str:
        """The long option: ``--max-frames``."""
        return "--" + self.name.replace("_", "-")


MODEL_VARIABLE: Final = "COGCACHE_MODEL"
"""The environment variable that names the model where no option does."""


def load_settings(
    path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings: defaults < profile < TOML file < environment < ``overrides``.

    Args:
        path: a TOML file; each of its keys is optional.
        overrides: values by key (``{"max_frames": 12}``), ``prompts`` and ``prompt_sets`` by name,
            and ``prompt_set``, the names of the sets to take. None means "not given".
        profile: what the cache remembers, as tables of a TOML file.

    Raises:
        ConfigError: the file cannot be read; a key is unknown, of the wrong type or out of range.

    Example:
        >>> settings = load_settings(None, {"max_frames": 12, "prompts": {"short": "In a word?"}})
        >>> settings.sampling.max_frames, dict(settings.prompts)
        (12, {'short': 'In a word?'})
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    chosen: Any = given.pop("prompt_set", ())
    values = _merged(profile or {}, read_toml(path) if path else {})
    if model := os.environ.get(MODEL_VARIABLE):
        values["model"] = model
    tables = {leaf.name: leaf.table for leaf in leaves(*TABLES)} | dict.fromkeys(_PROMPTS, "model")
    for name, value in given.items():
        if name not in tables:
            raise unknown_key((name,), tables)
        if tables[name] == "model":
            values[name] = value
        elif isinstance(table := values.setdefault(tables[name], {}), dict):
            table[name] = value
    if chosen:
        more: Any = given.get("prompts", {})
        values["prompts"] = templates.union(values.get("prompt_sets"), chosen) | more
        given |= {"prompts": values["prompts"]} if "prompt_sets" in given else {}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise explain(error, tables, source=str(path), given=given) from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables in which what stands above hides what stands below, key by key."""
    merged: dict[str, Any] = dict(below)
    for name, value in above.items():
        beneath = merged.get(name)
        if isinstance(beneath, dict) and isinstance(value, dict):
            merged[name] = {**beneath, **value}
        else:
            merged[name] = value
    return {name: dict(each) if isinstance(each, dict) else each for name, each in merged.items()}


def leaves(*tables: str) -> list[Leaf]:
    """Return the settings of ``tables``, in the order of the file.

    Args:
        tables: names out of `TABLES`; ``"model"`` stands for the keys above all tables.
    """
    return [leaf for table in tables for leaf in _LEAVES[table]]


def _leaf(name: str, table: str, model: type[Table]) -> Leaf:
    field = model.model_fields[name]
    annotation: Any = field.annotation
    kinds = [kind for kind in get_args(annotation) if kind not in (NoneType, Ellipsis)]
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    kind = str if choices else kinds[0] if kinds else annotation
    description = field.description or ""
    return Leaf(name, table, kind, choices, field.default, " ".join(description.split()))


def _tables() -> dict[str, list[Leaf]]:
    tables: dict[str, list[Leaf]] = {"model": []}
    for name, field in Settings.model_fields.items():
        model: Any = field.annotation
        if isinstance(model, type) and issubclass(model, Table):
            tables[name] = [_leaf(leaf, name, model) for leaf in model.model_fields]
        elif name not in _PROMPTS:
            tables["model"].append(_leaf(name, "model", Settings))
    return tables


_PROMPTS = ("prompts", "prompt_sets")
_LEAVES = _tables()
TABLES = tuple(_LEAVES)
"""The names that `leaves` takes: "model", then the tables of a TOML file."""
