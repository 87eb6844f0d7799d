"""What all tables of settings share: how strict they are, and types of values."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

PROMPT_NAME = r"[\w-]+"

AtLeastOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
PromptName = Annotated[str, Field(pattern=rf"^{PROMPT_NAME}$")]
# Blanks around a prompt go, as they do on the command line: a key must not depend on the way.
PromptText = Annotated[str, Field(pattern=r"\S"), AfterValidator(str.strip)]

# TOML has no null: 0 and "" stand for None, so that a complete file can say it.
NoneIfZero = BeforeValidator(lambda value: None if value == 0 and value is not False else value)
NoneIfEmpty = BeforeValidator(lambda value: None if value == "" else value)


def _as_texts(value: Any) -> Any:
    """Take one text for a list of it, and leave out empty ones, which stand for none."""
    some = [value] if isinstance(value, str) else value
    return tuple(each for each in some if each != "") if isinstance(some, list | tuple) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]
"""Any number of texts; a single one need not be in a list."""


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMG])(iB|B)?|B)", re.IGNORECASE)


def as_size(value: Any) -> Any:
    """Return a size of memory as `8GiB` or `8GB`: `8G` and `8gib` are 8GiB, `8gb` is 8GB."""
    if not isinstance(value, str) or value == "auto":
        return value
    text = value.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(f"{value!r} has no unit: write --memory {text}GiB")
    if (found := _SIZE.fullmatch(text)) is None:
        raise ValueError(f'memory must be auto, or a size such as 8GiB, not "{value}"')
    number, unit, kind = found.groups()
    if unit is None:
        return f"{number}B"
    return f"{number}{unit.upper()}{'B' if (kind or '').lower() == 'b' else 'iB'}"


MemorySize = Annotated[str, BeforeValidator(as_size)]
"""`auto`, or a size with its unit."""


class Table(BaseModel):
    """What all tables share: frozen, strict types, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,  # `--help` validates nothing
    )
