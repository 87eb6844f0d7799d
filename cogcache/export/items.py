"""The captions of an export, in their stable order, with what is known of their videos."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cogcache.catalog import CatalogFile, Selection, is_there, text_to_path, video_digest_of
from cogcache.errors import ConfigError
from cogcache.export.wording import Wording

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

_QUERY: Final = """
SELECT {columns}, v.path AS seen_at, v.duration_s, v.fps, v.width, v.height,
    v.total_num_frames
FROM captions c
LEFT JOIN clips k ON k.feature_key = c.feature_key
LEFT JOIN videos v ON v.digest = {video_digest}
{where}
ORDER BY c.video, c.start_s, ifnull(c.end_s, 9e99), c.prompt_name, c.model, c.caption_key
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One caption of one clip."""

    row: Mapping[str, Any]
    """By the names in ``COLUMNS``; the caption as it goes out."""
    seen_at: str | None
    duration_s: float | None = None
    """Of the whole video, as all below."""
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    total_num_frames: int | None = None

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
    def is_whole(self) -> bool:
        """Whether the clip is all of its video."""
        start_s, end_s = self.span
        reaches = end_s is None or (self.duration_s is not None and end_s >= self.duration_s)
        return start_s == 0 and reaches

    @property
    def path(self) -> Path:
        """The video's file: where the caption says, else where it was last seen."""
        path = text_to_path(self.row["video"])
        return path if self.seen_at is None or is_there(path) else text_to_path(self.seen_at)


def load_items(catalog: Path, selection: Selection, wording: Wording) -> tuple[list[Item], int]:
    """Return the captions that pass the filters, and how many more were empty.

    Raises:
        CatalogError: the catalog cannot be used.
        ConfigError: no caption passes.
    """
    items = select_items(catalog, selection, wording)
    full = [item for item in items if item.caption]
    if not full:
        raise ConfigError("no caption passes the filters", "see what there is: `cogcache ls`")
    return full, len(items) - len(full)


def select_items(catalog: Path, selection: Selection, wording: Wording) -> list[Item]:
    """Return the captions that pass the filters, empty ones too; maybe none.

    Raises:
        CatalogError: the catalog cannot be used.
    """
    where, values = selection.where()
    columns = ", ".join(f"c.{name}" for name in COLUMNS)
    sql = _QUERY.format(
        columns=columns,
        where=where and f"WHERE {where}",
        video_digest=video_digest_of("c", "k"),
    )
    with closing(CatalogFile(catalog)) as file:
        return [_item(dict(row), wording) for row in file.query(sql, values)]


def _item(row: dict[str, Any], wording: Wording) -> Item:
    shown = {name: row[name] for name in COLUMNS}
    shown |= {"caption": wording.around(row["caption"]), "flags": json.loads(row["flags"])}
    video = {name: row[name] for name in row.keys() - {*COLUMNS}}
    return Item(shown, **video)


def check_one_each(items: Iterable[Item]) -> None:
    """Refuse several captions of one clip, for formats that have room for one.

    Raises:
        ConfigError: there are; says which prompts and models they come from.
    """
    counts = Counter((item.row["video"], item.span) for item in items)
    several = [clip for clip, count in counts.items() if count > 1]
    if several:
        video, span = several[0]
        sources = [
            f"--prompt-name {i.row['prompt_name']} --model {i.row['model']}"
            for i in items
            if (i.row["video"], i.span) == (video, span)
        ]
        problem = f"{len(several)} clips have several captions, {video} among them"
        raise ConfigError(problem, f"choose one of: {'; '.join(sources[:5])}")
