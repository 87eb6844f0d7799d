"""Features and captions of earlier versions that today's code would make otherwise.

They stay: nothing valuable is deleted unasked. `cogcache extract` and `cogcache caption` make them
again under keys of their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cogcache.catalog import CatalogFile
from cogcache.errors import DamagedCatalogError
from cogcache.keys import CHANGES, Change

_CLIPS = """SELECT feature_key AS key, video, start_s, end_s, '' AS prompt_name,
    EXISTS (SELECT 1 FROM shown_clips n WHERE n.video_digest = k.video_digest
        AND n.start_s = k.start_s AND n.end_s IS k.end_s AND n.family = k.family
        AND json_extract(n.settings, '$.epoch') >= :epoch) AS made_again
    FROM shown_clips k WHERE family IN ({families}) AND json_extract(settings, '$.epoch') < :epoch
    ORDER BY video, start_s"""
_CAPTIONS = """SELECT c.caption_key AS key, c.video, c.start_s, c.end_s, c.prompt_name,
    EXISTS (SELECT 1 FROM shown_captions n WHERE n.feature_key = c.feature_key
        AND n.prompt_name = c.prompt_name AND n.prompt = c.prompt AND n.model = c.model
        AND n.quantization = c.quantization
        AND json_extract(n.settings, '$.epoch') >= :epoch) AS made_again
    FROM shown_captions c
    WHERE coalesce((SELECT k.family FROM shown_clips k WHERE k.feature_key = c.feature_key),
        (SELECT k.family FROM shown_clips k WHERE k.model = c.model LIMIT 1)) IN ({families})
        AND json_extract(c.settings, '$.epoch') < :epoch
    ORDER BY c.video, c.start_s, c.prompt_name"""


_EPOCH: Final = re.compile(r"json_extract\((\S*settings), '\$\.epoch'\)")


@dataclass(frozen=True, slots=True)
class Outdated:
    """A clip's features or a caption that an earlier version made otherwise.

    Args:
        change: what is made otherwise today.
        key: the feature key, or the caption key.
        made_again: whether the cache holds what today's version makes of the same.
    """

    change: Change
    key: str
    video: str
    start_s: float
    end_s: float | None
    prompt_name: str
    made_again: bool

    @property
    def message(self) -> str:
        """The message for the user."""
        name = f" for the prompt {self.prompt_name!r}" if self.prompt_name else ""
        command = "extract" if self.change.of == "features" else "caption"
        mend = (
            "it was made again since" if self.made_again else f"`cogcache {command}` makes it again"
        )
        what = f"{self.change.of} of {self.video}{name} are of an earlier version"
        return f"{what}: {self.change.what}; {mend}"


def outdated(catalog: Path) -> list[Outdated]:
    """Return the features and captions that this version would make differently.

    Args:
        catalog: the catalog's file.

    Raises:
        CatalogError: it cannot be used.
    """
    with closing(CatalogFile(catalog)) as file:
        there = {row["family"] for row in file.query("SELECT DISTINCT family FROM clips")}
        changes = [change for change in CHANGES if there & {*change.families}]
        return [each for change in changes for each in _of(file, change)]


def why_outdated(found: list[Outdated]) -> dict[str, str]:
    """Return the reason by feature key and caption key."""
    return {each.key: each.change.what for each in found}


def notes_of(found: Iterable[Outdated], of: str, family: str) -> list[str]:
    """Return what a run that makes features or captions of a family says of older ones."""
    counts = Counter(
        each.change.what
        for each in found
        if each.change.of == of and family in each.change.families and not each.made_again
    )
    return [
        f"{count} {of} of an earlier version do not serve, those asked for are made again: {what}"
        for what, count in counts.items()
    ]


def _of(file: CatalogFile, change: Change) -> Iterator[Outdated]:
    names = {f"family_{number}": name for number, name in enumerate(change.families)}
    sql = _CLIPS if change.of == "features" else _CAPTIONS
    asked: dict[str, Any] = {**names, "epoch": change.epoch}
    for row in _found(file, sql.format(families=", ".join(f":{name}" for name in names)), asked):
        told = dict(row)
        again = bool(told.pop("made_again"))
        yield Outdated(change, made_again=again, **told)


def _found(file: CatalogFile, sql: str, asked: dict[str, Any]) -> list[Any]:
    """Return the rows of a query, without those whose settings are damaged.

    What it finds is looked up among whole rows, so that other damage does no harm here.
    """
    try:
        return file.query(sql, asked)
    except DamagedCatalogError:
        # To look at each text first takes twice as long.
        return file.query(_EPOCH.sub(r"iif(json_valid(\1), \g<0>, NULL)", sql), asked)
