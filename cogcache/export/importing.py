"""Imports captions that were edited elsewhere, as a separate set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cogcache.catalog import (
    CaptionRow,
    Carried,
    Catalog,
    CatalogFile,
    ClipRow,
    carried_tables,
    check_carried,
    take_carried,
    tidy_beside,
)
from cogcache.errors import ConfigError
from cogcache.export.incoming import HINT, lines_of
from cogcache.export.matching import Matcher
from cogcache.keys import digest

_SHOWN: Final = 20
"""How many lines without a clip one message lists."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the file, and the caption that it becomes in the catalog."""

    where: str
    content: Mapping[str, Any]
    row: CaptionRow


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import."""

    written: int
    same: int
    """Captions that the set already contained, word for word."""
    reviews: int = 0
    """Versions of reviews that came with the captions, and are new."""
    unmatched: list[str] = field(default_factory=list)
    """Lines that match no clip and were left out, with the reason."""


def import_captions(
    source: Path,
    catalog: Path,
    name: str,
    *,
    overwrite: bool = False,
    skip_unmatched: bool = False,
) -> Imported:
    """Add the captions of a file or folder to the set ``name``: all of them, or none.

    The set stands in the catalog as a model of that name. A clip has one caption a prompt in it.

    Args:
        source: JSONL, CSV, or a folder of texts beside videos, see `lines_of`.
        catalog: of the cache.
        name: of the set.
        overwrite: replace captions that the set has already.
        skip_unmatched: leave out lines that match no clip; else one such line stops the import.

    Raises:
        CatalogError: the catalog cannot be used.
        ConfigError: a line cannot be read or fits no clip, or the set has another caption there
            and ``overwrite`` is not given, or ``name`` is that of a model.
    """
    if not name.strip() or not name.isprintable():
        raise ConfigError(f"{name!r} cannot be the name of a set", "use letters")
    tidy_beside(catalog)
    with Catalog(catalog) as opened, closing(CatalogFile(catalog)) as tables:
        lines, unmatched = _rows(source, opened, name)
        if unmatched and not skip_unmatched:
            raise _no_clip(unmatched)
        rows = [each.row for each in lines]
        carried = _carried(tables, opened, lines)
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
        return Imported(written, len(rows) - len(new), taken, unmatched)


def _no_clip(unmatched: Sequence[str]) -> ConfigError:
    first, *others = unmatched
    told = f" (and {len(others)} more: {'; '.join(others[: _SHOWN - 1])})" if others else ""
    hint = f"{HINT}; --skip-unmatched imports the others"
    return ConfigError(f"{first}{told}", hint)


def _carried(tables: CatalogFile, catalog: Catalog, lines: Sequence[_Line]) -> dict[str, Carried]:
    """Return the rows of captions that lines bear, by the key of the caption that they go to.

    That is the caption that they were exported with, if it is here; else the one of the set.
    """
    named = {key for line in lines if isinstance(key := line.content.get("caption_key"), str)}
    here, known = catalog.captions.known(named), carried_tables(tables)
    found: dict[str, Carried] = {}
    for line in lines:
        rows = check_carried(known, line.content, line.where)
        key = line.content.get("caption_key")
        if rows:
            found[key if key in here else line.row["caption_key"]] = rows
    return found


def _is_same(row: CaptionRow, there: CaptionRow | None) -> bool:
    return there is not None and there["caption"] == row["caption"]


def _rows(source: Path, catalog: Catalog, name: str) -> tuple[list[_Line], list[str]]:
    """Return the captions that lines become, and the lines without a clip with the reason."""
    matcher, unmatched = Matcher(catalog), []
    rows: dict[str, _Line] = {}
    for line in lines_of(source):
        clip = matcher.find(line)
        if isinstance(clip, str):
            unmatched.append(f"{line.where}: {clip}")
            continue
        row = _row(clip, line.content, name)
        if row["caption_key"] in rows:
            problem = f"{line.where}: a second caption of the same clip and prompt"
            raise ConfigError(problem, HINT)
        rows[row["caption_key"]] = _Line(line.where, line.content, row)
    return [*rows.values()], unmatched


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
