"""Which clips of the cache are meant: those of some videos, and those whose features fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from cogcache.catalog import (
    Catalog,
    ClipRow,
    Reading,
    looked_at,
    names_url,
    path_to_text,
    read_otherwise,
    text_to_file,
)
from cogcache.errors import CacheError, ClipError, ConfigError
from cogcache.keys import CHANGES, Field, computes_in, differences
from cogcache.models import Family, recall
from cogcache.settings import Clips, Quality, Settings, WorkShare, sampling_words
from cogcache.stages.clips.cuts import known_spans
from cogcache.system import is_url
from cogcache.video import Span, check_named, find_videos, from_home, look_at


def within(
    rows: Sequence[ClipRow], spans: Sequence[Span], clips: Clips, catalog: Catalog
) -> list[ClipRow]:
    """Return the clips that are asked for.

    Args:
        rows: clips as the catalog has them.
        spans: parts of videos, as `--clip` names them; none for all.
        clips: how videos are cut; as long as that is not said, and no spans are, all clips fit.
        catalog: knows how long videos are, and where their scenes begin.
    """
    if spans:
        asked = {*spans}
        return [row for row in rows if (row["start_s"], row["end_s"]) in asked]
    if not (clips.segment_s or clips.scenes):
        return list(rows)
    known = known_spans({row["video_digest"] for row in rows}, clips, catalog, all_videos=True)
    of_videos = {video: {*cut} for video, cut in known.items()}
    return [
        row
        for row in rows
        if (row["start_s"], row["end_s"]) in of_videos.get(row["video_digest"], ())
    ]


def worth_it(rows: Sequence[ClipRow], quality: Quality, catalog: Catalog) -> list[ClipRow]:
    """Return the clips in which enough moves, and of near-duplicates the one to keep.

    Raises:
        ConfigError: that is asked for, and clips have not been scored.
    """
    wanted = {"motion": quality.min_motion > 0, "duplicate": quality.drop_duplicates}
    names = [name for name, is_wanted in wanted.items() if is_wanted]
    if not names:
        return list(rows)
    scores = {
        (row["name"], row["feature_key"]): row["score"]
        for row in catalog.scores.rows(names=names, caption_keys=[""])
    }
    unscored = [r for r in rows if any((name, r["feature_key"]) not in scores for name in names)]
    if unscored:
        problem = f"{len(unscored)} clips have no score {' and '.join(names)}"
        raise ConfigError(problem, "give them one: `cogcache score clips`")
    kept = [
        row
        for row in rows
        if scores.get(("motion", row["feature_key"]), quality.min_motion) >= quality.min_motion
        and not scores.get(("duplicate", row["feature_key"]))
    ]
    if left_out := len(rows) - len(kept):
        logger.info("%d clips left out by --min-motion and --drop-duplicates", left_out)
    return kept


logger = logging.getLogger(__name__)


OLD_FEATURES: Final = "old_features"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The clips that are asked for."""

    clips: list[ClipRow]
    refused: list[tuple[ClipRow, ClipError]]
    """Those whose features are of other frames than a player shows, and have not been made anew."""


def choose_clips(
    settings: Settings,
    family: Family,
    catalog: Catalog,
    videos: Sequence[str | Path] | None,
    spans: Sequence[Span] = (),
) -> Chosen:
    """Return the clips that are asked for and whose features were made as `settings` say.

    Raises:
        CacheError: there are clips, but all were made with other settings.
    """
    wanted = _feature_fields(settings, family, catalog)
    share = WorkShare.parse(settings.machines.shard)
    listed = [clip for clip in catalog.clips.rows() if share.has(clip["video_digest"])]
    if videos is not None:
        names = names_of(videos, {clip["video"] for clip in listed})
        listed = [clip for clip in listed if clip["video"] in names]
    known = looked_at(catalog.files, {clip["video_digest"] for clip in listed}, look_at)
    listed = within(listed, spans, settings.clips, catalog)
    listed = worth_it(listed, settings.quality, catalog)
    # Files with the same bytes share a clip, and are listed each.
    clips = list({clip["feature_key"]: clip for clip in reversed(listed)}.values())
    fitting, differing = [], list[list[str]]()
    for clip in clips:
        made_with = {name: clip["settings"].get(name) for name in wanted}
        made_with["sampling"] = _asked_for(made_with["sampling"])
        if differs := differences(made_with, wanted):
            differing.append(differs)
        else:
            fitting.append(clip)
    if clips and not fitting:
        raise _misfit(clips, differing, settings, _why_older(clips, family))
    if "vision_digest" not in wanted:
        _check_makers(fitting, settings.model)
    return _as_shown(fitting, known)


def _asked_for(sampling: Field) -> Field:
    """Return a clip's sampling without the reader, which no setting decides."""
    if not isinstance(sampling, Mapping):
        return sampling
    return {name: value for name, value in sampling.items() if name != "reader"}


def _as_shown(clips: Sequence[ClipRow], known: Mapping[str, Reading]) -> Chosen:
    """Tell clips from those that an earlier reader read otherwise."""
    old = [(clip, reason) for clip in clips if (reason := read_otherwise(clip, known))]
    keys = {clip["feature_key"] for clip, _ in old}
    current = [clip for clip in clips if clip["feature_key"] not in keys]
    there = {_place(clip) for clip in current}
    return Chosen(current, [(c, _old(c, why)) for c, why in old if _place(c) not in there])


def _place(clip: ClipRow) -> tuple[str, Span]:
    return clip["video_digest"], (clip["start_s"], clip["end_s"])


def _old(clip: ClipRow, reason: str) -> ClipError:
    problem = f"the features of {clip['video']} are of another reading: {reason}"
    return ClipError(OLD_FEATURES, problem, "run `cogcache extract`: it makes them anew")


def _misfit(
    clips: Sequence[ClipRow], differing: Sequence[Sequence[str]], settings: Settings, older: str
) -> CacheError:
    """Return the error to show where no clip fits: what there is, what was asked for."""
    nearest = min(range(len(clips)), key=lambda place: len(differing[place]))
    clip, differs = clips[nearest], differing[nearest]
    sampling = cast(Mapping[str, Any], clip["settings"].get("sampling") or {})
    there = f"{len(clips):,} clips in the cache, made with {clip['model']}"
    there += f", {sampling_words(sampling)}" if sampling else ""
    if clip["model"] != settings.model:
        problem = f"there are {there}; you asked for {settings.model}"
        return CacheError(problem, f"add --model {clip['model']}, or extract with this model")
    # A digest says nothing to a reader: it comes last, and in words.
    told = [line for line in differs if "digest" not in line.partition(" ")[0]][:5]
    told = told or ["the weights of the vision half are others than they were"]
    return CacheError(
        f"none of the {there}, was made with these settings: {'; '.join(told)}{older}",
        "give the options or the --config that `cogcache extract` was given",
    )


def _why_older(clips: Sequence[ClipRow], family: Family) -> str:
    """Say what was wrong with features of an earlier version, if they are such; else nothing."""
    epochs = [int(str(clip["settings"].get("epoch", 0))) for clip in clips]
    changes = [each for each in CHANGES if each.of == "features" and family.name in each.families]
    found = [each.what for each in changes if min(epochs) < each.epoch]
    return f" ({'; '.join(found)}: `cogcache extract` makes them again)" if found else ""


def _check_makers(clips: Sequence[ClipRow], model: str) -> None:
    """Check what can be checked where the vision half is not at hand to compare with."""
    makers = {clip["model"] for clip in clips}
    if len({str(clip["settings"]["vision_digest"]) for clip in clips}) > 1:
        raise CacheError(
            f"the cache holds features of {' and '.join(sorted(makers))}, and the vision half of "
            f"{model} is not here to tell which are its",
            "name the videos to caption, or fetch the vision half's shards",
        )
    if makers - {model}:
        logger.warning("captioning features of %s with %s", ", ".join(sorted(makers)), model)


def names_of(videos: Sequence[str | Path], known: Set[str]) -> set[str]:
    """Return the names in the catalog of what a user names; the files may be gone by now."""
    names: set[str] = set()
    for video in map(str, videos):
        if is_url(video):
            begin = video.rstrip("/") + "/"
            found = {each for each in known if each == video or each.startswith(begin)}
            names |= found or {path_to_text(path) for path in find_videos([video])}
            continue
        check_named(video)
        path = os.path.abspath(from_home(video))  # noqa: PTH100
        name = path_to_text(path)
        found = {name} & known
        if not found and not Path(video).is_file():
            found = {each for each in known if _lies_in(path, each)}
        names |= found or {path_to_text(path) for path in find_videos([video])}
    return names


def _lies_in(folder: str, name: str) -> bool:
    return not names_url(name) and str(text_to_file(name)).startswith(f"{folder}{os.sep}")


def _feature_fields(settings: Settings, family: Family, catalog: Catalog) -> dict[str, Field]:
    """The fields of a feature key that settings decide; weights only where they are known."""
    fields: dict[str, Field] = {
        "sampling": settings.sampling.fields(),
        "preprocessing": family.preprocessing(),
        "family": family.name,
        "cache_point": settings.vision.cache_point,
        "dtype": computes_in(settings.vision.vision_dtype, compiled=settings.vision.compile),
        "epoch": family.epoch,
    }
    # A machine that only captions has no vision weights, and need not have.
    if identity := recall(family, "vision", catalog.files):
        fields["vision_digest"] = identity.digest
    return fields
