"""Which summaries are missing: one caption of a whole video, made from those of its clips.

Where the captions do not fit into what the model reads at once, neighbours are summed up in
groups, then their summaries, until one is left. Each of these is a caption of its part of the
video, known by the keys of the captions that went in: nothing is made twice, and a run that was
stopped goes on in the middle of a video.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cogcache.catalog import Catalog, ClipRow, FlaggedCaption, VideoRow
from cogcache.errors import ClipError, ConfigError
from cogcache.keys import FeatureKey, SummaryKey, digest
from cogcache.settings import CAPTIONS, PART, SUMMARY, Settings
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.tasks import CaptionList, Task, list_captions
from cogcache.stages.captioning.timeline import (
    SEVERAL_CUTTINGS,
    TOO_LONG,
    Line,
    cut_as,
    groups,
    in_order,
    span_of,
)
from cogcache.stages.clips.cuts import known_spans
from cogcache.video import Span

NO_CAPTIONS: Final = "no_captions"
NOT_ASKABLE: Final = "not_askable"
NO_SUMMARY: Final = (NO_CAPTIONS, NOT_ASKABLE, SEVERAL_CUTTINGS, TOO_LONG)
"""Reasons why a video cannot be summed up."""


def list_all(
    stage: StageTwo,
    catalog: Catalog,
    videos: Sequence[str | Path] | None = None,
    spans: Sequence[Span] = (),
) -> CaptionList:
    """Find out which captions are missing, summaries included where they are asked for.

    Args:
        stage: how captions are made.
        catalog: knows the clips, and the captions that there are.
        videos: only clips of these; None for all.
        spans: only these parts of videos; none for all.

    Raises:
        CacheError: the cache holds clips, but none made with these settings; says what differs.
    """
    found = list_captions(stage, catalog, videos, spans)
    if stage.settings.summary.summarize:
        _Summaries(stage, catalog, found, bool(spans)).add()
    return found


@dataclass(frozen=True)
class _Video:
    """A video to be summed up."""

    clips: Sequence[ClipRow]
    keys: Sequence[str]
    """Of their captions; "" for one whose prompt waits for another caption."""
    span: Span
    """Of the video: all of it, unless only parts were ever wanted."""
    gaps: bool
    """Whether some of its clips have failed for good, or their captions were rejected."""


def _video(
    parts: Sequence[ClipRow],
    spans: Sequence[Span],
    keys: Mapping[str, str],
    rejected: Collection[str],
    *,
    gaps: bool,
) -> _Video:
    """Return what is summed up of a video, without the clips whose captions were rejected.

    Raises:
        ClipError: all were.
    """
    wanted = spans or [(clip["start_s"], clip["end_s"]) for clip in parts]
    kept = [clip for clip in parts if keys.get(clip["feature_key"], "") not in rejected]
    if not kept:
        problem = f"{parts[0]['video']}: the captions of all its clips were rejected"
        raise ClipError(NO_CAPTIONS, problem, "correct some: `cogcache review`")
    own = [keys.get(clip["feature_key"], "") for clip in kept]
    return _Video(kept, own, span_of(wanted), gaps or len(kept) < len(parts))


@dataclass
class _Summaries:
    """Adds what is missing to a list of captions."""

    stage: StageTwo
    catalog: Catalog
    found: CaptionList
    named: bool
    """Whether clips were named by their spans: then nothing is said of how videos are cut."""

    @property
    def settings(self) -> Settings:
        """Those of the run."""
        return self.stage.settings

    def add(self) -> None:
        """Look at all videos that are cut."""
        wanted: list[tuple[_Video, SummaryKey]] = []
        for video in self._videos():
            if "" in video.keys:
                self.found.num_waiting += 1
            else:
                wanted.append((video, self._key(video.clips[0], video.span, video.keys)))
        known = self.catalog.captions.known([key.digest for _, key in wanted])
        self.found.num_cached += len(known)
        missing = [(video, key) for video, key in wanted if key.digest not in known]
        said = self.catalog.captions.said([key for video, _ in missing for key in video.keys])
        for video, key in missing:
            try:
                self._add(video, key, said)
            except ClipError as error:
                self.found.refused.append((self._whole(video, key), error))

    def _videos(self) -> Iterator[_Video]:
        """Yield the videos of which all clips are there that can be."""
        by_video: dict[str, list[ClipRow]] = defaultdict(list)
        for clip in self.found.clips:
            by_video[clip["video_digest"]].append(clip)
        clips = self.settings.clips
        is_cut = not self.named and (clips.scenes or clips.segment_s is not None)
        spans = {}
        if is_cut:
            spans = known_spans(by_video, clips, self.catalog, all_videos=True)
        for each, of_video in by_video.items():
            gaps, keys = False, self.found.summed_up
            try:
                parts = in_order(of_video) if not is_cut else []
                if is_cut:
                    parts, absent = cut_as(of_video, spans.get(each, ()))
                    gaps = bool(absent)
                    if any((of_video[0]["video"], span) not in self._failed for span in absent):
                        continue  # stage one has not come to them yet
                if len(parts) > 1:
                    yield _video(parts, spans.get(each, ()), keys, self._rejected, gaps=gaps)
            except ClipError as error:
                self.found.refused.append((self._uncut(of_video[0]), error))

    @cached_property
    def _rejected(self) -> set[str]:
        return self.catalog.edits.rejected([*self.found.summed_up.values()])

    @cached_property
    def _failed(self) -> set[tuple[str, Span]]:
        rows = self.catalog.failures.rows(stage="extract")
        return {(row["video"], (row["start_s"], row["end_s"])) for row in rows}

    def _uncut(self, clip: ClipRow) -> ClipRow:
        whole = (0.0, None)
        return _of_span(clip, whole, self._key(clip, whole, ()).feature_key)

    def _whole(self, video: _Video, key: SummaryKey) -> ClipRow:
        return _of_span(video.clips[0], video.span, key.feature_key)

    # ---- one video --------------------------------------------------------------------------

    def _add(self, video: _Video, key: SummaryKey, said: Mapping[str, FlaggedCaption]) -> None:
        """Add what can be made by now: the summary, or those of parts that it needs first."""
        lines = self._lines(video, said)
        while lines:
            length_s = self._lengths_s.get(key.video_digest)
            offset_s = self._offsets_s.get(key.video_digest) or 0.0
            told = [self.stage.family.plain(line.told(length_s, offset_s)) for line in lines]
            runs = groups([self._num_tokens(each) for each in told], self._room)
            if len(runs) == 1:
                task = self._task(SUMMARY, self._whole(video, key), key, lines, told)
                self.found.missing.append(replace(task, gaps=video.gaps))
                return
            parts = [
                self._part(video.clips[0], lines[first:stop], told[first:stop])
                for first, stop in runs
            ]
            lines = self._summed_up(parts, video.clips[0]["video"])
        self.found.num_waiting += 1

    def _lines(self, video: _Video, said: Mapping[str, FlaggedCaption]) -> list[Line]:
        """Return what the captions of a video's clips say; nothing while some are missing."""
        if any(key not in said for key in video.keys):
            return []
        lines = [
            _line((clip["start_s"], clip["end_s"]), key, said[key])
            for clip, key in zip(video.clips, video.keys, strict=True)
        ]
        return _not_empty(lines, video.clips[0]["video"])

    def _part(
        self, clip: ClipRow, lines: Sequence[Line], told: Sequence[str]
    ) -> tuple[Line, Task | None]:
        """Return a line that stands for several, and the task that makes it."""
        if len(lines) == 1:
            return lines[0], None
        span = span_of([line.span for line in lines])
        key = self._key(clip, span, [line.key for line in lines])
        task = self._task(PART, _of_span(clip, span, key.feature_key), key, lines, told)
        return Line(span, key.digest, ""), task

    def _summed_up(self, parts: Sequence[tuple[Line, Task | None]], video: str) -> list[Line]:
        """Return the lines of parts; nothing, and what makes them is added, while some lack."""
        said = self.catalog.captions.said([line.key for line, _ in parts])
        missing = [task for line, task in parts if task and line.key not in said]
        self.found.missing += missing
        if missing:
            return []
        lines = [_line(line.span, line.key, said[line.key]) for line, _ in parts]
        return _not_empty(lines, video)

    def _task(
        self, name: str, clip: ClipRow, key: SummaryKey, lines: Sequence[Line], told: Sequence[str]
    ) -> Task:
        prompt = self.settings.summary.summary_prompt
        flagged = any(line.flagged for line in lines)
        return Task(clip, name, prompt, key, flagged, words=_asked(prompt, told))

    def _key(self, clip: ClipRow, span: Span, keys: Sequence[str]) -> SummaryKey:
        summary = self.settings.summary
        fields: dict[str, Any] = {**clip["settings"], "start_s": span[0], "end_s": span[1]}
        feature_key = FeatureKey(**fields).digest
        own: dict[str, Any] = self.stage.key(feature_key, 0, summary.summary_prompt).fields()
        return SummaryKey(
            **own,
            video_digest=clip["video_digest"],
            captions=digest({"captions": list(keys), **self._times(clip["video_digest"])}),
            num_captions=len(keys),
            summary_tokens=summary.summary_tokens,
        )

    def _times(self, video_digest: str) -> dict[str, float]:
        """Return what the told times depend on beside the captions: where a video begins late."""
        offset_s = self._offsets_s.get(video_digest)
        return {"offset_s": offset_s} if offset_s else {}

    # ---- tokens -----------------------------------------------------------------------------

    def _num_tokens(self, told: str) -> int:
        return self._length(f".\n{told}") - self._length(".")

    def _length(self, text: str) -> int:
        try:
            return self.stage.family.text_row(
                text, self.stage.family.layout(self.settings.language)
            ).length
        except ConfigError as error:
            raise ClipError(NOT_ASKABLE, error.problem, error.hint) from error

    @cached_property
    def _room(self) -> int:
        """Tokens that captions may take beside the words of the prompt."""
        config = self.stage.family.full_config()
        context = (config.get("text_config") or config).get("max_position_embeddings")
        most = self.settings.summary.summary_tokens
        if context:
            most = min(most, context - 1 - self.settings.generation.max_new_tokens)
        return max(1, most - self._length(_asked(self.settings.summary.summary_prompt, ["."])))

    @cached_property
    def _videos_known(self) -> list[VideoRow]:
        digests = {clip["video_digest"] for clip in self.found.clips}
        return self.catalog.files.videos(digests=digests)

    @cached_property
    def _lengths_s(self) -> dict[str, float | None]:
        return {row["digest"]: row["duration_s"] for row in self._videos_known}

    @cached_property
    def _offsets_s(self) -> dict[str, float | None]:
        return {row["digest"]: row["offset_s"] for row in self._videos_known}


def _asked(prompt: str, told: Sequence[str]) -> str:
    """Return the prompt with captions in it, each in a line of its own."""
    lines = "\n".join(told)
    return prompt.replace(CAPTIONS, f"\n{lines}\n").strip()


def _line(span: Span, key: str, said: FlaggedCaption) -> Line:
    return Line(span, key, said.text, bool(said.flags))


def _not_empty(lines: Sequence[Line], video: str) -> list[Line]:
    if found := [line for line in lines if line.text]:
        return found
    problem = f"{video}: all captions that a summary would be made from are empty"
    raise ClipError(NO_CAPTIONS, problem, "ask with another prompt")


def _of_span(clip: ClipRow, span: Span, feature_key: str) -> ClipRow:
    """Return what the row of a part of a video would be, if it were a clip."""
    bounds: Any = {"start_s": span[0], "end_s": span[1], "feature_key": feature_key}
    made: ClipRow = {**clip, **bounds, "num_frames": 0}
    return made
