"""Which captions are meant: the filters that listings, search, export and training share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

from cogcache.catalog.database import CatalogFile
from cogcache.catalog.holders import in_folder
from cogcache.catalog.search.judged import (
    DUPLICATE,
    NOT_REJECTED,
    REJECTED,
    preferred,
    reviewed_as,
    scored,
    unscored,
)
from cogcache.errors import ConfigError
from cogcache.system import Location

logger = logging.getLogger(__name__)

_DURATION = """ifnull(c.end_s, (
    SELECT v.duration_s FROM whole_videos v WHERE v.digest = c.video_digest
)) - c.start_s"""


AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])
Listed: TypeAlias = Literal["captions", "clips", "failures"]
_MADE_AT: Final = {"captions": "created_at", "clips": "created_at", "failures": "last_at"}
_OF_CAPTIONS: Final = {
    "prompts": "--prompt-name",
    "flags": "--flag",
    "no_flags": "--no-flags",
    "quantizations": "quantization=",
    "prefer": "--prefer",
    "states": "--state",
    "tags": "--tag",
    "min_scores": "--min-score",
    "drop_duplicates": "--drop-duplicates",
}
"""Filters that clips and failures know nothing of."""


NAMES: Final[dict[Listed, tuple[str, ...]]] = {
    "captions": ("id",),
    "clips": ("feature_key",),
    "failures": ("video", "start_s", "end_s", "stage"),
}
"""Columns by which a row is known in its catalog."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters over captions; a caption has to pass all that are given.

    Raises:
        ConfigError: a date is none, or a range is empty.
    """

    folders: tuple[Location, ...] = ()
    """Videos in one of these folders, at any depth, or these videos."""
    prompts: tuple[str, ...] = ()
    """Names of prompts."""
    models: tuple[str, ...] = ()
    """Models that made the caption, or names of imported caption sets."""
    since: str | None = None
    """First day of the caption's making, as YYYY-MM-DD in UTC."""
    until: str | None = None
    """Last day, inclusive."""
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    """Of the clip; one of unknown length passes neither."""
    flags: tuple[str, ...] = ()
    """Captions that bear one of these."""
    no_flags: bool = False
    """Only captions without any flag."""
    quantizations: tuple[str, ...] = ()
    """Of the language half; `imported` for sets that were imported."""
    runs: tuple[int, ...] = ()
    """Numbers of runs."""
    prefer: tuple[str, ...] = ()
    """Models and sets, the preferred first: of each clip and prompt only the captions of the first
    of them that has any which were not rejected."""
    states: tuple[str, ...] = ()
    """What reviews say of the caption: `accepted`, `rejected`, `edited`, `unreviewed`."""
    tags: tuple[str, ...] = ()
    """Captions that were given one of these tags."""
    min_scores: tuple[tuple[str, float], ...] = ()
    """Names of scores, and the least that the caption, or its clip, must have of them."""
    drop_duplicates: bool = False
    """Leave out clips that are near-duplicates of another that stays."""
    include_rejected: bool = False
    """Whether what takes captions out of the cache takes rejected ones, too."""
    cuts: tuple[str, ...] = ()
    """How videos were cut: `whole`, `segment:24`, `scenes`, or `clip` for parts that were named."""

    def __post_init__(self) -> None:
        for day in (self.since, self.until):
            _check_day(day)
        if self.since and self.until and self.since > self.until:
            raise ConfigError(f"{self.since} is after {self.until}", "exchange --since and --until")
        if self.no_flags and self.flags:
            raise ConfigError("--no-flags and --flag leave nothing", "give one of the two")

    def where(self, listed: Listed = "captions") -> tuple[str, dict[str, Any]]:
        """Return an SQL condition over ``captions c`` and its values; "" lets all pass.

        Args:
            listed: what is chosen; ``c`` may stand for clips or failures as well.

        Raises:
            ConfigError: a filter is of captions, and these are not chosen.
        """
        values: dict[str, Any] = {}
        if listed != "captions":
            self._check_fits(listed)
        made_at = f"c.{_MADE_AT[listed]}"
        by_run = listed == "failures"
        tests = [
            _any_of([_in_folder(n, folder, values) for n, folder in enumerate(self.folders)]),
            _among("c.prompt_name", self.prompts, values),
            _by_model(self.models, values) if by_run else _among("c.model", self.models, values),
            _of_cuts(self.cuts, values),
            _among("c.quantization", self.quantizations, values),
            _among("c.run", self.runs, values),
            _compare(f"{made_at} >= :since", "since", self.since, values),
            _compare(f"{made_at} < :until", "until", _day_after(self.until), values),
            _compare(f"{_DURATION} >= :shortest", "shortest", self.min_duration_s, values),
            _compare(f"{_DURATION} <= :longest", "longest", self.max_duration_s, values),
            # The index of flagged captions is used only where the query says as much.
            "c.flags <> '[]'" if self.flags else "",
            _any_of([_has_flag(n, flag, values) for n, flag in enumerate(self.flags)]),
            "c.flags = '[]'" if self.no_flags else "",
            *reviewed_as(self.states, self.tags, values),
            *scored(self.min_scores, values, drop_duplicates=self.drop_duplicates),
            preferred(self.prefer, values),
        ]
        return " AND ".join(test for test in tests if test), values

    def _check_fits(self, listed: Listed) -> None:
        for name, option in _OF_CAPTIONS.items():
            if getattr(self, name):
                raise ConfigError(f"{option} chooses among captions, not {listed}", "leave it out")

    def usable(self) -> tuple[str, dict[str, Any]]:
        """Return what `where` does, for what takes captions out: rejected ones do not pass."""
        where, values = self.where()
        if self.include_rejected:
            return where, values
        return f"{where} AND {NOT_REJECTED}" if where else NOT_REJECTED, values

    def unscored(self) -> tuple[str, dict[str, Any]] | None:
        """Return the condition of captions that pass all else, but were never scored.

        None where no score is asked for.
        """
        names = [name for name, _ in self.min_scores]
        names += [DUPLICATE] if self.drop_duplicates else []
        if not names:
            return None
        where, values = replace(self, min_scores=(), drop_duplicates=False).usable()
        test = unscored(names, values)
        return f"{where} AND {test}" if where else test, values

    def of_rejected(self) -> tuple[str, dict[str, Any]]:
        """Return the condition of those captions that `usable` leaves out as rejected."""
        where, values = self.where()
        return f"{where} AND {REJECTED}" if where else REJECTED, values


def warn_of_unscored(file: CatalogFile, selection: Selection) -> None:
    """Say how many captions are left out for want of a score, rather than for a low one."""
    if (condition := selection.unscored()) is None:
        return
    where, values = condition
    number = file.query(f"SELECT count(*) FROM shown_captions c WHERE {where}", values)[0][0]
    if number:
        logger.warning("%d captions are left out as they were not scored: `cogcache score`", number)


def _by_model(models: tuple[str, ...], values: dict[str, Any]) -> str:
    """Return a test of whether the run of a failure was of one of the models."""
    test = _among("model", models, values)
    return f"c.run IN (SELECT run FROM whole_runs WHERE {test})" if test else ""


def _of_cuts(cuts: tuple[str, ...], values: dict[str, Any]) -> str:
    """Return a test of whether a clip came of one of the cuts.

    Of clips that an earlier version made it may not be known: those of whole videos are `whole`.
    """
    if not cuts:
        return ""
    test = _among("cut", cuts, values)
    known = f"c.feature_key IN (SELECT feature_key FROM whole_cuts WHERE {test})"
    if "whole" not in cuts:
        return known
    return f"""({known} OR c.start_s = 0 AND c.end_s IS NULL AND NOT EXISTS (
        SELECT 1 FROM whole_cuts WHERE feature_key = c.feature_key))"""


def _check_day(day: str | None) -> None:
    try:
        proper = day is None or date.fromisoformat(day).isoformat() == day
    except ValueError:
        proper = False
    if not proper:
        raise ConfigError(f"{day!r} is no date", "write it as YYYY-MM-DD")


def _day_after(day: str | None) -> str | None:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat() if day else None


def _any_of(tests: list[str]) -> str:
    return f"({' OR '.join(tests)})" if tests else ""


def _among(column: str, some: tuple[str | int, ...], values: dict[str, Any]) -> str:
    names = [f"{column.removeprefix('c.')}_{n}" for n in range(len(some))]
    values.update(zip(names, some, strict=True))
    return f"{column} IN ({', '.join(f':{name}' for name in names)})" if some else ""


def _compare(test: str, name: str, value: object, values: dict[str, Any]) -> str:
    if value is None:
        return ""
    values[name] = value
    return test


def _in_folder(number: int, folder: Location, values: dict[str, Any]) -> str:
    """Return a test of whether the video's bytes were last seen in a folder."""
    of_file, added = in_folder("path", folder, f"folder_{number}")
    of_caption, _ = in_folder("c.video", folder, f"folder_{number}")
    values |= added
    # The name that a caption bears says where its video was then: it counts where no more is known.
    return (
        f"(c.video_digest IN (SELECT digest FROM whole_files WHERE {of_file}) OR {of_caption} AND"
        " NOT EXISTS (SELECT 1 FROM whole_files WHERE digest = c.video_digest))"
    )


def _has_flag(number: int, flag: str, values: dict[str, Any]) -> str:
    values[f"flag_{number}"] = flag
    return f"EXISTS (SELECT 1 FROM json_each(c.flags) WHERE value = :flag_{number})"


def passing(
    catalog: Path, listed: Listed, selection: Selection, rows: Sequence[AnyRow]
) -> Sequence[AnyRow]:
    """Return the rows of captions, clips or failures that pass the filters.

    Args:
        catalog: the catalog's file.
        listed: what the rows are.
        selection: the filters.
        rows: with the columns of `NAMES`; one may stand there for each file of its video.

    Raises:
        CatalogError: the catalog cannot be read.
        ConfigError: a filter is of captions, and these are not chosen.
    """
    where, values = selection.where(listed)
    if not where:
        return rows
    names = NAMES[listed]
    columns = ", ".join(f"c.{name}" for name in names)
    with closing(CatalogFile(catalog)) as file:
        found = file.query(f"SELECT {columns} FROM {listed} c WHERE {where}", values)
    known = {tuple(row) for row in found}
    return [row for row in rows if tuple(row[name] for name in names) in known]


def unknown_names(catalog: Path, selection: Selection) -> tuple[str, str] | None:
    """Say which prompts, models or cuts were asked for that no caption has, and which there are.

    Args:
        catalog: of the cache.
        selection: the filters that nothing passed.

    Returns:
        What is wrong, and the names there are; None where each filter names one of them.
    """
    with closing(CatalogFile(catalog)) as file:
        for option, column, table, asked in (
            ("--prompt-name", "prompt_name", "shown_captions", selection.prompts),
            ("--model", "model", "shown_captions", selection.models),
            ("--cut", "cut", "cuts", selection.cuts),
        ):
            there = {row[0] for row in file.query(f"SELECT DISTINCT {column} FROM {table}")}
            # Clips of an earlier version are whole videos, and no row says so.
            there |= {"whole"} if option == "--cut" else set()
            if asked and not {*asked} & there:
                known = ", ".join(sorted(there)) or "none"
                return f"no caption has {option} {', '.join(asked)}", f"there are {known}"
    return None
