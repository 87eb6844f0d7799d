"""The rows of the catalog. Their names are the same in JSON, CSV and every listing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, NotRequired, TypeAlias, TypedDict, get_args
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cogcache.errors import ClipError
from cogcache.keys import Field
from cogcache.system import Location, ObjectUrl, is_url

IMPORTED: Final = "imported"
"""What stands for the quantisation of captions that people wrote or edited."""
EDITED: Final = "edited"
"""What stands for the quantisation of captions that were edited with `cogcache review`."""
ReviewState: TypeAlias = Literal["", "accepted", "rejected"]
Stage: TypeAlias = Literal["extract", "caption"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""In the order in which they run."""

NEXT_NUMBERS: Final[dict[str, dict[str, str]]] = {
    "captions": {
        "id": """(SELECT max(number) + 1 FROM (
            SELECT max(id) AS number FROM captions UNION ALL SELECT max(id) FROM forgotten))"""
    }
}
"""SQL of numbers of new rows. That of a caption is higher than those of deleted ones, which may
come back: SQLite would give such a number again, and the older one would pass for the newer."""
_FILE: Final = "file:"


class VideoRow(TypedDict):
    """A video file, known by the digest of its bytes."""

    digest: str
    path: str
    """As ``path_to_text`` writes it; where it was last seen."""
    duration_s: float | None
    fps: float | None
    width: int | None
    height: int | None
    total_num_frames: int | None
    codec: str | None
    size_bytes: int
    offset_s: float | None
    """The time that a player shows at the first frame; None where nobody has looked."""


class ClipRow(TypedDict):
    """A clip whose features are in the cache."""

    feature_key: str
    video_digest: str
    video: str
    start_s: float
    end_s: float | None
    """None: the end of the video."""
    family: str
    model: str
    num_frames: int
    size_bytes: int
    decoder: str
    settings: Mapping[str, Field]
    """The fields of the feature key."""
    created_at: NotRequired[str]
    run: NotRequired[int | None]
    cut: NotRequired[str]
    """How its video was cut, see `Clips.cut` of the settings; `clip` for a part that was named.
    Only of a row to add: one clip may come of several cuts, see `Catalog.cuts`."""


class CaptionRow(TypedDict):
    """What a language half said of a clip, and what that cost."""

    id: NotRequired[int]
    caption_key: str
    feature_key: str
    video: str
    start_s: float
    end_s: float | None
    prompt_name: str
    prompt: str
    caption: str
    model: str
    quantization: str
    flags: list[str]
    """What is suspicious about it: ``empty``, ``no_end``, ``looping``, …"""
    num_tokens: int
    seconds: float
    settings: Mapping[str, Field]
    """The fields of the caption key."""
    created_at: NotRequired[str]
    run: NotRequired[int | None]
    video_digest: NotRequired[str | None]
    """Of the bytes that it was made of; None where nobody knows them any more."""


class EditRow(TypedDict):
    """A version of what people made of a caption: all of it as it was from then on."""

    uid: str
    """What the version is known by in any catalog."""
    caption_key: str
    """Of the caption that was reviewed, which is never changed."""
    edited_key: str
    """Of the caption of the set that says what it was edited into."""
    set_name: str
    action: str
    """What was done: `edit`, `accept`, `reject`, `tag`, `replace`, `undo`, …"""
    text: str | None
    """The edited caption; None where it is as the model wrote it."""
    was: str | None
    """What the caption said until then."""
    state: ReviewState
    tags: list[str]
    author: str
    created_at: str
    """In UTC, later than that of the version before."""
    batch: str
    """Versions that were made in one go bear one name, and are undone in one go."""
    undoes: str
    """The version that this one takes back; "" for none."""


class ScoreRow(TypedDict):
    """What was measured of a caption, or of a clip."""

    name: str
    feature_key: str
    caption_key: str
    """"" for a score of the clip."""
    score: float
    model: str
    """What measured it; "" where no model did."""
    prompt: str
    epoch: int
    """Of the way of measuring: scores of another epoch are measured again."""
    details: Mapping[str, Field]
    created_at: NotRequired[str]
    run: NotRequired[int | None]


class FlaggedCaption(NamedTuple):
    """A caption, and what is suspicious about it."""

    text: str
    flags: list[str]
    rejected: bool = False
    """Whether a person has rejected it."""


class FailureRow(TypedDict):
    """A clip that could not be done, and how often that was tried."""

    video: str
    start_s: float
    end_s: float | None
    stage: Stage
    feature_key: str | None
    """Of the clip; None where the video could not even be looked at."""
    reason: str
    message: str
    tries: NotRequired[int]
    first_at: NotRequired[str]
    last_at: NotRequired[str]
    run: NotRequired[int | None]
    video_digest: NotRequired[str | None]
    """Of the bytes that could not be done; None where they could not even be read."""


class RunRow(TypedDict):
    """One run of a command."""

    run: int
    command: str
    model: str
    started_at: str
    ended_at: str | None
    status: str
    """``running``, then that of its `RunEnd`; a run that was killed stays ``running``."""
    settings: Mapping[str, Field]
    planned_peak_bytes: int | None
    measured_peak_bytes: int | None
    split: Mapping[str, Field]
    """Seconds by what they were spent on."""
    counts: Mapping[str, Field]
    report: Mapping[str, Field]
    """Peaks and timeline of memory, bytes read by shard, versions."""
    uid: str
    """What a run is known by in any catalog; its number is of this one alone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip that could not be done, and why; it has a row for each file that holds it."""

    span: tuple[float, float | None]
    """Start and end in seconds; None is the end of the video."""
    error: ClipError
    stage: Stage = "extract"
    key: str | None = None
    """Its feature key; None where the video could not even be read."""
    video_digest: str | None = None

    def row(self, video: Location, run: int | None = None) -> FailureRow:
        """Return what the catalog notes of it under one file.

        Args:
            video: the file.
            run: number of the run that failed.
        """
        hint = f" ({self.error.hint})" if self.error.hint else ""
        return {
            "video": path_to_text(video),
            "start_s": self.span[0],
            "end_s": self.span[1],
            "stage": self.stage,
            "feature_key": self.key,
            "reason": self.error.reason,
            "message": self.error.problem + hint,
            "run": run,
            "video_digest": self.video_digest,
        }


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended, and what was measured until then."""

    status: str
    """``done``, ``failures``, ``stopped`` or ``error``."""
    planned_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    split: Mapping[str, Field] = field(default_factory=dict)
    """Seconds by what they were spent on."""
    counts: Mapping[str, Field] = field(default_factory=dict)
    report: Mapping[str, Field] = field(default_factory=dict)
    """Peaks and timeline of memory, bytes read by shard, versions."""


def path_to_text(path: Location | str) -> str:
    """Return a path as a text that any database, terminal and file can hold.

    That is the path itself, or the URL that it stands for; only where it holds bytes that are not
    UTF-8 (or begins with ``file:``), it is ``file:`` and the path's bytes with all odd
    ones as ``%XX``.
    """
    if isinstance(path, ObjectUrl):
        return path.url
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return _FILE + quote_from_bytes(os.fsencode(text))
    return _FILE + quote_from_bytes(os.fsencode(text)) if text.startswith(_FILE) else text


def text_to_path(text: str) -> Location:
    """Return the path that ``path_to_text`` was given; a NUL, which no path has, is left out."""
    if names_url(text):
        return ObjectUrl(text)
    return text_to_file(text)


def text_to_file(text: str) -> Path:
    """Return the path of a file of this machine, of which `names_url` is false."""
    if text.startswith(_FILE):
        text = os.fsdecode(unquote_to_bytes(text.removeprefix(_FILE)))
    return Path(text.replace("\0", ""))


def is_there(path: Path) -> bool:
    """Say whether something lies at a path, which may be none that a file system takes."""
    return os.path.exists(path)  # noqa: PTH110 - a Path raises where a name is too long


def names_url(text: str) -> bool:
    """Say whether a text of ``path_to_text`` stands for an object of a store."""
    return not text.startswith(_FILE) and is_url(text)
