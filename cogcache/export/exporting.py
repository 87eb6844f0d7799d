"""Exports captions: chooses them, writes them in a format, and says what was left out."""

from __future__ import annotations

import difflib
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

from cogcache.catalog import (
    REPLACED,
    Absent,
    Catalog,
    CatalogFile,
    Look,
    Selection,
    is_there,
    still_missing,
    text_to_path,
)
from cogcache.errors import ConfigError, MissingVideosError, VideoError
from cogcache.export.clip_files import Media, place
from cogcache.export.earlier import as_shown
from cogcache.export.items import Item, check_one_cut, check_one_each, choose_items
from cogcache.export.names import check_below, names_below
from cogcache.export.rows import ROWS
from cogcache.export.several import by_clip, choose_several
from cogcache.export.sources import Sources
from cogcache.export.subtitles import SUBTITLES, by_video
from cogcache.export.target import check_free, whole_file, whole_folder
from cogcache.export.trainer_folders import FFMPEG, LAYOUTS, Placed
from cogcache.export.webdataset import write_tars
from cogcache.export.wording import Wording, num_words
from cogcache.system import noted, remove_dead, seal
from cogcache.units import printable
from cogcache.video import VIDEO_SUFFIXES

FORMATS: Final = (*ROWS, *SUBTITLES, *LAYOUTS, "webdataset")
ON_STDOUT: Final = (*ROWS, *SUBTITLES)
"""Formats that are one file, which can be written to standard output."""
_MAX_WORDS: Final = 150

Left: TypeAlias = tuple[str, str]
Put: TypeAlias = Callable[[int, Path], Placed | None]
"""Puts the clip of the caption of a number at a path."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an export."""

    wording: Wording = field(default_factory=Wording)
    media: Media = "copy"
    overwrite: bool = False
    look: Look = field(default_factory=Look)
    captions_per_clip: str | None = None
    """`all`, `best:SCORE` or `random:SEED`; None refuses several where there is room for one."""
    sort: str | None = None
    """Name of the score by which rows are written, the lowest first; `-NAME`: the highest."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export contains, and what was left out."""

    captions: int
    empty: int
    """Captions left out because there is nothing in them."""
    rejected: int = field(default=0, kw_only=True)
    """Captions left out because people rejected them."""
    absent: list[Absent]
    """Videos whose bytes no file holds."""
    left_out: list[Left] = field(default_factory=list)
    """Videos that could not be read, with the reason."""
    notes: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether everything that was asked for is in the export."""
        return not self.left_out and not still_missing(self.absent)


def format_of(out: Path, name: str | None) -> str:
    """Return the named format, or else the one that the file's name implies.

    Raises:
        ConfigError: neither tells one.
    """
    chosen = name or out.suffix.removeprefix(".")
    if chosen in FORMATS:
        return chosen
    there = f"give --format: {', '.join(FORMATS)}"
    near = difflib.get_close_matches(chosen, FORMATS, n=1)
    if name is None:
        meant = [out.with_suffix(f".{each}").name for each in near]
        hint = f"did you mean {meant[0]}? Else {there}" if meant else there
        raise ConfigError(f"{out.name!r} does not tell the format", hint)
    hint = f"did you mean {near[0]}?" if near else there
    raise ConfigError(f"there is no format {name!r}", hint)


def export(
    catalog: Path, out: Path, format_: str, selection: Selection, options: Options
) -> Exported:
    """Write the captions that pass ``selection`` to ``out``, whole or not at all.

    Equal captions make equal bytes, in a stable order: by video, start, prompt and model.

    Raises:
        CacheError: the disk is full or cannot be written.
        CatalogError: the catalog cannot be used.
        ConfigError: ``out`` may not be replaced, or the format has no room for what was chosen.
        NothingChosenError: no caption passes.
        MissingVideosError: no file holds any of the videos, or one of them and this is an error.
    """
    check_free(out, overwrite=options.overwrite)
    chosen = choose_items(catalog, selection, options.wording, options.look)
    items, old = as_shown(catalog, chosen.items)
    rejected = chosen.num_rejected
    if options.captions_per_clip:
        items = choose_several(items, options.captions_per_clip, catalog)
    if options.sort:
        items = _sorted(catalog, items, options.sort)
    if format_ in ROWS:
        with whole_file(out, overwrite=options.overwrite, cache=catalog.parent) as path:
            ROWS[format_](items, path)
        return Exported(len(items), chosen.num_empty, chosen.absent, old, rejected=rejected)
    if format_ in SUBTITLES:
        check_one_cut(catalog, items)
        left_out = _write_subtitles(items, out, format_, options, catalog.parent)
        num_written = len(items) - len(left_out)
        left_out = [*old, *left_out]
        return Exported(num_written, chosen.num_empty, chosen.absent, left_out, rejected=rejected)
    if options.captions_per_clip != "all":
        check_one_each(items)
    with closing(CatalogFile(catalog)) as file:
        placed, left_out = _write_folder(
            items, out.absolute(), format_, options, Sources(file), catalog.parent
        )
    notes = _notes(placed, out.absolute(), format_)
    left_out = [*old, *left_out]
    return Exported(
        sum(len(each.items) for each in placed),
        chosen.num_empty,
        chosen.absent,
        left_out,
        notes,
        rejected=rejected,
    )


def _sorted(catalog: Path, items: list[Item], sort: str) -> list[Item]:
    by_key = {item.row["caption_key"]: item for item in items}
    with Catalog(catalog) as opened:
        rows = opened.scores.order([item.row for item in items], sort)
    return [by_key[row["caption_key"]] for row in rows]


def export_beside(catalog: Path, format_: str, selection: Selection, options: Options) -> Exported:
    """Write a text, WebVTT or SRT file beside each video, under its name; beside each copy, too.

    Each file is whole or absent; all are refused if one is there already.

    Raises:
        CacheError: a folder cannot be written.
        CatalogError: the catalog cannot be used.
        ConfigError: a file is there already, or a video was cut in several ways.
        NothingChosenError: no caption passes.
        MissingVideosError: as for `export`.
    """
    chosen = choose_items(catalog, selection, options.wording, options.look)
    items, old = as_shown(catalog, chosen.items)
    check_one_cut(catalog, items)
    texts: dict[Path, str] = {}
    left_out: list[Left] = []
    for some in by_video(items):
        local = some[0].paths
        left_out += [] if local else [(_name(some[0]), "there is no file to write it beside")]
        for path in (_beside(path, format_) for path in local):
            if path in texts:
                problem = f"two videos would share {path}"
                raise ConfigError(problem, "export them into a folder instead")
            texts[path] = SUBTITLES[format_](some)
    for path in texts:
        if path.exists() and not options.overwrite:
            raise ConfigError(f"{path} exists already", "replace it with --overwrite")
    folders = sorted({path.parent for path in texts})
    remove_dead(folders)
    with noted(catalog.parent, "temporary", folders=[str(folder.absolute()) for folder in folders]):
        for path, text in texts.items():
            seal(path, text.encode())
    left_out = [*old, *left_out]
    rejected = chosen.num_rejected
    return Exported(len(items), chosen.num_empty, chosen.absent, left_out, rejected=rejected)


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


def _name(item: Item) -> str:
    return item.row["video"] or f"a video with the digest {item.video_digest}"


def _write_subtitles(
    items: Sequence[Item], out: Path, format_: str, options: Options, cache: Path
) -> list[Left]:
    """Write a file for each video; return the captions whose video has no name any more."""
    named = [item for item in items if item.row["video"] is not None]
    videos, write = by_video(named), SUBTITLES[format_]
    if out.suffix == f".{format_}":
        if len(videos) > 1:
            problem = f"{out.name} is one file, and {len(videos)} videos were chosen"
            raise ConfigError(problem, f"name a folder and --format {format_}, or choose with --in")
        with whole_file(out, overwrite=options.overwrite, cache=cache) as path:
            path.write_text(write(named), encoding="utf-8", newline="\n")
    else:
        paths = [text_to_path(some[0].row["video"]) for some in videos]
        with whole_folder(out, overwrite=options.overwrite, cache=cache) as folder:
            for name, some in zip(names_below(paths, f".{format_}"), videos, strict=True):
                path = folder / name
                check_below(folder, path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(write(some), encoding="utf-8", newline="\n")
    return [(_name(item), REPLACED) for item in items if item.row["video"] is None]


def _write_folder(
    items: Sequence[Item],
    out: Path,
    format_: str,
    options: Options,
    sources: Sources,
    cache: Path,
) -> tuple[list[Placed], list[Left]]:
    left_out: list[Left] = []
    takes = LAYOUTS[format_].takes if format_ in LAYOUTS else FFMPEG

    def put(number: int, path: Path) -> Placed | None:
        item = items[number]
        try:
            with sources.proven(item) as source:
                facts = place(item, source, path, options.media, takes)
            return Placed(path.name, item, facts)
        except VideoError as error:
            path.unlink(missing_ok=True)
            log.info("left out: %s", error.problem)
            left_out.append((_name(item), error.problem))
            return None

    with whole_folder(out, overwrite=options.overwrite, cache=cache) as root:
        if format_ == "webdataset":
            placed = [*write_tars(root, len(items), put)]
        else:
            layout = LAYOUTS[format_]
            media = root / layout.media
            media.mkdir(parents=True)
            placed = _placed(items, media, put, together=layout.takes_several)
            layout.write(root, out, placed)
        if not placed:
            name, reason = left_out[0]
            problem = f"none of the {len(items)} clips could be had: {name}: {reason}"
            raise MissingVideosError(problem, "mount the disk that the videos lie on")
    return placed, left_out


def _placed(items: Sequence[Item], media: Path, put: Put, *, together: bool) -> list[Placed]:
    """Put the clips into a folder; a clip of several captions is made once.

    Where the trainer reads one caption a file, the file is there under a name for each: links to
    one another, as trainers keep what they make of a caption by the name of the file.
    """
    numbers = {id(item): number for number, item in enumerate(items)}
    found: list[Placed] = []
    for some in by_clip(items):
        number = numbers[id(some[0])]
        first = put(number, media / f"{number:08}.mp4")
        if first is None:
            continue
        if together:
            found.append(replace(first, others=tuple(some[1:])))
            continue
        found.append(first)
        for item in some[1:]:
            name = f"{numbers[id(item)]:08}.mp4"
            _link(media / first.name, media / name)
            found.append(Placed(name, item, first.facts))
    return sorted(found, key=lambda each: each.name)


def _link(there: Path, also: Path) -> None:
    if there.is_symlink():
        also.symlink_to(there.readlink())
        return
    try:
        also.hardlink_to(there)
    except OSError:  # a disk without links
        shutil.copyfile(there, also)


def _notes(placed: Sequence[Placed], out: Path, format_: str) -> list[str]:
    layout = LAYOUTS.get(format_)
    limit = layout.max_words if layout else _MAX_WORDS
    long = sum(num_words(text) > limit for each in placed for text in each.captions)
    notes = [layout.flags.format(out=out)] if layout else []
    if long:
        notes.append(f"{long} captions have more than {limit} words: the trainer may cut them")
    return notes
