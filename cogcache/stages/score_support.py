"""The part of `score` for which a model is loaded: captions forced behind clips' video parts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from cogcache.catalog import Embedder, ScoreRow
from cogcache.errors import ClipError
from cogcache.models import Family, HalfIdentity, identify, open_family, with_adapter
from cogcache.settings import Settings
from cogcache.stages.captioning.language_half import LanguageHalf
from cogcache.stages.captioning.quantization import quantization_for
from cogcache.stages.captioning.read_ahead import if_fitting
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.runs.libraries import load_libraries, ready_to_identify
from cogcache.stages.score_visits import (
    Entry,
    clip_features,
    fitting,
    together,
    unscored,
    visits,
)

if TYPE_CHECKING:
    from cogcache.models import ClipTensors
    from cogcache.quality import ReadBehind, Supporter
    from cogcache.stages.score import Scorable, Work

_DRAWS_EPOCH: Final = 1
_ROWS: Final = 16


def score_support(work: Work, settings: Settings, wanted: Collection[str]) -> list[str]:
    """Enter `grounding`, `swap` and `questions` of captions; return lines for a reader."""
    family = open_family(settings)
    catalog = work.run.catalog
    load = partial(load_libraries, "score", work.run.timings)
    settings = quantization_for(settings, family, catalog, prepare=load).settings
    ready_to_identify("score", family, "language", catalog.files, work.run.timings)
    with work.run.timings.time("digest"):
        identity = with_adapter(
            identify(family, "language", catalog.files), settings.language.adapter
        )
    load()
    names = {*wanted} & {"grounding", "swap", "questions"}
    job = _Support(work, settings, family, identity, names)
    return job.run()


@dataclass
class _Support:
    work: Work
    settings: Settings
    family: Family
    identity: HalfIdentity
    wanted: set[str]

    def __post_init__(self) -> None:
        from cogcache.quality import SUPPORT_EPOCH

        self.epoch = SUPPORT_EPOCH
        two = StageTwo(self.settings, self.family, self.identity)
        self.half = LanguageHalf(two, self.work.report)
        self.layout = self.family.layout(self.settings.language)
        self.open: dict[str, Entry] = {}
        self.values: dict[str, list[float]] = defaultdict(list)
        self._supporter: Supporter | None = None

    @property
    def name(self) -> str:
        """What scores bear as their model: its weights, and how they are loaded."""
        language = self.settings.language
        kind = language.quantization
        return f"{self.settings.model} {self.identity.digest[:12]} {kind}"

    def run(self) -> list[str]:
        """Read every clip that is needed once; enter what is complete."""
        captions = fitting(self.work.captions, self.family, self.work.run.catalog)
        left_out = len(self.work.captions) - len(captions)
        missing = captions
        if not self.work.request.again:
            catalog = self.work.run.catalog
            missing = unscored(captions, self.wanted, catalog, self.name, self.epoch)
        counts = self.work.report.counts
        counts.found += len(captions)
        counts.cached += len(captions) - len(missing)
        self.open = {each.caption_key: self._entry(each) for each in missing}
        videos = {each.feature_key: each.video_digest or each.feature_key for each in captions}
        others = self.work.request.others if "swap" in self.wanted else 0
        todo = visits([*self.open.values()], videos, others)
        bar = tqdm(total=len(missing), unit="caption", desc="support", disable=None, delay=1)
        with bar:
            read = clip_features(self.work.store, [*todo])
            for clips in together(read, lambda: self._most_clips):
                if self.work.at.stop:
                    break
                self._score(dict(clips), todo)
                bar.update(sum(self._complete(todo.pop(key)) for key, _ in clips))
        self.work.commit()
        return self._lines(len(captions), left_out)

    def _entry(self, each: Scorable) -> Entry:
        from cogcache.quality import Claimed

        # An imported caption may not say what it answers.
        prompts = self.settings.prompts
        known = each.prompt or prompts.get(each.prompt_name)
        prompt = known or next(iter(prompts.values()), "Describe this video.")
        return Entry(each, Claimed(each.caption_key, each.feature_key, prompt, each.caption))

    # ---- some clips -------------------------------------------------------------------------

    @property
    def _most_clips(self) -> int:
        return self._supporter.rows.rows_at_once if self._supporter else 1

    def _score(
        self, clips: Mapping[str, ClipTensors | ClipError], todo: Mapping[str, Sequence[Entry]]
    ) -> None:
        """Read what is to be read behind some clips; note those that cannot be read."""
        from cogcache.quality import ReadBehind

        read: list[tuple[Entry, ReadBehind]] = []
        for key, found in clips.items():
            features = if_fitting(found, self.family, self.layout)
            if isinstance(features, ClipError):
                self._fail(key, todo[key], features)
                continue
            self._load(features, todo[key])
            read += [(each, ReadBehind(key, features, each.claimed)) for each in todo[key]]
        with self.work.report.timings.time("score"):
            self._read(read)

    def _read(self, read: Sequence[tuple[Entry, ReadBehind]]) -> None:
        supporter = self._supporter
        if supporter is None or not read:
            return
        if self.wanted & {"grounding", "swap"}:
            found = supporter.behind([each for _, each in read])
            for (entry, each), (tokens, values) in zip(read, found, strict=True):
                if entry.caption.feature_key == each.feature_key:
                    entry.own = tokens, values
                else:
                    entry.others.append(float(values.mean()))
        own = [pair for pair in read if pair[0].caption.feature_key == pair[1].feature_key]
        if "grounding" in self.wanted and own:
            self._read_blind(own[0][1].features, [entry for entry, _ in own])
        if "questions" in self.wanted:
            answers = supporter.affirmed([each for _, each in own])
            for (entry, _), its in zip(own, answers, strict=True):
                self._keep_questions(entry, its)

    def _read_blind(self, features: ClipTensors, own: Sequence[Entry]) -> None:
        """Read captions behind their prompts alone, with those that will be asked for next."""
        assert self._supporter is not None
        if any(entry.blind is None for entry in own):
            here = {entry.claimed.caption_key: entry for entry in own}
            waiting = (each for each in self.open.items() if each[1].blind is None)
            some = [*(here | dict(islice(waiting, 4 * _ROWS))).values()]
            blind = self._supporter.blind(features, [entry.claimed for entry in some])
            for entry, values in zip(some, blind, strict=True):
                entry.blind = values

    def _load(self, features: ClipTensors, entries: Sequence[Entry]) -> None:
        """Load the language half, when the first clip comes."""
        from cogcache.generation import ForcedRows
        from cogcache.quality import Supporter

        if self._supporter is not None:
            return
        row = self.family.row(features, entries[0].claimed.prompt, self.layout)
        decoder = self.half.load(row.length)
        rows = max(min(_ROWS, getattr(decoder, "rows_at_once", 1)), 1)
        forced = ForcedRows(self.half.model, self.family, rows, self.half.kept)
        self._supporter = Supporter(forced, self.layout)

    # ---- what comes of it -------------------------------------------------------------------

    def _complete(self, entries: Sequence[Entry]) -> int:
        """Enter the captions that nothing more is to be read for; return how many."""
        done = 0
        for entry in entries:
            entry.left -= 1
            if entry.left == 0 and self.open.pop(entry.claimed.caption_key, None) is not None:
                self._keep(entry)
                done += 1
        self.work.report.counts.done += done
        return done

    def _keep(self, entry: Entry) -> None:
        from cogcache.quality import Supported, least_supported

        if entry.own is None:
            return
        tokens, own = entry.own
        if not tokens:
            return
        supported = Supported(tokens, own, entry.blind if entry.blind is not None else own)
        if "grounding" in self.wanted and entry.blind is not None:
            least = least_supported(self.family, supported)
            details: dict[str, Any] = {"gain": round(supported.gain, 4)}
            details |= {"least": [[word, round(gain, 3), place] for word, gain, place in least]}
            self._enter(entry, "grounding", supported.grounding, details)
        if "swap" in self.wanted and entry.others:
            self._enter(entry, "swap", supported.swap(entry.others), {"others": len(entry.others)})

    def _keep_questions(self, entry: Entry, answers: Sequence[tuple[str, float]]) -> None:
        if answers:
            value = sum(share for _, share in answers) / len(answers)
            claims = [[claim, round(share, 4)] for claim, share in answers]
            self._enter(entry, "questions", value, {"claims": claims})

    def _enter(self, entry: Entry, name: str, value: float, details: dict[str, Any]) -> None:
        self.values[name].append(value)
        row: ScoreRow = {
            "name": name,
            "feature_key": "",
            "caption_key": entry.claimed.caption_key,
            "score": value,
            "model": self.name,
            "prompt": entry.claimed.prompt,
            "epoch": self.epoch,
            "details": json.loads(json.dumps(details)),
        }
        self.work.keep(row, entry.claimed.text)

    def _fail(self, key: str, entries: Sequence[Entry], error: ClipError) -> None:
        """Count the captions of a clip that cannot be read; for others it is one clip less."""
        for entry in entries:
            if entry.caption.feature_key == key:
                self.work.report.counts.failed += 1
                self.open.pop(entry.claimed.caption_key)
        self.work.report.warn([f"not scored: {error.problem}"])

    def _lines(self, number: int, left_out: int) -> list[str]:
        lines = [
            f"{name} of {len(values):,} captions: lowest {min(values):.3f},"
            f" mean {sum(values) / len(values):.3f}"
            for name, values in self.values.items()
        ]
        if not lines and number and not self.work.report.counts.failed and not self.work.at.stop:
            lines = [f"support: all {number:,} captions were scored already"]
        if left_out:
            lines.append(
                f"{left_out:,} captions left out: they are of features that {self.settings.model}"
                " does not read; name the model that made them with --model"
            )
        return lines


def score_draws(work: Work, model: str) -> list[str]:
    """Enter `consistency`: how like a caption is to the other draws of its clip and prompt."""
    groups: dict[tuple[str, str, str], list[Scorable]] = defaultdict(list)
    for each in work.captions:
        groups[each.feature_key, each.prompt_name, each.model].append(each)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return ["consistency: no clip has several captions of a prompt; make some with --n"]
    embedder = Embedder(model)
    work.report.counts.found += sum(map(len, several))
    for group in tqdm(several, unit="clip", desc="consistency", disable=None, delay=1):
        if work.at.stop:
            break
        vectors = embedder.encode([each.caption for each in group])
        likeness = vectors @ vectors.T
        for number, each in enumerate(group):
            value = float((likeness[number].sum() - likeness[number, number]) / (len(group) - 1))
            row: ScoreRow = {
                "name": "consistency", "feature_key": "", "caption_key": each.caption_key,
                "score": value, "model": model, "prompt": each.prompt, "epoch": _DRAWS_EPOCH,
                "details": {"draws": len(group)},
            }  # fmt: skip
            work.keep(row, each.caption)
        work.report.counts.done += len(group)
    work.commit()
    return [f"consistency of {len(several):,} clips with several captions"]
