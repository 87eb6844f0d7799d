"""Fills a prompt's variables for one clip: times, file name, and earlier captions of the clip."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from cogcache.catalog import (
    EDITED,
    IMPORTED,
    CaptionRow,
    Catalog,
    ClipRow,
    FlaggedCaption,
    VideoRow,
    text_to_path,
)
from cogcache.errors import ClipError
from cogcache.settings import templates

NO_FIRST_CAPTION: Final = "no_first_caption"
NO_DURATION: Final = "no_duration"
UNFILLED: Final = (NO_FIRST_CAPTION, NO_DURATION)
"""Reasons why a prompt about a clip cannot be filled in."""


class Filled(NamedTuple):
    """A prompt about one clip."""

    text: str
    from_flagged: bool = False
    """Whether a caption in it is flagged."""


@dataclass
class Filler:
    """Fills prompts in.

    Args:
        prompts: by name; `templates.check` has looked at them.
        clips: all that will be asked about.
        catalog: knows how long videos are.
        plain: takes apart what a tokenizer would not read as words, in what is put in.
        around: puts what is said with each prompt around it.
    """

    prompts: Mapping[str, str]
    clips: Sequence[ClipRow]
    catalog: Catalog
    plain: Callable[[str], str]
    around: Callable[[str], str] = str
    said: dict[tuple[str, str, int], FlaggedCaption] = field(default_factory=dict)
    """Captions by prompt, feature key and draw."""
    earlier: dict[tuple[str, str], FlaggedCaption] = field(default_factory=dict)
    """Captions that were in the catalog before, by prompt and feature key."""

    def __post_init__(self) -> None:
        self.variables = {name: templates.variables(text) for name, text in self.prompts.items()}
        self.needed = {
            each for text in self.prompts.values() for each in templates.captions_in(text)
        }
        """Names of prompts whose captions others are made from."""
        self._take_captions_of_earlier_runs()

    def _take_captions_of_earlier_runs(self) -> None:
        """Read the captions that no prompt of this run makes; an edited one counts first."""
        for needed, name in templates.made_elsewhere(self.prompts).items():
            rows = self.catalog.captions.rows(prompt_name=needed)
            if not rows:
                known = sorted({*self.prompts, *self.catalog.captions.prompt_names()} - {name})
                raise templates.no_such_caption(needed, name, known)
            rejected = self.catalog.edits.rejected([row["caption_key"] for row in rows])
            # The last one stays: the newest of an edited set, else the newest of all.
            for row in sorted(rows, key=lambda row: (_rank(row, rejected), row["id"])):
                is_rejected = row["caption_key"] in rejected
                caption = FlaggedCaption(row["caption"], row["flags"], is_rejected)
                self.earlier[needed, row["feature_key"]] = caption

    def made_from(self, name: str) -> list[str]:
        """Return the prompts that hold the caption of another."""
        return [each for each, held in self.variables.items() if templates.CAPTION + name in held]

    def fill(self, name: str, clip: ClipRow, draw: int) -> Filled | None:
        """Return a prompt about a clip; None where it needs a caption that is not there yet.

        Args:
            name: of the prompt.
            clip: what it is about.
            draw: the number among captions of one clip with one prompt.

        Raises:
            ClipError: it can never be filled in: a caption in it is empty, or the video's length
                is not known.
        """
        if not (variables := self.variables[name]):
            return Filled(self._fixed[name])
        captions = {
            each: self._said(each.removeprefix(templates.CAPTION), clip["feature_key"], draw)
            for each in variables
            if each.startswith(templates.CAPTION)
        }
        values: dict[str, str] = {}
        for each, said in captions.items():
            if said is None and each.removeprefix(templates.CAPTION) not in self.prompts:
                raise _not_made(name, each)
            if said is None:
                return None
            if said.rejected:
                raise _rejected(name, each)
            if not said.text:
                raise _no_caption(name, each)
            values[each] = said.text
        values |= {each: self._value(each, clip) for each in variables if each not in captions}
        flagged = any(said and said.flags for said in captions.values())
        plain = {each: self.plain(value) for each, value in values.items()}
        return Filled(self.around(templates.fill(self.prompts[name], plain)), flagged)

    def _said(self, name: str, feature_key: str, draw: int) -> FlaggedCaption | None:
        if name in self.prompts:
            return self.said.get((name, feature_key, draw))
        return self.earlier.get((name, feature_key))

    @cached_property
    def _fixed(self) -> dict[str, str]:
        """Prompts without variables, braces made single."""
        fixed = {name: text for name, text in self.prompts.items() if not self.variables[name]}
        return {name: self.around(templates.fill(text, {})) for name, text in fixed.items()}

    def _value(self, variable: str, clip: ClipRow) -> str:
        match variable:
            case "name":
                # A file's name is bytes, a prompt is text.
                return os.fsencode(text_to_path(clip["video"]).stem).decode(errors="replace")
            case "start":
                return _seconds(self._offset_s(clip) + clip["start_s"])
            case "end":
                return _seconds(self._offset_s(clip) + self._end_s(clip))
            case _:
                return _seconds(self._end_s(clip) - clip["start_s"])

    def _end_s(self, clip: ClipRow) -> float:
        length_s = self._lengths_s.get(clip["video_digest"])
        known = [each for each in (clip["end_s"], length_s) if each is not None]
        if not known:
            problem = "a prompt names {end} or {duration}, and the video's length is not known"
            raise ClipError(NO_DURATION, problem, "`cogcache extract` finds it out")
        return min(known)

    def _offset_s(self, clip: ClipRow) -> float:
        """Return the time that a player shows at the video's first frame."""
        return self._offsets_s.get(clip["video_digest"]) or 0.0

    @cached_property
    def _videos(self) -> list[VideoRow]:
        digests: Collection[str] = {clip["video_digest"] for clip in self.clips}
        return self.catalog.files.videos(digests=digests)

    @cached_property
    def _lengths_s(self) -> dict[str, float | None]:
        return {row["digest"]: row["duration_s"] for row in self._videos}

    @cached_property
    def _offsets_s(self) -> dict[str, float | None]:
        return {row["digest"]: row["offset_s"] for row in self._videos}


def _rank(row: CaptionRow, rejected: Collection[str]) -> int:
    """Return what counts before what: captions of people before those of models."""
    if row["caption_key"] in rejected:
        return 0
    return 2 if row["quantization"] in (IMPORTED, EDITED) else 1


def _rejected(name: str, variable: str) -> ClipError:
    first = variable.removeprefix(templates.CAPTION)
    return ClipError(
        NO_FIRST_CAPTION,
        f"the prompt {name!r} needs the caption {first!r}, which was rejected",
        "correct it or take that back with `cogcache review`",
    )


def _not_made(name: str, variable: str) -> ClipError:
    first = variable.removeprefix(templates.CAPTION)
    return ClipError(
        NO_FIRST_CAPTION,
        f"the prompt {name!r} needs the caption {first!r}, which this clip does not have",
        f"make it: `cogcache caption` with a prompt named {first!r}",
    )


def _no_caption(name: str, variable: str) -> ClipError:
    first = variable.removeprefix(templates.CAPTION)
    return ClipError(
        NO_FIRST_CAPTION,
        f"the prompt {name!r} needs the caption {first!r}, which is empty",
        f"change the prompt {first!r}, or how its tokens are chosen",
    )


def _seconds(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
