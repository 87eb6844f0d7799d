"""Finds the clip of the cache that an imported caption belongs to."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Final, TypeAlias

from cogcache.catalog import Catalog, ClipRow, Look, Placing
from cogcache.export.incoming import Line
from cogcache.video import VIDEO_SUFFIXES

Span: TypeAlias = tuple[float, float | None]
NO_CLIP: Final = "the cache has no such clip"
_SEVERAL: Final = "several videos of the cache have a name that ends like this"


class Matcher:
    """Finds the clips of lines: by feature key, by the video's digest, or by its name.

    Args:
        catalog: of the cache.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._by_key = {clip["feature_key"]: clip for clip in catalog.clips.rows()}

    def find(self, line: Line) -> ClipRow | str:
        """Return the clip of a line, or the reason why there is none.

        A key that is not here is that of other bytes, or of other features: the name and the times
        of its line may be those of another video by now, and are not asked.
        """
        content = line.content
        if (key := content.get("feature_key")) is not None:
            return self._by_key.get(str(key), NO_CLIP)
        if (digest := content.get("video_digest", content.get("digest"))) is not None:
            return self._by_digest.get((str(digest), _span(content)), NO_CLIP)
        if "stem" in content and line.beside is not None:
            return self._by_stem(line.beside, content["stem"], _span(content))
        return self._by_name(str(content.get("video")), line.beside, _span(content))

    def _by_name(self, video: str, beside: Path | None, span: Span) -> ClipRow | str:
        if found := self._by_place.get((video, span)):
            return found
        if PurePath(video).is_absolute() or beside is None or "://" in video:
            return NO_CLIP
        whole = os.path.normpath(beside.absolute() / video)
        if found := self._by_place.get((whole, span)):
            return found
        if _is_there(Path(whole)):
            return NO_CLIP  # the line means that file, not one elsewhere whose name ends alike
        return self._by_ending(PurePath(os.path.normpath(video)), span, with_suffix=True)

    def _by_stem(self, folder: Path, stem: str, span: Span) -> ClipRow | str:
        """Return the clip of the video beside a text; where there is none, by its name alone."""
        whole = folder.absolute() / stem
        beside = [whole.with_name(whole.name + suffix) for suffix in sorted(VIDEO_SUFFIXES)]
        there = [str(path) for path in beside if _is_there(path)]
        if there:
            found = [self._by_place[path, span] for path in there if (path, span) in self._by_place]
            return found[0] if len(found) == 1 else NO_CLIP
        return self._by_ending(PurePath(stem), span, with_suffix=False)

    def _by_ending(self, name: PurePath, span: Span, *, with_suffix: bool) -> ClipRow | str:
        """Return the clip of the only video whose path ends with a name."""
        found: dict[str, ClipRow] = {}
        for path, clip in self._by_last.get(name.name, ()):
            own = path if with_suffix else path.with_suffix("")
            if own.parts[-len(name.parts) :] == name.parts and _span(clip) == span:
                found[clip["video_digest"]] = clip
        if len(found) > 1:
            return _SEVERAL
        return next(iter(found.values()), NO_CLIP)

    @cached_property
    def _placed(self) -> list[ClipRow]:
        """Clips under the names of the files that hold their videos now.

        Where a file is gone, its last name counts; where another video has that name, it does not.
        """
        placing = Placing(self._catalog.holders(), Look("keep"))
        found: list[Any] = placing.each([*self._by_key.values()], ("feature_key",)).rows
        return [row for row in found if row["video"] is not None]

    @cached_property
    def _by_place(self) -> dict[tuple[str, Span], ClipRow]:
        return {
            (row["video"], _span(row)): self._by_key[row["feature_key"]] for row in self._placed
        }

    @cached_property
    def _by_digest(self) -> dict[tuple[str, Span], ClipRow]:
        return {(row["video_digest"], _span(row)): row for row in self._by_key.values()}

    @cached_property
    def _by_last(self) -> dict[str, list[tuple[PurePath, ClipRow]]]:
        """Clips by the last part of their videos' names, with the suffix and without."""
        found: dict[str, list[tuple[PurePath, ClipRow]]] = defaultdict(list)
        for row in self._placed:
            path, clip = PurePath(row["video"]), self._by_key[row["feature_key"]]
            for last in {path.name, path.stem}:
                found[last].append((path, clip))
        return found


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that no file system takes
        return False


def _span(row: Mapping[str, Any]) -> Span:
    end_s = row.get("end_s")
    return float(row.get("start_s") or 0), None if end_s is None else float(end_s)
