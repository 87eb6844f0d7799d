"""JSON schemas that captions are to follow, as settings hold them: the schema's own text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def text_of(value: Any) -> Any:
    """Return the schema in a file, or the schema itself, as JSON without blanks.

    The order of its keys stays: members are generated in it.

    Args:
        value: the path of a file, or JSON, which begins with a brace; anything else is returned
            as it is.

    Raises:
        ValueError: the file cannot be read, or it holds no JSON object.
    """
    if not isinstance(value, str) or not value:
        return value
    is_json = value.lstrip().startswith("{")
    name = "the JSON schema" if is_json else value
    try:
        schema = json.loads(value if is_json else Path(value).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{value} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"{name} is no JSON schema: it should hold an object, {{…}}")  # noqa: TRY004
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def digest(schema: str) -> str:
    """Return the SHA-256 of a schema's text."""
    return hashlib.sha256(schema.encode()).hexdigest()
