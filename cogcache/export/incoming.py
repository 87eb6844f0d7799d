"""Captions from elsewhere, line by line: JSONL, CSV, or a folder of texts beside videos."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cogcache.errors import ConfigError

HINT: Final = "nothing was imported; lines are those of `cogcache export OUT.jsonl`"
_LATEST_S: Final = 1e9
"""Thirty years, in seconds: longer than any video."""
_MAX_TEXT: Final = 2**15
"""Letters of a caption or a prompt."""
_NUMBERS: Final = ("start_s", "end_s")
_NAMES: Final = ("video", "video_path", "media_path", "file_name", "path")
"""Names of the column with the video, ours and those of trainers; the first one found counts."""
_TEXTS: Final = ("caption", "text")


@dataclass(frozen=True, slots=True)
class Line:
    """A caption from elsewhere."""

    where: str
    """The file, and the line of it, for messages."""
    content: Mapping[str, Any]
    """By the column names of an export."""
    beside: Path | None = None
    """The folder that relative video names start from."""


def lines_of(source: Path) -> Iterator[Line]:
    """Yield the captions of a file or a folder.

    Args:
        source: a `.csv` file with a heading, any other file as JSONL, or a folder in which each
            `.txt` file, at any depth, is the caption of the video of the same name.

    Raises:
        ConfigError: something in it cannot be read.
    """
    if source.is_dir():
        yield from _beside(source)
    elif source.suffix.lower() == ".csv":
        yield from _table(source)
    elif source.suffix.lower() in (".vtt", ".srt", ".txt", ".parquet", ".xlsx"):
        problem = f"{source} is none of JSONL, CSV, or a folder of .txt files beside videos"
        raise ConfigError(problem, "correct what `cogcache export OUT.jsonl` or OUT.csv writes")
    else:
        yield from _json_lines(source)


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8", HINT) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}", HINT) from error


def _json_lines(file: Path) -> Iterator[Line]:
    for number, text in enumerate(_read(file).replace("\r\n", "\n").split("\n"), 1):
        if text.strip():
            yield _checked(f"{file}, line {number}", partial(json.loads, text), file.parent)


def _table(file: Path) -> Iterator[Line]:
    """Yield the rows of a CSV file; an empty cell is no value."""
    # Line breaks within a cell stay as they are; not all that splitlines() parts ends a row.
    table = csv.DictReader(io.StringIO(_read(file), newline=""), strict=True)
    if not {*_TEXTS} & {*(table.fieldnames or ())}:
        raise ConfigError(f"{file} has no column `caption`", "its first line has to be a heading")
    try:
        for row in table:
            where = f"{file}, line {table.line_num}"
            if None in row or None in row.values():
                raise ConfigError(f"{where}: it has not as many cells as the heading", HINT)
            cells = {name: value for name, value in row.items() if value != ""}
            yield _checked(where, partial(_with_numbers, cells), file.parent)
    except csv.Error as error:
        raise ConfigError(f"{file}, line {table.line_num}: {error}", HINT) from error


def _with_numbers(cells: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {name: v for name, v in cells.items() if name != "edits"}
    return row | {name: float(cells[name]) for name in _NUMBERS if name in cells}


def _beside(folder: Path) -> Iterator[Line]:
    """Yield what the text files of a folder say of the videos of the same name."""
    for file in sorted(folder.rglob("*.txt")):
        if not (file.is_file() and file.resolve().is_relative_to(folder.resolve())):
            raise ConfigError(
                f"{file} is no file of {folder}, or a link that leads out of it", HINT
            )
        text = _read(file).strip()
        name = str(file.relative_to(folder).with_suffix(""))
        yield _checked(str(file), partial(dict, stem=name, caption=text), folder)


def _checked(where: str, read: Callable[[], Any], beside: Path) -> Line:
    try:
        row = read()
    except ValueError as error:
        raise ConfigError(f"{where}: {error}", HINT) from error
    except RecursionError:
        raise ConfigError(f"{where}: it is nested too deep", HINT) from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: it is no JSON object", HINT)
    row = _named(row)
    if fault := _fault(row):
        raise ConfigError(f"{where}: {fault}", HINT)
    return Line(where, row, beside)


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the names of an export's columns in place of those of trainers."""
    found = dict(row)
    for own, others in (("video", _NAMES), ("caption", _TEXTS)):
        named = next((row[name] for name in others if name in row), None)
        if named is not None:
            found[own] = named
    return found


def _fault(row: Mapping[str, Any]) -> str:
    if not isinstance(row.get("caption"), str) or not row["caption"].strip():
        return "it has no caption"
    for name in _NUMBERS:
        value = row.get(name)
        if not isinstance(value, int | float | None):
            return f"{name} is no number"
        if value is not None and not 0 <= value <= _LATEST_S:  # NaN is in no bounds
            return f"{name} is no time in a video"
    for name in ("prompt_name", "prompt"):
        if not isinstance(row.get(name, ""), str):
            return f"{name} is no text"
    longest = max(len(row.get(name, "")) for name in ("caption", "prompt_name", "prompt"))
    return f"it has a text of more than {_MAX_TEXT} letters" if longest > _MAX_TEXT else ""
