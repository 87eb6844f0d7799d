"""Which captions are missing: clips of the cache × prompts, less what the catalog holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from cogcache.catalog import Catalog, ClipRow, FlaggedCaption
from cogcache.errors import ClipError
from cogcache.keys import CaptionKey, Template
from cogcache.settings import Settings, levels
from cogcache.stages.captioning.fill_prompts import Filled, Filler
from cogcache.stages.captioning.remaking import rejections
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.clips.choice import choose_clips
from cogcache.video import Span


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One caption to make."""

    clip: ClipRow
    """The clip's row in the catalog."""
    prompt_name: str
    prompt: str
    key: CaptionKey
    from_flagged: bool = False
    """Whether the prompt holds a caption that is flagged."""
    words: str | None = None
    """What is asked of the language half where the caption is made from others, not from features;
    `prompt` is what that was filled into."""
    gaps: bool = False
    """Whether clips are missing from it for good."""
    draw: int = 0
    """The number among captions of one clip with one prompt."""
    rejected: int = 0
    """How often reviewers have rejected this caption, where it is made once more for that."""


def _nothing_further(_: Task, __: FlaggedCaption) -> list[Task]:
    return []


@dataclass
class CaptionList:
    """What a run of stage two has before it."""

    missing: list[Task] = field(default_factory=list)
    num_cached: int = 0
    num_waiting: int = 0
    """Captions whose prompt needs one of those that are missing."""
    refused: list[tuple[ClipRow, ClipError]] = field(default_factory=list)
    """Captions whose prompt cannot be filled in, and why."""
    clips: Sequence[ClipRow] = ()
    summed_up: dict[str, str] = field(default_factory=dict)
    """Keys of the captions that summaries are made from, there or not, by feature key."""
    further: Callable[[Task, FlaggedCaption], list[Task]] = _nothing_further
    """Told of a caption that was made, returns what can be asked of its clip now that it is there;
    what it leaves out the next list has."""

    @property
    def num_found(self) -> int:
        """How many captions are wanted."""
        return self.num_cached + len(self.missing) + self.num_waiting + len(self.refused)


def list_captions(
    stage: StageTwo,
    catalog: Catalog,
    videos: Sequence[str | Path] | None = None,
    spans: Sequence[Span] = (),
) -> CaptionList:
    """Find out which captions are missing, those of long clips first.

    Args:
        stage: how captions are made.
        catalog: knows the clips, and the captions that there are.
        videos: only clips of these; None for all.
        spans: only these parts of videos; none for all.

    Raises:
        CacheError: the cache holds clips, but none made with these settings; says what differs.
    """
    prompts = stage.settings.prompts
    chosen = choose_clips(stage.settings, stage.family, catalog, videos, spans)
    clips = chosen.clips
    filler = Filler(prompts, clips, catalog, stage.family.plain, stage.around())
    listing = _Listing(stage, catalog, filler)
    for names in levels(prompts):
        listing.add(names)
    found = listing.found
    found.clips, found.further = clips, listing.further
    found.refused += chosen.refused
    # Neighbours of one length waste no padding, and the first batch shows the peak.
    found.missing.sort(key=lambda task: (-task.clip["num_frames"], task.clip["feature_key"]))
    return found


class _Wanted(NamedTuple):
    """One caption that there should be."""

    clip: ClipRow
    name: str
    draw: int
    filled: Filled


@dataclass
class _Listing:
    """The captions that are wanted, level after level of prompts."""

    stage: StageTwo
    catalog: Catalog
    filler: Filler
    found: CaptionList = field(default_factory=CaptionList)
    seen: set[str] = field(default_factory=set)

    @property
    def settings(self) -> Settings:
        """Those of the run."""
        return self.stage.settings

    @property
    def summary_of(self) -> str | None:
        """The prompt whose captions are summed up, if there are to be summaries."""
        summary = self.settings.summary
        first = next(iter(self.settings.prompts))
        return summary.summary_of or first if summary.summarize else None

    def add(self, names: Sequence[str]) -> None:
        """Look for the captions of one level; those of the levels before it have been seen."""
        wanted = {name: self._wanted(name) for name in names}
        keys = {digest for of_prompt in wanted.values() for digest, _ in of_prompt}
        for digest, each in wanted.get(self.summary_of or "", ()):
            if each.draw == 0:
                self.found.summed_up[each.clip["feature_key"]] = digest
        known = self.catalog.captions.known(keys)
        again = {}
        if self.settings.quality.remake_rejected:
            again = rejections(self.catalog, known)
        for name, of_prompt in wanted.items():
            if name in self.filler.needed:
                self._remember(of_prompt, known)
            for digest, each in of_prompt:
                self._add(digest, each, again.get(digest, 0), is_known=digest in known)

    def _add(self, digest: str, wanted: _Wanted, rejected: int, *, is_known: bool) -> None:
        if digest in self.seen:  # two prompts that are the same once they are filled in
            return
        self.seen.add(digest)
        if is_known and not rejected:
            self.found.num_cached += 1
        else:
            self.found.missing.append(replace(self._task(wanted), rejected=rejected))

    def _task(self, wanted: _Wanted) -> Task:
        clip, name, draw, (prompt, from_flagged) = wanted
        key = self._key(clip["feature_key"], name, draw, prompt)
        words = prompt if name in self.settings.language.text_only else None
        return Task(clip, name, prompt, key, from_flagged, words, draw=draw)

    def further(self, made: Task, said: FlaggedCaption) -> list[Task]:
        """Return what can be asked of the video now that one of its clip's captions is there."""
        if made.words is not None or made.prompt_name not in self.filler.needed:
            return []  # what was asked without the video has none at hand
        clip, draw = made.clip, made.draw
        self.filler.said[made.prompt_name, clip["feature_key"], draw] = said
        found = []
        for name in self.filler.made_from(made.prompt_name):
            with suppress(ClipError):  # it can never be asked: the next list says so
                if filled := self.filler.fill(name, clip, draw):
                    found.append(self._task(_Wanted(clip, name, draw, filled)))
        new = {task.key.digest: task for task in found if task.words is None}
        known = self.seen | self.catalog.captions.known(new.keys())
        self.seen |= new.keys()
        return [task for digest, task in new.items() if digest not in known]

    def _key(self, feature_key: str, name: str, draw: int, prompt: str) -> CaptionKey:
        own = self.stage.key(feature_key, draw, prompt)
        if name not in self.settings.language.text_only:
            return own
        return replace(own, generation={**own.generation, "video": False})

    def _remember(self, wanted: list[tuple[str, _Wanted]], known: Set[str]) -> None:
        said = self.catalog.captions.said([digest for digest, _ in wanted if digest in known])
        self.filler.said |= {
            (each.name, each.clip["feature_key"], each.draw): said[digest]
            for digest, each in wanted
            if digest in said
        }

    def _wanted(self, name: str) -> list[tuple[str, _Wanted]]:
        """Return the captions of a prompt that can be asked for by now, with their digests."""
        found = []
        for draw in range(self.settings.generation.n):
            # Of some hundred thousand captions most are there: only what differs is encoded.
            key = self._key("", name, draw, "")
            template = Template(key.fields(), ["feature_key", "prompt"])
            for clip in self.filler.clips:
                if filled := self._filled(name, clip, draw):
                    varying = {"feature_key": clip["feature_key"], "prompt": filled.text}
                    found.append((template.digest(varying), _Wanted(clip, name, draw, filled)))
        return found

    def _filled(self, name: str, clip: ClipRow, draw: int) -> Filled | None:
        try:
            filled = self.filler.fill(name, clip, draw)
        except ClipError as error:
            self.found.refused.append((clip, error))
            return None
        self.found.num_waiting += filled is None
        return filled
