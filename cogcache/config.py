"""Settings: frozen, validated once, the same in TOML files, in options and in the docs.

Defaults are overridden by a TOML file, the file by options. A key's name is unique over all
tables, so that ``max_frames`` under ``[sampling]`` is ``--max-frames`` on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from cogcache import schemas, templates
from cogcache.settings_base import (
    AtLeastOne,
    NoneIfEmpty,
    NoneIfZero,
    Positive,
    PromptName,
    PromptText,
    Table,
    Texts,
)
from cogcache.settings_clips import Clips, Sampling, Summary
from cogcache.settings_errors import explain, unknown_key
from cogcache.settings_machines import Machines
from cogcache.toml_file import read_toml

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


class Vision(Table):
    """Stage one: how the vision half runs and how features are stored."""

    vision_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the vision half's weights and of the stored features. Part of the feature key."""
    cache_point: Literal["projected", "pooled"] = "projected"
    """Which output is cached; `projected`: after the projector, as the language half reads it;
    `pooled`: before it, at less than half the size, and the projector becomes a part of the
    language half (CogVLM2-Video only). Part of the feature key."""
    compile: bool = False
    """Compile vision blocks (torch.compile); features get other last bits. In the feature key."""
    compression: Literal["none", "zstd", "blosc2"] = "zstd"
    """Lossless compression of feature files; all of them are read alike."""
    frames_per_batch: AtLeastOne = 48
    """Most frames, over all clips, that one vision pass takes; halved when memory runs out."""
    decode_workers: AtLeastOne = 2
    """Processes that decode and preprocess videos; with several devices or Ray, for each worker."""
    decode_timeout_s: Positive = 120.0
    """Seconds after which the decoding of one clip is given up and listed as a failure."""
    decode_memory_gib: Annotated[float | None, Field(gt=0), NoneIfZero] = 6.0
    """GiB that one decode worker may take; a clip that takes more is listed as a failure
    (decode_memory); 0 for any."""
    recycle_clips: Annotated[int | None, Field(ge=1), NoneIfZero] = 1000
    """Clips after which a decode worker, as decoders leak, is replaced by a fresh one; 0: never."""
    recycle_growth_gib: Positive = 1.0
    """GiB by which a decode worker may grow from clip to clip before it is replaced."""


class Language(Table):
    """Stage two: how the language half is loaded and how prompts meet features."""

    quantization: Literal["nf4", "fp4", "int8", "none"] = "nf4"
    """Precision of the decoder's linear weights in memory; `none` keeps them in compute_dtype."""
    double_quant: bool = True
    """Quantise the scales of 4-bit weights too, 0.4 bits a weight less; `nf4` and `fp4` only."""
    head_quantization: Literal["none", "int8", "nf4"] = "none"
    """Precision of the output head's weights; other than `none` may change a caption's words."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the language half's arithmetic and of its weights that are not quantised."""
    layout: Literal["chat", "base", "vqa"] = "chat"
    """How a prompt is laid out around the features; `chat`: an index after each frame, then a
    question; `base`: frames, then the prompt as it is; `vqa`: as `chat`, for a short answer."""
    text_only: Texts = ()
    """Name of a prompt that is asked without the video, of the captions that it names alone."""
    rotary_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type that rotary tables are built in; `bfloat16` is what the published bfloat16 run does."""
    clips_per_batch: AtLeastOne = 8
    """Most clips that are decoded together; halved when memory runs out."""
    keep_prefix: Annotated[str | None, NoneIfEmpty] = None
    """Folder that keeps each clip's video part as the language half has run it, so that a later
    prompt starts at once; `plan` says its size, some 200 MiB a clip; "" for none."""


class Generation(Table):
    """How tokens are chosen. Part of the caption key."""

    max_new_tokens: AtLeastOne = 256
    """Most tokens of one caption; one that does not end before is flagged."""
    do_sample: bool = False
    """Draw tokens by their probability; otherwise always take the likeliest, the same each time."""
    temperature: Positive = 1.0
    """Above 1 draws more freely, below 1 more strictly; only with do_sample."""
    top_p: Annotated[Positive, Field(le=1)] = 1.0
    """Draw from the likeliest tokens that reach this share together; only with do_sample."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Draw from this many of the likeliest tokens, 0 from all; only with do_sample."""
    num_beams: AtLeastOne = 1
    """Continuations followed side by side; memory grows with it."""
    repetition_penalty: Positive = 1.0
    """Above 1 makes tokens that were already used less likely."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Start of the random numbers that do_sample draws with; each caption has its own."""
    n: AtLeastOne = 1
    """Captions of each clip with each prompt; more than one only with do_sample."""
    stop: Texts = ()
    """Texts any of which ends a caption and is left out of it; "" for none."""
    json_schema: Annotated[str | None, NoneIfEmpty, BeforeValidator(schemas.text_of)] = None
    """File with a JSON schema that each caption follows, or the schema itself; "" for none (needs
    llguidance: `pip install 'cogcache[structured]'`)."""
    retry: bool = True
    """Make a caption that is empty, loops or has no end once more with other settings, and keep
    the better one."""

    @model_validator(mode="after")
    def _sampling_options_need_sampling(self) -> Self:
        """An option without effect would also make a caption key of its own."""
        for name in ("temperature", "top_p", "top_k"):
            default = type(self).model_fields[name].default
            if not self.do_sample and getattr(self, name) != default:
                raise ValueError(
                    f"{name} = {getattr(self, name)} has no effect while do_sample is false: "
                    f"set do_sample to true, or leave {name} at {default}"
                )
        if self.n > 1 and not self.do_sample:
            raise ValueError(
                f"n = {self.n} would make one caption {self.n} times while do_sample is false: "
                "set do_sample to true, or leave n at 1"
            )
        if self.stop and self.json_schema:
            raise ValueError("stop texts would cut JSON off: leave out stop or json_schema")
        return self


class Limits(Table):
    """When a run ends before its work does, and what it lets pass. Part of no key."""

    limit: Annotated[int | None, Field(ge=1), NoneIfZero] = None
    """Most clips that one run makes (`caption`: most captions); 0 makes all."""
    max_hours: Annotated[float | None, Field(gt=0), NoneIfZero] = None
    """Hours after which a run takes up no more work, both stages of `run` together; 0 for no
    end."""
    min_free_gib: Annotated[float, Field(ge=0)] = 2.0
    """GiB that have to stay free on the cache's disk; a run ends before it takes them."""
    strict: bool = False
    """Fail clips at whose decoding anything was wrong, in place of noting it beside them."""


class Settings(Table):
    """All that a run can be told. Made by `load_settings`."""

    model: Annotated[str, Field(min_length=1)] = "tiny"
    """Model to caption with: `tiny`, a checkpoint's folder, or a Hugging Face hub id."""
    revision: Annotated[str | None, NoneIfEmpty] = None
    """Commit, tag or branch of a hub id; "" takes the newest."""
    device: Annotated[str, Field(pattern=r"^(auto|mps|(cpu|cuda|xpu)(:\d+)?)$")] = "auto"
    """Where the halves run: `auto` is the first GPU, else the CPU; or `cpu`, `cuda`, `cuda:1`."""
    memory: Annotated[str, Field(pattern=r"^(auto|\d+(\.\d+)?\s*([KMG]i?)?B)$")] = "auto"
    """Memory that a stage may fill, such as `8GiB`: a GPU's, or on the CPU the whole process';
    `auto` is what is free, also of a container. Parts of a half that do not fit wait elsewhere."""
    sampling: Sampling = Sampling()
    clips: Clips = Clips()
    vision: Vision = Vision()
    language: Language = Language()
    generation: Generation = Generation()
    summary: Summary = Summary()
    limits: Limits = Limits()
    machines: Machines = Machines()
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


def load_settings(
    path: Path | None = None, overrides: Mapping[str, object] | None = None
) -> Settings:
    """Return the defaults, overridden by a TOML file, overridden by ``overrides``.

    Args:
        path: a TOML file; each of its keys is optional.
        overrides: values by key (``{"max_frames": 12}``), ``prompts`` and ``prompt_sets`` by name,
            and ``prompt_set``, the names of the sets to take. None means "not given".

    Raises:
        ConfigError: the file cannot be read; a key is unknown, of the wrong type or out of range.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    chosen: Any = given.pop("prompt_set", ())
    values = read_toml(path) if path else {}
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
        if isinstance(field.default, Table):
            model = type(field.default)
            tables[name] = [_leaf(leaf, name, model) for leaf in model.model_fields]
        elif name not in _PROMPTS:
            tables["model"].append(_leaf(name, "model", Settings))
    return tables


_PROMPTS = ("prompts", "prompt_sets")
_LEAVES = _tables()
TABLES = tuple(_LEAVES)
"""The names that `leaves` takes: "model", then the tables of a TOML file."""
