"""What all tables of settings share: how strict they are, and types of values."""

from __future__ import annotations

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


class Table(BaseModel):
    """What all tables share: frozen, strict types, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
