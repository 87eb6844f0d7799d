"""Turns pydantic's errors into messages that name TOML keys and options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cogcache.errors import ConfigError

_MAX_SHOWN = 5
_WANTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "dict_type": 'a table of lines like name = "text"',
    "model_type": "a table, a line with its name in brackets",
    "model_attributes_type": "a table, a line with its name in brackets",
    "finite_number": "a finite number",
    "string_too_short": "a text that is not empty",
    "too_short": "a table with at least one line",
}
_PROMPTS = ("prompts", "prompt_sets")
"""Keys that two options fill: one text of one, a file of the other."""
_PATTERNS = {
    "device": "one of auto, cpu, cuda, cuda:1, mps, xpu",
    "memory": "auto, or a size such as 8GiB",
    "prompt name": "named with letters, digits, - and _ only",
}


def explain(
    error: ValidationError,
    tables: Mapping[str, str],
    *,
    source: str,
    given: Mapping[str, object],
) -> ConfigError:
    """Return the error to show for what pydantic found.

    Args:
        error: all that is wrong.
        tables: the table of each key; "model" for the keys above all tables.
        source: the TOML file, for the values that are not in ``given``.
        given: values by key that came from options.
    """
    found = error.errors(include_url=False)
    unknown = [each for each in found if each["type"] == "extra_forbidden"]
    if unknown:
        place, is_table = tuple(map(str, unknown[0]["loc"])), isinstance(unknown[0]["input"], dict)
        return unknown_key(place, tables, source=source, is_table=is_table)
    # A set of prompts that is chosen stands among the prompts, too.
    problems = list(dict.fromkeys(_problem(each, tables, source, given) for each in found))
    if len(problems) > _MAX_SHOWN:
        problems[_MAX_SHOWN:] = [f"and {len(problems) - _MAX_SHOWN} more"]
    name = str((found[0]["loc"] or ("",))[-1])
    hint = f"set {_place(name, tables)} in the file of --config, or give {_option(name)}"
    return ConfigError(
        "\n".join(problems), hint if name in tables else "see `cogcache help settings`"
    )


def unknown_key(
    place: tuple[str, ...],
    tables: Mapping[str, str],
    *,
    source: str = "",
    is_table: bool = False,
) -> ConfigError:
    """Return the error for a key that no table has; its hint is the nearest one.

    Args:
        place: the key, with its table in front where it stands under one.
        tables: the table of each key; "model" for the keys above all tables.
        source: the TOML file, if the key stands in one.
        is_table: whether it was written as a table, [name].
    """
    name, table = place[-1], place[0] if len(place) > 1 else "model"
    here = [key for key, home in tables.items() if home == table]
    names = [*here, *tables, *(set(tables.values()) - {"model"})]
    if is_table:
        names = sorted(set(tables.values()) - {"model"})
    nearest = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    under = f" under [{table}]" if table != "model" else ""
    hint = f"known here: {', '.join(here)}; `cogcache help settings` has them all"
    if nearest and nearest[0] in tables:
        hint = f"did you mean {_place(nearest[0], tables)}?"
    elif nearest:
        hint = f"did you mean the table [{nearest[0]}]?"
    return ConfigError(f"{source}{': ' if source else ''}unknown key {name!r}{under}", hint)


def _problem(
    found: Any, tables: Mapping[str, str], source: str, given: Mapping[str, object]
) -> str:
    keys = [str(key) for key in found["loc"] if key != "[key]"]
    name = keys[-1] if keys else ""
    origin = next((_option(key) for key in keys if key in given), source)
    if found["type"] == "value_error":
        if not any(key in tables for key in keys):
            # A rule over several keys: its text names them all.
            origin = ", ".join([*map(_option, given)] or [source])
        return f"{origin}: {found['ctx']['error']}"
    value = found["input"]
    shown = (
        "" if isinstance(value, dict) or found["loc"][-1] == "[key]" else f", not {_toml(value)}"
    )
    place = f"prompt {name!r}" if keys[:-1] and keys[0] in _PROMPTS else _place(name, tables)
    return f"{origin}: {place} must be {_wanted(found, keys)}{shown}"


def _wanted(found: Any, keys: list[str]) -> str:
    kind = found["type"]
    if kind == "literal_error":
        return f"one of {found['ctx']['expected'].replace(chr(39), '')}"
    if kind == "string_pattern_mismatch":
        name = "prompt name" if found["loc"][-1] == "[key]" else keys[-1]
        return _PATTERNS.get(name, "a text that is not empty")  # else it is a prompt
    return _WANTED.get(kind) or str(found["msg"]).removeprefix("Input should be ")


def _place(name: str, tables: Mapping[str, str]) -> str:
    table = tables.get(name, "model")
    return name if table == "model" else f"{name} under [{table}]"


def _option(name: str) -> str:
    return "--prompt or --prompts" if name in _PROMPTS else "--" + name.replace("_", "-")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
