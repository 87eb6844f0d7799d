"""Rows for a reader or, as one JSON array, for a program."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from cogcache.units import format_bytes, printable

Rows = Iterable[Mapping[str, Any]]
NARROWEST = 12


def as_json(rows: Rows) -> str:
    """Return rows as one JSON array, a row a line."""
    lines = ",\n".join(json.dumps(dict(row), ensure_ascii=False, default=str) for row in rows)
    return f"[\n{lines}\n]" if lines else "[]"


def as_table(rows: Rows, columns: Sequence[str]) -> str:
    """Return the given columns of rows as a table as wide as the terminal; long texts wrap."""
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    if not cells:
        return "nothing to list"
    widths = _widths([list(columns), *cells])
    # tabulate's own wrapping takes texts for values: "False" would become True, "1,000" an error.
    wrapped = [[_wrapped(*pair) for pair in zip(row, widths, strict=True)] for row in cells]
    return tabulate(wrapped, headers=list(columns), disable_numparse=True)


def side_by_side(rows: Rows) -> list[dict[str, Any]]:
    """Return a row a clip from one a caption, oldest first; of one prompt the newest counts.

    A row has ``video``, ``start_s``, ``end_s``, ``offset_s`` and ``captions``, by the name of the
    prompt.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        place = {name: row[name] for name in ("video", "start_s", "end_s", "offset_s")}
        of_clip = found.setdefault((*place.values(),), {**place, "captions": {}})
        of_clip["captions"][row["prompt_name"]] = row["caption"]
    return list(found.values())


def _cell(column: str, value: object) -> str:
    if column == "video" and isinstance(value, str):
        value = min(value, os.path.relpath(value), key=len)
    if column.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    return _text(value)


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return "" if value is None else printable(str(value))


def _wrapped(text: str, width: int) -> str:
    # A name is never broken: a path may be, behind a slash.
    parts = text.replace("/", "/\0 ") if " " not in text else text
    lines = textwrap.wrap(parts, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("/\0 ", "/").replace("/\0", "/")


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    """Share the terminal's width: narrow columns keep theirs, wide ones divide the rest."""
    wanted = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    room = shutil.get_terminal_size((120, 24)).columns - 2 * len(wanted)
    while sum(wanted) > room and max(wanted) > NARROWEST:
        widest = wanted.index(max(wanted))
        wanted[widest] = max(NARROWEST, wanted[widest] - max(1, (sum(wanted) - room) // 2))
    return [max(1, width) for width in wanted]
