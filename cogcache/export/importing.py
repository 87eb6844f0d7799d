"""Takes captions back that were edited elsewhere, as a caption set of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from cogcache.catalog import (
    CaptionRow,
    Carried,
    Catalog,
    CatalogFile,
    ClipRow,
    Look,
    Placing,
    carried_tables,
    check_carried,
    take_carried,
    tidy_beside,
)
from cogcache.errors import ConfigError
from cogcache.keys import digest

_HINT: Final = "nothing was imported; lines are those of `cogcache export OUT.jsonl`"

_LATEST_S: Final = 1e9
"""Thirty years, in seconds: no video is as long."""
_MAX_TEXT: Final = 2**15
"""Letters of a caption or a prompt."""
CaptionPlace: TypeAlias = tuple[str, float, float | None]


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the file, and the caption that it becomes."""

    number: int
    content: Mapping[str, Any]
    row: CaptionRow


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    written: int
    same: int
    """Captions that the set had already, word for word."""
    reviews: int = 0
    """Versions of reviews that came with the captions, and are new."""


def import_captions(file: Path, catalog: Path, name: str, *, overwrite: bool = False) -> Imported:
    """Add the captions of a JSONL file to the set ``name``: all of them, or none.

    The set stands in the catalog as a model of that name. A clip has one caption a prompt in it.

    Raises:
        CatalogError: the catalog cannot be used.
        ConfigError: a line cannot be read or fits no clip, or the set has another caption there
            and ``overwrite`` is not given, or ``name`` is that of a model.
    """
    if not name.strip() or not name.isprintable():
        raise ConfigError(f"{name!r} cannot be the name of a set", "use letters")
    tidy_beside(catalog)
    with Catalog(catalog) as opened, closing(CatalogFile(catalog)) as tables:
        lines = _rows(file, opened, name)
        rows = [each.row for each in lines]
        carried = _carried(file, tables, opened, lines)
        there = {row["caption_key"]: row for row in opened.captions.rows(model=name)}
        if any(row["quantization"] != "imported" for row in there.values()):
            raise ConfigError(f"{name!r} is a model that made captions", "name the set otherwise")
        new = [row for row in rows if not _is_same(row, there.get(row["caption_key"]))]
        changed = [row for row in new if row["caption_key"] in there]
        if changed and not overwrite:
            problem = f"the set {name!r} has other captions already for {len(changed)} clips"
            raise ConfigError(problem, "replace them with --overwrite, or name another --set")
        written = opened.captions.add(new, replace=True)
        taken = take_carried(tables, carried)
        opened.edits.adopt([*carried])
        return Imported(written, len(rows) - len(new), taken)


def _carried(
    file: Path, tables: CatalogFile, catalog: Catalog, lines: Sequence[_Line]
) -> dict[str, Carried]:
    """Return the rows of captions that lines bear, by the key of the caption that they go to.

    That is the caption that they were exported with, if it is here; else the one of the set.
    """
    named = {key for line in lines if isinstance(key := line.content.get("caption_key"), str)}
    here, known = catalog.captions.known(named), carried_tables(tables)
    found: dict[str, Carried] = {}
    for line in lines:
        rows = check_carried(known, line.content, f"{file}, line {line.number}")
        key = line.content.get("caption_key")
        if rows:
            found[key if key in here else line.row["caption_key"]] = rows
    return found


def _is_same(row: CaptionRow, there: CaptionRow | None) -> bool:
    return there is not None and there["caption"] == row["caption"]


def _rows(file: Path, catalog: Catalog, name: str) -> list[_Line]:
    by_key = {clip["feature_key"]: clip for clip in catalog.clips.rows()}
    lines = [*_lines(file)]
    by_place = {}
    if any(line.get("feature_key") is None for _, line in lines):
        by_place = _by_place(catalog, [*by_key.values()])
    rows: dict[str, _Line] = {}
    for number, line in lines:
        # A key that is not here is that of other bytes, or of other features: the name and the
        # times of its line may be those of another video by now.
        key = line.get("feature_key")
        clip = by_key.get(by_place.get(_place(line), "") if key is None else str(key))
        if clip is None:
            raise ConfigError(f"{file}, line {number}: the cache has no such clip", _HINT)
        row = _row(clip, line, name)
        if row["caption_key"] in rows:
            problem = f"{file}, line {number}: a second caption of the same clip and prompt"
            raise ConfigError(problem, _HINT)
        rows[row["caption_key"]] = _Line(number, line, row)
    return [*rows.values()]


def _by_place(catalog: Catalog, clips: Sequence[ClipRow]) -> dict[CaptionPlace, str]:
    """Return the keys of clips by the names of the files that hold their videos now.

    Where a file is gone, its last name counts; where another video has that name, it does not.
    """
    found = Placing(catalog.holders(), Look("keep")).each(clips, ("feature_key",))
    return {_place(row): row["feature_key"] for row in found.rows if row["video"] is not None}


def _lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8", _HINT) from error
    for number, text in enumerate(lines, 1):
        if text.strip():
            row, fault = _parsed(text)
            if fault:
                raise ConfigError(f"{file}, line {number}: {fault}", _HINT)
            yield number, row


def _parsed(text: str) -> tuple[dict[str, Any], str]:
    """Return a line's row, and what is wrong with it."""
    try:
        row = json.loads(text)
    except ValueError as error:
        return {}, str(error)
    except RecursionError:
        return {}, "it is nested too deep"
    return (row, _fault(row)) if isinstance(row, dict) else ({}, "it is no JSON object")


def _fault(row: Mapping[str, Any]) -> str:
    if not isinstance(row.get("caption"), str) or not row["caption"].strip():
        return "it has no caption"
    for name in ("start_s", "end_s"):
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


def _place(row: Mapping[str, Any] | ClipRow) -> CaptionPlace:
    end_s = row.get("end_s")
    start_s, end = float(row.get("start_s") or 0), None if end_s is None else float(end_s)
    return str(row.get("video")), start_s, end


def _row(clip: ClipRow, line: Mapping[str, Any], name: str) -> CaptionRow:
    prompt_name = str(line.get("prompt_name", "default"))
    identity = {"set": name, "feature_key": clip["feature_key"], "prompt_name": prompt_name}
    return {
        "caption_key": digest(identity),
        "feature_key": clip["feature_key"],
        "video": clip["video"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "prompt_name": prompt_name,
        "prompt": str(line.get("prompt", "")),
        "caption": line["caption"],
        "model": name,
        "quantization": "imported",
        "flags": [],
        "num_tokens": 0,
        "seconds": 0.0,
        "settings": identity,
    }
