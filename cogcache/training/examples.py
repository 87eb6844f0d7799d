"""Chooses captions to train on, and lays them out with the code of stage two."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cogcache.catalog import Catalog, CatalogFile, ClipRow, Selection, warn_of_unscored
from cogcache.errors import CacheError, FeaturesError, NothingToLearnError, TrainingError
from cogcache.models import ClipTensors, Family, PromptRow, check_features, features_of
from cogcache.store import FeatureStore
from cogcache.units import printable

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS: Final = ("caption_key", "feature_key", "prompt_name", "prompt", "caption", "model")
_HINT: Final = "see what there is: `cogcache ls`"


@dataclass(frozen=True, slots=True)
class Chosen:
    """One caption to learn from."""

    caption_key: str
    feature_key: str
    video_digest: str
    clip: str
    """The clip, for a reader: its video and its part of it."""
    prompt_name: str
    prompt: str
    caption: str

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.clip}, prompt {self.prompt_name!r}"

    @property
    def content(self) -> str:
        """A digest of what is learnt: the prompt and the caption."""
        parts = (self.feature_key, self.prompt, self.caption)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A caption laid out behind its clip and its prompt.

    Args:
        chosen: the caption.
        prompt_length: tokens before the caption, feature slots included.
        sequences: `input_ids` and whatever else has a value a token; prompt, caption and the token
            that ends it. Each int64 [L].
    """

    chosen: Chosen
    prompt_length: int
    sequences: Mapping[str, Tensor]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.sequences["input_ids"].shape[0])

    @property
    def num_labels(self) -> int:
        """Number of tokens that are learnt: the caption's and the end."""
        return self.length - self.prompt_length

    @property
    def answer(self) -> list[int]:
        """The tokens that are learnt."""
        answer: list[int] = self.sequences["input_ids"][self.prompt_length :].tolist()
        return answer


@dataclass
class LaidOut:
    """Examples, and captions that were left out."""

    examples: list[Example] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Names of captions by the reason."""

    def lines(self) -> list[str]:
        """Return a line a reason for a reader."""
        return [
            f"{len(names)} captions left out: {reason}, such as {names[0]}"
            for reason, names in self.left_out.items()
        ]


def choose(
    catalog_path: Path, selection: Selection, prompts: Mapping[str, str], fits: Mapping[str, Any]
) -> list[Chosen]:
    """Return the captions that pass the filters and are about features that a model reads.

    Args:
        catalog_path: the SQLite file.
        selection: which captions.
        prompts: what was asked, by name, for imported captions that do not say.
        fits: fields of a feature key that the clips must have.

    Raises:
        TrainingError: none passes, they are about other features, or two are of one clip and
            prompt.
    """
    rows = {row["caption_key"]: row for row in _rows(catalog_path, selection)}
    if not rows:
        raise NothingToLearnError("no caption passes the filters", _none_hint(selection))
    with Catalog(catalog_path) as catalog:
        clips = {clip["feature_key"]: clip for clip in catalog.clips.rows()}
    about = [row for row in rows.values() if row["feature_key"] in clips and row["caption"].strip()]
    if not about:
        problem = "all captions that pass are empty, or of whole videos without features"
        raise NothingToLearnError(problem, "choose others")
    chosen = [row for row in about if not _other(clips[row["feature_key"]], fits)]
    if not chosen:
        clip = clips[about[0]["feature_key"]]
        problem = f"all {len(about)} captions are of features of another model: {clip['video']} has"
        raise TrainingError(
            f"{problem} {'; '.join(_other(clip, fits))}", "choose others, or --model"
        )
    _check_one_each(chosen)
    return [_chosen(row, clips[row["feature_key"]], prompts) for row in chosen]


def _none_hint(selection: Selection) -> str:
    if selection.include_rejected:
        return _HINT
    return f"{_HINT}; rejected ones are left out without --include-rejected"


def _rows(catalog_path: Path, selection: Selection) -> list[dict[str, Any]]:
    where, values = selection.usable()
    columns = ", ".join(f"c.{name}" for name in _COLUMNS)
    tests = where and f"WHERE {where}"
    sql = f"SELECT {columns} FROM whole_captions c {tests} ORDER BY c.caption_key"
    with closing(CatalogFile(catalog_path)) as file:
        warn_of_unscored(file, selection)
        return [dict(row) for row in file.query(sql, values)]


def _other(clip: ClipRow, fits: Mapping[str, Any]) -> list[str]:
    """Say in which fields a clip's features are other than a model reads."""
    made_with = clip["settings"]
    return [
        f"{name} {str(made_with.get(name))[:12]} in place of {str(wanted)[:12]}"
        for name, wanted in fits.items()
        if made_with.get(name) != wanted
    ]


def _check_one_each(rows: Iterable[Mapping[str, Any]]) -> None:
    """Refuse captions of several models for one clip and prompt: which is right is not known."""
    models: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        models[row["feature_key"], row["prompt_name"]].add(row["model"])
    several = {key: names for key, names in models.items() if len(names) > 1}
    if several:
        names = sorted(next(iter(several.values())))
        problem = f"{len(several)} clips have captions of several models for one prompt"
        raise TrainingError(
            problem,
            f"choose one: --captions-of {' or --captions-of '.join(names)}; or the first that"
            f" there is: --prefer {','.join(names)}",
        )


def _chosen(row: Mapping[str, Any], clip: ClipRow, prompts: Mapping[str, str]) -> Chosen:
    name = row["prompt_name"]
    prompt = row["prompt"] or prompts.get(name, "")
    if not prompt:
        problem = f"the captions named {name!r} do not say what was asked"
        raise TrainingError(problem, f'say it in --config: [prompts] and {name} = "…"')
    end_s = "" if clip["end_s"] is None else f"{clip['end_s']:g}"
    span = f" {clip['start_s']:g}:{end_s}" if clip["start_s"] or end_s else ""
    return Chosen(
        caption_key=row["caption_key"],
        feature_key=row["feature_key"],
        video_digest=clip["video_digest"],
        clip=printable(clip["video"]) + span,
        prompt_name=name,
        prompt=prompt,
        caption=row["caption"].strip(),
    )


def split_by_video(chosen: Sequence[Chosen], share: float) -> tuple[list[Chosen], list[Chosen]]:
    """Return what to train on and what to evaluate on; a video is on one side only.

    Which side a video is on is decided by its digest alone, so that it stays there when others
    are added.

    Raises:
        TrainingError: there is one video only, and a share of the videos is asked for.
    """
    places = {each.video_digest: _place(each.video_digest) for each in chosen}
    if not share:
        return list(chosen), []
    if len(places) < 2:
        problem = "all captions are of one video: none is left to evaluate with"
        raise TrainingError(problem, "choose captions of more videos, or give --eval-share 0")
    held = {video for video, place in places.items() if place < share}
    by_place = sorted(places, key=places.__getitem__)
    held = held or {by_place[0]}
    if len(held) == len(places):
        held.discard(by_place[-1])
    kept = [each for each in chosen if each.video_digest not in held]
    return kept, [each for each in chosen if each.video_digest in held]


def _place(video_digest: str) -> float:
    """Return where a video lies between 0 and 1."""
    return int(hashlib.sha256(f"evaluation {video_digest}".encode()).hexdigest()[:12], 16) / 16**12


def lay_out(
    chosen: Sequence[Chosen], family: Family, store: FeatureStore, layout: str, context: int | None
) -> LaidOut:
    """Lay captions out behind their clips and prompts; no feature is read, but their shapes.

    Left out are captions whose tokens are not the caption any more when they are read back, and
    rows longer than the model's context: a clip's video is never cut.

    Args:
        chosen: the captions.
        family: of the model, at the cache point.
        store: has the features.
        layout: of prompts.
        context: most positions of the model; None where it does not say.

    Raises:
        CacheError: a clip's features are gone, damaged, or no such as the model reads.
    """
    laid = LaidOut()
    outlines: dict[str, ClipTensors] = {}
    for each in chosen:
        if each.feature_key not in outlines:
            outlines[each.feature_key] = _outline(store, each, family, layout)
        example = lay_out_one(each, family, outlines[each.feature_key], layout)
        if family.text_of(example.answer) != each.caption:
            laid.left_out["the tokenizer cannot spell them"].append(each.name)
        elif context is not None and example.length > context:
            laid.left_out[f"longer than the model's {context} tokens"].append(each.name)
        else:
            laid.examples.append(example)
    return laid


def lay_out_one(chosen: Chosen, family: Family, features: ClipTensors, layout: str) -> Example:
    """Lay one caption out; of the features, shapes and texts count."""
    import torch

    row = family.row(features, chosen.prompt, layout)
    answer = torch.tensor(family.answer_ids(features, chosen.prompt, layout, chosen.caption))
    nothing = torch.zeros_like(answer)
    sequences = {
        name: torch.cat((each, answer if name == "input_ids" else nothing))
        for name, each in row.sequences.items()
    }
    return Example(chosen, row.length, sequences)


def as_row(example: Example, features: ClipTensors, width: int, fill: int) -> PromptRow:
    """Return an example as a row of `width` tokens, filled up on the right."""
    from torch.nn.functional import pad

    missing = width - example.length
    sequences = {
        name: pad(each, (0, missing), value=fill if name == "input_ids" else 0)
        for name, each in example.sequences.items()
    }
    return PromptRow(features, sequences)


def _outline(store: FeatureStore, chosen: Chosen, family: Family, layout: str) -> ClipTensors:
    try:
        features = clip_tensors(store.outline(chosen.feature_key))
        check_features(family, features, layout)
    except FeaturesError as error:
        raise CacheError(f"{chosen.name}: {error.problem}", error.hint) from error
    return features


def clip_tensors(stored: Any) -> ClipTensors:
    """Return what a feature file holds as a family reads it."""
    return features_of(stored.tensors, stored.attributes)
