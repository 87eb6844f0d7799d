"""Makes an export: chooses captions, writes them in a format, says what was left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from cogcache.catalog import Selection, is_there
from cogcache.errors import ConfigError, VideoError
from cogcache.export.clip_files import Media, place
from cogcache.export.items import Item, check_one_each, load_items
from cogcache.export.names import check_below, names_below
from cogcache.export.rows import ROWS
from cogcache.export.subtitles import SUBTITLES, by_video
from cogcache.export.target import check_free, whole_file, whole_folder
from cogcache.export.trainer_folders import FFMPEG, LAYOUTS, Placed
from cogcache.export.webdataset import write_tars
from cogcache.export.wording import Wording, num_words
from cogcache.system import seal
from cogcache.units import printable
from cogcache.video import VIDEO_SUFFIXES

FORMATS: Final = (*ROWS, *SUBTITLES, *LAYOUTS, "webdataset")
_MAX_WORDS: Final = 150

Left: TypeAlias = tuple[str, str]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How an export is made."""

    wording: Wording = field(default_factory=Wording)
    media: Media = "copy"
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds, and what it does not."""

    captions: int
    empty: int
    """Captions left out because there is nothing in them."""
    left_out: list[Left]
    """Videos that could not be had, with the reason."""
    notes: list[str]


def format_of(out: Path, name: str | None) -> str:
    """Return the format that is named, else that of the file's name.

    Raises:
        ConfigError: neither tells one.
    """
    chosen = name or out.suffix.removeprefix(".")
    if chosen not in FORMATS:
        raise ConfigError(
            f"{out.name!r} does not tell the format", f"give --format: {', '.join(FORMATS)}"
        )
    return chosen


def export(
    catalog: Path, out: Path, format_: str, selection: Selection, options: Options
) -> Exported:
    """Write the captions that pass ``selection`` to ``out``, whole or not at all.

    Equal captions make equal bytes, in a stable order: by video, start, prompt and model.

    Raises:
        CacheError: the disk is full or cannot be written.
        CatalogError: the catalog cannot be used.
        ConfigError: ``out`` may not be replaced, no caption passes, or the format has no room
            for what was chosen.
    """
    check_free(out, overwrite=options.overwrite)
    items, num_empty = load_items(catalog, selection, options.wording)
    if format_ in ROWS:
        with whole_file(out, overwrite=options.overwrite) as path:
            ROWS[format_](items, path)
        return Exported(len(items), num_empty, [], [])
    if format_ in SUBTITLES:
        _write_subtitles(items, out, format_, options)
        return Exported(len(items), num_empty, [], [])
    check_one_each(items)
    placed, left_out = _write_folder(items, out.absolute(), format_, options)
    notes = _notes(placed, out.absolute(), format_)
    return Exported(len(placed), num_empty, left_out, notes)


def export_beside(catalog: Path, format_: str, selection: Selection, options: Options) -> Exported:
    """Write a text, WebVTT or SRT file beside each video, under its name.

    Each file is whole or absent; all are refused if one is there already.

    Raises:
        CacheError: a folder cannot be written.
        CatalogError: the catalog cannot be used.
        ConfigError: a file is there already, or no caption passes.
    """
    items, num_empty = load_items(catalog, selection, options.wording)
    texts: dict[Path, str] = {}
    for some in by_video(items).values():
        path = _beside(some[0].path, format_)
        if path in texts:
            raise ConfigError(f"two videos would share {path}", "export them into a folder instead")
        texts[path] = SUBTITLES[format_](some)
    for path in texts:
        if path.exists() and not options.overwrite:
            raise ConfigError(f"{path} exists already", "replace it with --overwrite")
    for path, text in texts.items():
        seal(path, text.encode())
    return Exported(len(items), num_empty, [], [])


def _beside(video: Path, format_: str) -> Path:
    """Return the place beside a video; a name that a catalog merely claims has none.

    Raises:
        ConfigError: no video lies there.
    """
    hint = "choose others with --in, or export them into a folder"
    is_video = bool(video.name) and video.suffix.lower() in VIDEO_SUFFIXES
    if not is_video or not is_there(video) or video.is_dir():
        raise ConfigError(f"{printable(str(video))} is no video that is there", hint)
    return video.with_suffix(f".{format_}")


def _write_subtitles(items: Sequence[Item], out: Path, format_: str, options: Options) -> None:
    videos, write = by_video(items), SUBTITLES[format_]
    if out.suffix == f".{format_}":
        if len(videos) > 1:
            problem = f"{out.name} is one file, and {len(videos)} videos were chosen"
            raise ConfigError(problem, f"name a folder and --format {format_}, or choose with --in")
        with whole_file(out, overwrite=options.overwrite) as path:
            path.write_text(write(items), encoding="utf-8", newline="\n")
        return
    paths = [some[0].path for some in videos.values()]
    with whole_folder(out, overwrite=options.overwrite) as folder:
        names = names_below(paths, f".{format_}")
        for name, some in zip(names, videos.values(), strict=True):
            path = folder / name
            check_below(folder, path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write(some), encoding="utf-8", newline="\n")


def _write_folder(
    items: Sequence[Item], out: Path, format_: str, options: Options
) -> tuple[list[Placed], list[Left]]:
    left_out: list[Left] = []
    takes = LAYOUTS[format_].takes if format_ in LAYOUTS else FFMPEG

    def put(number: int, path: Path) -> Placed | None:
        try:
            facts = place(items[number], path, options.media, takes)
            return Placed(path.name, items[number], facts)
        except VideoError as error:
            path.unlink(missing_ok=True)
            log.info("left out: %s", error.problem)
            left_out.append((items[number].row["video"], error.problem))
            return None

    with whole_folder(out, overwrite=options.overwrite) as root:
        if format_ == "webdataset":
            placed = [*write_tars(root, len(items), put)]
        else:
            layout = LAYOUTS[format_]
            media = root / layout.media
            media.mkdir(parents=True)
            each = (put(number, media / f"{number:08}.mp4") for number in range(len(items)))
            placed = [one for one in each if one is not None]
            layout.write(root, out, placed)
        if not placed:
            problem = f"none of the {len(items)} clips could be had: {left_out[0][1]}"
            raise ConfigError(problem, "mount the disk that the videos lie on")
    return placed, left_out


def _notes(placed: Sequence[Placed], out: Path, format_: str) -> list[str]:
    layout = LAYOUTS.get(format_)
    limit = layout.max_words if layout else _MAX_WORDS
    long = sum(num_words(each.caption) > limit for each in placed)
    notes = [layout.flags.format(out=out)] if layout else []
    if long:
        notes.append(f"{long} captions have more than {limit} words: the trainer may cut them")
    return notes
