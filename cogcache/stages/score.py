"""`score`: numbers that say which captions and clips to look at. None of them deletes anything.

words alone → cached features alone → the language half, with a clip's video part run once
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from cogcache.catalog import Catalog, CatalogFile, ClipRow, ScoreRow, Selection
from cogcache.errors import ClipError, ConfigError
from cogcache.quality import (
    CLIP_EPOCH,
    CLIP_SCORES,
    TEXT_EPOCH,
    TEXT_SCORES,
    TextRow,
    score_texts,
)
from cogcache.settings import MODELS, NO_MODEL, Settings
from cogcache.stages.clip_looks import ClipLooks
from cogcache.stages.runs.opened import OpenedRun, open_run
from cogcache.stages.runs.report import Counts, RunReport
from cogcache.store import FeatureStore

if TYPE_CHECKING:
    from cogcache.stages.runs.progress import AtWork

MODEL_SCORES: Final = ("grounding", "swap", "questions")
DRAW_SCORES: Final = ("consistency",)
SCORES: Final = {
    "text": TEXT_SCORES,
    "clips": CLIP_SCORES,
    "model": ("grounding", "swap"),
}
"""Names that stand for several scores."""
ALL_SCORES: Final = (*TEXT_SCORES, *CLIP_SCORES, *MODEL_SCORES, *DRAW_SCORES)
COMMIT_EVERY_S: Final = 3.0
_AT_A_TIME: Final = 2000
_STATIC: Final = 2e-3
_NEARLY_SAME: Final = 0.995


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What is to be scored.

    Args:
        names: of scores, or of groups of them in `SCORES`.
        selection: which captions.
        others: clips before which `swap` puts each caption.
        semantic_model: what `consistency` compares captions with.
        static: `motion` below which a clip counts as static.
        alike: cosine of two clips' vectors from which on they are near-duplicates.
        again: measure what was measured, too.

    Raises:
        ConfigError: there is no score of a name, or a number is none that can be.
    """

    names: tuple[str, ...] = ("text", "clips")
    selection: Selection = field(default_factory=Selection)
    others: int = 1
    semantic_model: str = ""
    static: float = _STATIC
    alike: float = _NEARLY_SAME
    again: bool = False

    def __post_init__(self) -> None:
        known = [*SCORES, *ALL_SCORES]
        if unknown := [name for name in self.names if name not in known]:
            raise ConfigError(f"there is no score {unknown[0]!r}", f"there are {', '.join(known)}")
        if self.others < 1:
            raise ConfigError(f"--others {self.others} leaves nothing to compare", "give 1 or more")
        if not 0 < self.alike <= 1:
            raise ConfigError(f"--alike {self.alike:g} is no likeness", "give 0 to 1, as 0.995")

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of all scores that are wanted."""
        names = (each for name in self.names for each in SCORES.get(name, (name,)))
        return tuple(dict.fromkeys(names))


@dataclass
class Scored:
    """What a run did, for a reader."""

    report: RunReport
    lines: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """What the command line ends with."""
        return self.report.exit_status


@dataclass(frozen=True, slots=True)
class Scorable:
    """A caption to score."""

    caption_key: str
    feature_key: str
    video_digest: str | None
    prompt_name: str
    prompt: str
    caption: str
    model: str


def score(
    cache: Path, settings: Settings, request: ScoreRequest, catalog_path: Path | None = None
) -> Scored:
    """Score captions and clips of a cache; typed again, it goes on where it was ended.

    Args:
        cache: folder of the cache.
        settings: the model, where a score needs one.
        request: which scores of which captions.
        catalog_path: catalog on this machine's own disk, where `cache` is a shared folder.

    Raises:
        CogcacheError: a setting, the checkpoint or the cache is not usable.
    """
    wanted = {*request.scores}
    if wanted & {*MODEL_SCORES} and not settings.model:
        raise ConfigError(NO_MODEL, MODELS)
    store = FeatureStore.open(cache)
    absent: list[str] = []
    with open_run("score", cache, settings, catalog_path) as run:
        captions = scorable(run.catalog, request.selection) if wanted - {*CLIP_SCORES} else []
        if wanted - {*CLIP_SCORES} and not captions:
            missing = _no_captions(run.catalog, request.selection)
            wanted &= {*CLIP_SCORES}
            if not wanted:
                raise missing
            absent = [f"{missing.problem}; {missing.hint}"]
        clips = run.catalog.clips.rows() if wanted & {*CLIP_SCORES} else []
        clips = [*{clip["feature_key"]: clip for clip in clips}.values()]
        report = run.begin(Counts())
        done = Scored(report, absent)
        with run.working() as at:
            work = Work(run, store, request, at, captions, clips)
            if wanted & {*TEXT_SCORES} and not at.stop:
                done.lines += work.texts(wanted)
            if wanted & {*CLIP_SCORES} and not at.stop:
                done.lines += work.looks()
            if wanted & {*DRAW_SCORES} and not at.stop:
                from cogcache.stages.score_support import score_draws

                done.lines += score_draws(work, request.semantic_model)
            if wanted & {*MODEL_SCORES} and not at.stop:
                from cogcache.stages.score_support import score_support

                done.lines += score_support(work, settings, wanted)
    return done


def _no_captions(catalog: Catalog, selection: Selection) -> ConfigError:
    """Return why there is no caption to score, and what to do."""
    if selection.where()[0] and scorable(catalog, Selection()):
        problem = "no caption passes the filters, so none was scored"
        return ConfigError(problem, "see what there is with `cogcache ls`, and ask for more")
    return ConfigError(
        "the catalog has no captions, so none was scored", "make some with `cogcache caption`"
    )


def scorable(catalog: Catalog, selection: Selection) -> list[Scorable]:
    """Return the captions that pass, rejected ones too, with something in them."""
    where, values = selection.where()
    columns = ", ".join(f"c.{name}" for name in Scorable.__annotations__)
    sql = f"SELECT {columns} FROM whole_captions c {where and f'WHERE {where}'} ORDER BY c.id"
    with closing(CatalogFile(catalog.path)) as file:
        rows = [Scorable(*row) for row in file.query(sql, values)]
    return [row for row in rows if row.caption.strip()]


@dataclass
class Work:
    """A run of `score`: what it works on, and what waits to be committed."""

    run: OpenedRun
    store: FeatureStore
    request: ScoreRequest
    at: AtWork
    captions: Sequence[Scorable]
    clips: Sequence[ClipRow]
    waiting: list[ScoreRow] = field(default_factory=list)
    texts_of: dict[str, str] = field(default_factory=dict)
    committed_s: float = field(default_factory=time.monotonic)

    @property
    def report(self) -> RunReport:
        """The run's report."""
        return self.run.report

    def keep(self, row: ScoreRow, text: str = "") -> None:
        """Enter a score, with others, within a few seconds."""
        self.waiting.append({**row, "run": self.report.run})
        if row["caption_key"]:
            self.texts_of[row["caption_key"]] = text
        late = time.monotonic() - self.committed_s > COMMIT_EVERY_S
        if late or len(self.waiting) >= _AT_A_TIME:
            self.commit()

    def commit(self) -> None:
        """Enter what waits."""
        with self.report.timings.time("commit"):
            self.run.catalog.scores.add(self.waiting, self.texts_of)
        self.waiting, self.texts_of = [], {}
        self.committed_s = time.monotonic()

    # ---- words alone ------------------------------------------------------------------------

    def texts(self, wanted: set[str]) -> list[str]:
        """Score captions by their words; always all, as they are held against one another."""
        rows = [_text_row(each) for each in self.captions]
        text_of = {each.caption_key: each.caption for each in self.captions}
        names = [name for name in TEXT_SCORES if name in wanted]
        low: dict[str, int] = dict.fromkeys(names, 0)
        self.report.counts.found += len(rows)
        total = len(rows) * len(TEXT_SCORES)
        with tqdm(total=total, unit="score", desc="words", disable=None, delay=1) as bar:
            for each in score_texts(rows):
                bar.update()
                if self.at.stop:
                    break
                if each.name in wanted:
                    low[each.name] += each.value < 1
                    row = _score(each.name, "", each.caption_key, each.value, TEXT_EPOCH)
                    self.keep({**row, "details": dict(each.details)}, text_of[each.caption_key])
        self.commit()
        self.report.counts.done += 0 if self.at.stop else len(rows)
        odd = ", ".join(f"{name} {number:,}" for name, number in low.items() if number)
        return [f"words of {len(rows):,} captions; below 1: {odd or 'none'}"]

    # ---- features alone ---------------------------------------------------------------------

    def looks(self) -> list[str]:
        """Score clips by their cached features."""
        looks = ClipLooks(self.store, again=self.request.again)
        self.report.counts.found += len(self.clips)
        bar = tqdm(total=len(self.clips), unit="clip", desc="clips", disable=None, delay=1)
        try:
            with bar, self.report.timings.time("features"):
                for clip in self.clips:
                    if self.at.stop:
                        break
                    self._look(looks, clip)
                    bar.update()
        finally:
            looks.save()
        if self.at.stop:
            return ["stopped before all clips were looked at; the same command goes on"]
        return self._enter(looks)

    def _look(self, looks: ClipLooks, clip: ClipRow) -> None:
        try:
            looks.add(clip)
            self.report.counts.done += 1
        except ClipError as error:
            self.report.counts.failed += 1
            self.report.warn([f"{clip['video']}: not scored: {error.problem}"])

    def _enter(self, looks: ClipLooks) -> list[str]:
        request = self.request
        clusters = looks.clusters(self.clips, request.alike)
        twins = {key: (each[0], value) for each in clusters for key, value in each[1].items()}
        number = {"static": 0, "black": 0, "duplicate": 0}
        for clip in self.clips:
            key = clip["feature_key"]
            if (look := looks.known.get(key)) is None:
                continue
            kept, likeness = twins.get(key, ("", 0.0))
            values = {"motion": look.motion, "static": float(look.motion < request.static)}
            values |= {"black": float(look.is_black), "duplicate": likeness}
            for name, value in values.items():
                if name in request.scores:
                    details = {"of": kept} if name == "duplicate" and kept else {}
                    self.keep({**_score(name, key, "", value, CLIP_EPOCH), "details": details})
                    number[name] = number.get(name, 0) + (value > 0)
        self.commit()
        lines = [
            f"features of {len(looks.known):,} clips: {number['static']:,} static,"
            f" {number['black']:,} black, {number['duplicate']:,} near-duplicates in"
            f" {len(clusters):,} clusters"
        ]
        names = {clip["feature_key"]: clip["video"] for clip in self.clips}
        for kept, others in clusters[:10]:
            alike = ", ".join(f"{names[key]} ({value:.4f})" for key, value in others.items())
            lines.append(f"  kept {names[kept]}; as good as the same: {alike}")
        return lines + ([f"  ... and {len(clusters) - 10:,} more"] if len(clusters) > 10 else [])


def _text_row(each: Scorable) -> TextRow:
    return TextRow(
        each.caption_key, each.feature_key, f"{each.model}\0{each.prompt_name}", each.caption
    )


def _score(
    name: str, feature_key: str, caption_key: str, value: float, epoch: int, **more: Any
) -> ScoreRow:
    row: dict[str, Any] = {
        "name": name,
        "feature_key": feature_key,
        "caption_key": caption_key,
        "score": value,
        "model": "",
        "prompt": "",
        "epoch": epoch,
        "details": {},
    }
    return row | more  # type: ignore[return-value]
