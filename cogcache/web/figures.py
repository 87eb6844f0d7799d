"""The figures of a collection, its failures and its runs, for pages and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from cogcache.catalog import STAGES
from cogcache.settings import PART, SUMMARY
from cogcache.web.browse import Browser, BrowseRow, CaptionSet, Page

RUNS_PER_PAGE: Final = 20
NAME: Final = "figures"
"""What the sums of the whole collection are remembered under."""
_RUN: Final = "run, command, model, started_at, ended_at, status, planned_peak_bytes"


def failures(browser: Browser, reason: str = "", number: int = 1) -> Page:
    """Return a page of failures, for one reason or for all."""
    reasons = failure_reasons(browser)
    total = reasons[reason] if reason else reasons.total()
    where = "WHERE reason = :reason" if reason else ""
    sql = f"""SELECT * FROM whole_failures {where}
        ORDER BY video, start_s, end_s, stage LIMIT :limit OFFSET :offset"""
    return browser.page(total, number, sql, {"reason": reason} if reason else {})


def failure_reasons(browser: Browser) -> Counter[str]:
    """Return how many clips failed for each reason."""
    rows = browser.rows("SELECT reason, count(*) AS clips FROM whole_failures GROUP BY reason")
    return Counter({row["reason"]: row["clips"] for row in rows})


def runs(browser: Browser, number: int = 1) -> Page:
    """Return a page of the runs, the newest first, without what each reported in full."""
    total = browser.value("SELECT count(*) FROM shown_runs")
    sql = f"""SELECT {_RUN}, measured_peak_bytes, split, counts,
            json_extract(report, '$.total_s') AS total_s
        FROM whole_runs ORDER BY run DESC LIMIT :limit OFFSET :offset"""
    return browser.page(total, number, sql, {}, RUNS_PER_PAGE)


def run(browser: Browser, number: int) -> BrowseRow | None:
    """Return one run with all that it reported."""
    found = browser.rows("SELECT * FROM whole_runs WHERE run = :run", {"run": number})
    return found[0] if found else None


def last_runs(browser: Browser) -> dict[str, BrowseRow]:
    """Return the last run of each stage that made something."""
    sql = """SELECT * FROM whole_runs WHERE run = (
            SELECT max(run) FROM whole_runs
            WHERE command = :command AND json_extract(counts, '$.done') > 0)"""
    stages = {stage: browser.rows(sql, {"command": stage}) for stage in STAGES}
    return {stage: rows[0] for stage, rows in stages.items() if rows}


def whole_model_bytes(stages: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Return the size of both halves' weights in the checkpoint; None if one is unknown."""
    read = [sum(run["report"].get("bytes_by_shard", {}).values()) for run in stages.values()]
    one_model = len({run["model"] for run in stages.values()}) == 1
    return sum(read) if len(read) == 2 and all(read) and one_model else None


def collection(browser: Browser) -> BrowseRow:
    """Return the figures of the whole collection, as `figures_of` has them, until it changes."""
    return browser.remembered(NAME, figures_of)


def figures_of(browser: Browser) -> BrowseRow:
    """Return the figures of the whole collection.

    Returns:
        ``videos``, ``duration_s``, ``video_bytes``; ``clips``, ``num_frames``, ``feature_bytes``;
        ``captions``, ``caption_s``, ``coverage`` (share of the clips
        that have one); ``flags`` and ``lengths`` (captions by
        flag and by tokens, from each ten on), ``decoders`` (clips by decoder); ``sets`` (captions
        by set); ``seconds`` (by stage and part, over all runs).
    """
    figures = browser.rows("""SELECT count(*) AS videos, total(duration_s) AS duration_s,
        total(size_bytes) AS video_bytes FROM whole_videos""")[0]
    clips = browser.rows("SELECT * FROM shown_clip_totals WHERE clips > 0")
    figures["clips"] = sum(row["clips"] for row in clips)
    figures["num_frames"] = sum(row["num_frames"] for row in clips)
    figures["feature_bytes"] = sum(row["size_bytes"] for row in clips)
    figures["decoders"] = _count(clips, "decoder", "clips")
    captioned = browser.value(
        """SELECT count(DISTINCT feature_key) FROM shown_captions
        WHERE prompt_name NOT IN (:summary, :part)""",
        {"summary": SUMMARY, "part": PART},
    )
    # Captions outlive their features: then there are more captioned clips than clips.
    figures["coverage"] = min(1.0, captioned / figures["clips"]) if figures["clips"] else 0.0
    return figures | captions(browser) | {"seconds": _seconds(browser)}


def captions(browser: Browser) -> BrowseRow:
    """Return the part of `collection` that is about captions."""
    totals = browser.rows("SELECT * FROM shown_caption_totals WHERE captions > 0")
    flags: Counter[str] = Counter()
    sets: Counter[CaptionSet] = Counter()
    for row in totals:
        flags.update(dict.fromkeys(row["flags"], row["captions"]))
        sets[CaptionSet(row["prompt_name"], row["model"], row["quantization"])] += row["captions"]
    return {
        "captions": sum(row["captions"] for row in totals),
        "caption_s": sum(row["seconds"] for row in totals),
        "flags": flags,
        "lengths": _count(totals, "tokens_from", "captions"),
        "sets": sets,
    }


def _count(rows: list[BrowseRow], name: str, counted: str) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for row in rows:
        counts[row[name]] += row[counted]
    return counts


def _seconds(browser: Browser) -> dict[str, Counter[str]]:
    sql = """SELECT command, part.key AS part, total(part.value) AS seconds
        FROM whole_runs AS runs, json_each(runs.split) AS part GROUP BY command, part.key
        ORDER BY command DESC, seconds DESC"""
    seconds: dict[str, Counter[str]] = {}
    for row in browser.rows(sql):
        seconds.setdefault(row["command"], Counter())[row["part"]] = row["seconds"]
    return seconds
