"""Rows for a reader or, as one JSON array, for a program."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from cogcache.units import format_bytes, printable

Rows = Iterable[Mapping[str, Any]]
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def as_json(rows: Rows) -> str:
    """Return rows as one JSON array, a row a line."""
    encode = json.JSONEncoder(ensure_ascii=False, default=str).encode  # one for all rows is quicker
    lines = ",\n".join([encode(row if isinstance(row, dict) else dict(row)) for row in rows])
    return f"[\n{lines}\n]" if lines else "[]"


def as_table(rows: Rows, columns: Sequence[str]) -> str:
    """Return the given columns of rows as a table as wide as the terminal; long texts wrap.

    Names are not broken but behind a slash. Where they leave no room for a table, each row is a
    paragraph with a line a column.
    """
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    if not cells:
        return "nothing to list"
    widths = _widths([list(columns), *cells])
    if widths is None:
        return _as_paragraphs(cells, columns)
    # tabulate's own wrapping takes texts for values: "False" would become True, "1,000" an error.
    wrapped = [[_wrapped(*pair) for pair in zip(row, widths, strict=True)] for row in cells]
    titles = [_wrapped(*pair, behind="_") for pair in zip(columns, widths, strict=True)]
    used = [max(map(_width, column)) for column in zip(titles, *wrapped, strict=True)]
    rules = ["-" * width for width in used]
    # The titles go as a row: tabulate would keep two more blanks free beside each of them.
    lines = [titles, rules, *wrapped]
    return str(tabulate(lines, tablefmt="plain", disable_numparse=True))


def _as_paragraphs(cells: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    """Return rows one below the other: a name that is longer than the terminal stays whole."""
    indent = max(map(len, columns)) + 2
    room = max(1, shutil.get_terminal_size((120, 24)).columns - indent)
    following = "\n" + " " * indent
    return "\n\n".join(
        "\n".join(
            f"{name:{indent}}{_wrapped(text, room).replace(chr(10), following)}"
            for name, text in zip(columns, row, strict=True)
            if text
        )
        for row in cells
    )


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
    if column.endswith("_at") and isinstance(value, str) and _TIME.match(value):
        return value[:19].replace("T", " ")
    return _text(value)


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return "" if value is None else printable(str(value))


def _pieces(text: str, behind: str) -> list[str]:
    """Return the pieces of a text that stay whole, each with the blank or sign that ends it.

    A text without blanks is a name: it may be broken behind one sign alone.
    """
    return re.findall(r"[^ ]* ?" if " " in text else f"[^{behind}]*{behind}?", text)[:-1]


def _wrapped(text: str, width: int, behind: str = "/") -> str:
    """Return a text in lines of a width, filled with its pieces."""
    lines = [""]
    for piece in _pieces(text, behind):
        if lines[-1] and len(f"{lines[-1]}{piece}".rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _least(text: str, behind: str = "/") -> int:
    """Return the width that a text needs at least: that of its longest piece."""
    return max((len(piece.rstrip()) for piece in _pieces(text, behind)), default=0)


def _widths(cells: Sequence[Sequence[str]]) -> list[int] | None:
    """Share the terminal's width: narrow columns keep theirs, wide ones divide the rest.

    Returns:
        A width a column; None where the names in them leave no room.
    """
    titles, *rows = cells
    columns = range(len(titles))
    wanted = [max(len(row[i]) for row in cells) for i in columns]
    least = [max(_least(titles[i], behind="_"), *(_least(row[i]) for row in rows)) for i in columns]
    room = shutil.get_terminal_size((120, 24)).columns - 2 * (len(wanted) - 1)
    if sum(least) > room:
        return None
    while sum(wanted) > room:
        widest = max(columns, key=lambda i: wanted[i] if wanted[i] > least[i] else 0)
        step = max(1, (sum(wanted) - room) // 4)
        wanted[widest] = max(least[widest], wanted[widest] - step)
    return [max(1, width) for width in wanted]
