"""The captions of an export in a stable order, with the facts about their videos."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cogcache.catalog import (
    EDITED,
    Absent,
    Catalog,
    CatalogFile,
    Holders,
    Look,
    Placing,
    Selection,
    carried_rows,
    missing_videos,
    names_url,
    outdated,
    text_to_file,
    unknown_names,
    warn_of_unscored,
)
from cogcache.errors import ConfigError, NothingChosenError
from cogcache.export.wording import Wording
from cogcache.settings import PART, SUMMARY

logger = logging.getLogger(__name__)

COLUMNS: Final = (
    "video",
    "start_s",
    "end_s",
    "prompt_name",
    "prompt",
    "caption",
    "model",
    "quantization",
    "flags",
    "num_tokens",
    "seconds",
    "created_at",
    "feature_key",
    "caption_key",
)
"""Of a row, in this order; the names are those of the catalog."""
OF_VIDEO: Final = ("video_digest", "duration_s", "fps", "width", "height", "offset_s")
"""Of the video's bytes; they follow in a row. `video` is the file that has them now."""

_UNKNOWN_CUT: Final = "a way that is not known"
_QUERY: Final = """
SELECT {columns}, c.video_digest, v.duration_s, v.fps, v.width, v.height, v.total_num_frames,
    v.offset_s, k.settings AS clip_settings
FROM whole_captions c
LEFT JOIN whole_clips k ON k.feature_key = c.feature_key AND +k.feature_key = c.feature_key
LEFT JOIN whole_videos v ON v.digest = c.video_digest AND +v.digest = c.video_digest
{where}
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One caption of one clip."""

    row: Mapping[str, Any]
    """By the names in ``COLUMNS``; the caption as it goes out. ``video`` is the name of a file that
    holds the clip's bytes now; None where none does, and that name has other bytes."""
    video_digest: str | None
    """Of the bytes that the caption was made of; None where nobody knows it any more."""
    names: tuple[str, ...] = ()
    """Of all files that hold these bytes, as the catalog writes them."""
    duration_s: float | None = None
    """Of the whole video, as all below."""
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    total_num_frames: int | None = None
    offset_s: float | None = None
    """The time that a player shows at the first frame."""
    clip_settings: str | None = None
    """The fields of the clip's key, as JSON; None for a summary."""
    carried: Mapping[str, Any] = field(default_factory=dict)
    """What a line of JSONL bears besides: rows that are of this caption."""

    @property
    def caption(self) -> str:
        """The caption as it goes out, line breaks and all."""
        return str(self.row["caption"])

    @property
    def span(self) -> tuple[float, float | None]:
        """Begin and end in seconds of the video; None ends with it."""
        return self.row["start_s"], self.row["end_s"]

    @property
    def end_s(self) -> float | None:
        """The clip's end, the video's where the clip has none of its own."""
        end_s = self.row["end_s"]
        return self.duration_s if end_s is None else float(end_s)

    @property
    def is_summary(self) -> bool:
        """Whether it was made of captions: its span is then no cut of the video."""
        return self.clip_settings is None and self.row["prompt_name"] in (SUMMARY, PART)

    @property
    def paths(self) -> list[Path]:
        """The files of this machine that hold the video now."""
        return [text_to_file(name) for name in self.names if not names_url(name)]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The captions that an export is made of."""

    items: list[Item]
    absent: list[Absent] = field(default_factory=list)
    """Those that were left out because their video is gone or was replaced."""
    num_empty: int = 0
    """How many were left out because they are empty."""
    num_rejected: int = 0
    """How many were left out because a reviewer rejected them."""


def choose_items(catalog: Path, selection: Selection, wording: Wording, look: Look) -> Chosen:
    """Return the captions that pass the filters, each under the file that has its bytes now.

    Raises:
        CatalogError: the catalog cannot be used.
        NothingChosenError: no caption passes.
        MissingVideosError: no file holds the bytes of any, or of one and this is to be an error.
    """
    chosen = select_items(catalog, selection, wording, look)
    full = _current(catalog, [item for item in chosen.items if item.caption])
    if not full and chosen.absent:
        raise missing_videos(chosen.absent)
    if not full:
        raise _none_passes(catalog, selection)
    num_empty = sum(not item.caption for item in chosen.items)
    return Chosen(full, chosen.absent, num_empty, chosen.num_rejected)


def _current(catalog: Path, items: list[Item]) -> list[Item]:
    """Leave out captions of earlier versions that were made again since; warn of those that stay.

    Where nothing else was chosen, they stay.
    """
    found = {each.key: each for each in outdated(catalog)}
    old = [found[item.row["caption_key"]] for item in items if item.row["caption_key"] in found]
    if not old:
        return items
    again = {each.key for each in old if each.made_again}
    kept = [item for item in items if item.row["caption_key"] not in again] or items
    if left := len(items) - len(kept):
        logger.warning("%d captions of an earlier version are left out: they were made again", left)
    if staying := len(old) - left:
        count = f"{staying} of the {len(kept)} exported captions are of an earlier version"
        logger.warning("%s: %s; `cogcache caption` makes them again", count, old[0].change.what)
    return kept


def _none_passes(catalog: Path, selection: Selection) -> NothingChosenError:
    """Return the error to show where filters leave nothing: names that are not there are told."""
    if (unknown := unknown_names(catalog, selection)) is not None:
        return NothingChosenError(*unknown)
    return no_caption(selection, _rejected_in(catalog, selection))


def _rejected_in(catalog: Path, selection: Selection) -> int:
    with closing(CatalogFile(catalog)) as file:
        return 0 if selection.include_rejected else _num_rejected(file, selection)


def no_caption(selection: Selection, num_rejected: int) -> NothingChosenError:
    """Return the error to show where nothing passes."""
    if num_rejected:
        problem = f"all {num_rejected} captions that pass the filters were rejected"
        return NothingChosenError(problem, "take them with --include-rejected")
    if selection.min_scores:
        problem = "no caption passes the filters, or none was scored"
        return NothingChosenError(problem, "score them: `cogcache score`")
    return NothingChosenError("no caption passes the filters", "see what there is: `cogcache ls`")


def select_items(
    catalog: Path, selection: Selection, wording: Wording, look: Look | None = None
) -> Chosen:
    """Do as `choose_items` does, with empty captions, and maybe none.

    Raises:
        CatalogError: the catalog cannot be used.
        MissingVideosError: as for `choose_items`.
    """
    look = look or Look()
    where, values = selection.usable()
    columns = ", ".join(f"c.{name}" for name in COLUMNS)
    sql = _QUERY.format(columns=columns, where=where and f"WHERE {where}")
    with closing(CatalogFile(catalog)) as file:
        holders = Holders(file, check=look.check, ask_stores=True)
        if look.check:
            holders.look_in(selection.folders)
        rows = [dict(row) for row in file.query(sql, values)]
        num_rejected = 0 if selection.include_rejected else _num_rejected(file, selection)
        warn_of_unscored(file, selection)
        placing = Placing(holders, look, selection.folders)
        found = placing.one(rows)
        carried = carried_rows(file, [row["caption_key"] for row in found.rows])
        items = [
            _item({**row, "carried": carried.get(row["caption_key"], {})}, names, wording)
            for row, names in ((row, tuple(placing.names(row))) for row in found.rows)
        ]
    return Chosen(sorted(items, key=_order), found.absent, num_rejected=num_rejected)


def _num_rejected(file: CatalogFile, selection: Selection) -> int:
    where, values = selection.of_rejected()
    return int(file.query(f"SELECT count(*) FROM shown_captions c WHERE {where}", values)[0][0])


def _order(item: Item) -> tuple[object, ...]:
    row, (start_s, end_s) = item.row, item.span
    end_s = math.inf if end_s is None else end_s
    names = ("prompt_name", "model", "caption_key")
    return (row["video"] or "", start_s, end_s, *(row[name] for name in names))


def _item(row: dict[str, Any], names: tuple[str, ...], wording: Wording) -> Item:
    shown = {name: row[name] for name in COLUMNS}
    shown |= {"caption": wording.around(row["caption"]), "flags": json.loads(row["flags"])}
    video = {name: row[name] for name in row.keys() - {*COLUMNS}}
    return Item(shown | {name: row[name] for name in OF_VIDEO}, names=names, **video)


def check_one_cut(catalog: Path, items: Iterable[Item]) -> None:
    """Refuse captions of a video that was cut in several ways, because their cues would overlap.

    Raises:
        ConfigError: there are; says how the video was cut.
    """
    videos: dict[str, list[Item]] = {}
    for item in items:
        if not item.is_summary:
            videos.setdefault(item.video_digest or item.row["video"], []).append(item)
    keys = {item.row["feature_key"] for some in videos.values() for item in some}
    with Catalog(catalog) as opened:
        cuts = opened.cuts.of(keys)
    several: list[tuple[str, set[str]]] = []
    for some in videos.values():
        found = [_cuts_of(item, cuts) for item in some]
        if not set.intersection(*found):
            several.append((some[0].row["video"], set.union(*found)))
    if several:
        video, names = several[0]
        more = f", as are {len(several) - 1} others" if len(several) > 1 else ""
        problem = f"{video} is cut in several ways{more}: {', '.join(sorted(names))}"
        ways = [f"--cut {name}" for name in sorted(names - {_UNKNOWN_CUT})]
        raise ConfigError(problem, f"choose one of: {'; '.join(ways)}")


def _cuts_of(item: Item, cuts: Mapping[str, list[str]]) -> set[str]:
    """Return the cuts that a caption's clip came of; a video as a whole is one."""
    whole = item.span == (0, None)
    return {*cuts.get(item.row["feature_key"], ["whole" if whole else _UNKNOWN_CUT])}


def check_one_each(items: Iterable[Item]) -> None:
    """Refuse several captions of one clip, for formats that have room for one.

    Raises:
        ConfigError: there are; says which prompts and models they come from.
    """
    clips: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        clips.setdefault((item.video_digest or item.row["video"], item.span), []).append(item)
    several = [some for some in clips.values() if len(some) > 1]
    if several:
        sources = [
            f"--prompt-name {i.row['prompt_name']} --model {i.row['model']}" for i in several[0]
        ]
        video = several[0][0].row["video"]
        problem = f"{len(several)} clips have several captions, {video} among them"
        hint = f"choose one of: {'; '.join(sources[:5])}"
        models = dict.fromkeys(i.row["model"] for i in several[0])
        if len(models) > 1:
            edited = [i.row["model"] for i in several[0] if i.row["quantization"] == EDITED]
            order = dict.fromkeys([*edited, *models])
            hint += f"; or the first that there is: --prefer {','.join(order)}"
        raise ConfigError(problem, hint)
