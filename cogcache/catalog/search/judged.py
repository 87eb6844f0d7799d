"""Conditions over captions by what people and scores say of them, in SQL over ``captions c``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cogcache.catalog.rows import EDITED

REJECTED: Final = "c.caption_key IN (SELECT caption_key FROM rejected_captions)"
NOT_REJECTED: Final = "c.caption_key NOT IN (SELECT caption_key FROM rejected_captions)"
DUPLICATE: Final = "duplicate"
"""Name of the score that a clip has which is a near-duplicate of one that is kept."""
MOTION: Final = "motion"
STATES: Final = ("accepted", "rejected", "edited", "unreviewed")

# The version of a caption `c`, also where it is what a set has for an edited one. One caption after
# another is looked up: a page asks for few of many.
_REVIEWED: Final = f"""EXISTS (SELECT 1 FROM current_edits e
    WHERE e.caption_key = iif(c.quantization = '{EDITED}',
        json_extract(c.settings, '$.edited'), c.caption_key) AND {{test}})"""


def reviewed_as(states: Sequence[str], tags: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Return tests of what people said of a caption; one of the states, and one of the tags."""
    by_state = [_in_state(state) for state in states]
    tests = [f"({' OR '.join(by_state)})"] if by_state else []
    if tags:
        names = []
        for number, tag in enumerate(tags):
            values[f"tag_{number}"] = tag
            names.append(f":tag_{number}")
        test = f"EXISTS (SELECT 1 FROM json_each(e.tags) WHERE value IN ({', '.join(names)}))"
        tests.append(_REVIEWED.format(test=test))
    return tests


def _in_state(state: str) -> str:
    if state == "edited":
        return f"c.quantization = '{EDITED}'"
    if state == "unreviewed":
        # A tag is no verdict: it marks what is to be looked at.
        verdict = "(e.state <> '' OR e.text IS NOT NULL)"
        return f"NOT {_REVIEWED.format(test=verdict)}"
    return _REVIEWED.format(test=f"e.state = '{state}'")


def scored(
    least: Sequence[tuple[str, float]], values: dict[str, Any], *, drop_duplicates: bool
) -> list[str]:
    """Return tests of scores: of the caption itself, or of its clip."""
    tests = []
    for number, (name, value) in enumerate(least):
        values |= {f"score_{number}": name, f"least_{number}": value}
        test = f"s.name = :score_{number} AND s.score >= :least_{number}"
        tests.append(
            f"(EXISTS (SELECT 1 FROM whole_scores s WHERE s.caption_key = c.caption_key AND {test})"
            " OR EXISTS (SELECT 1 FROM whole_scores s WHERE s.feature_key = c.feature_key"
            f" AND s.caption_key = '' AND {test}))"
        )
    if drop_duplicates:
        tests.append(
            "EXISTS (SELECT 1 FROM whole_scores s WHERE s.feature_key = c.feature_key"
            f" AND s.caption_key = '' AND s.name = '{DUPLICATE}' AND s.score = 0)"
        )
    return tests


def unscored(names: Sequence[str], values: dict[str, Any]) -> str:
    """Return the test that a caption, and its clip, lack one of some scores."""
    tests = []
    for number, name in enumerate(names):
        values[f"unscored_{number}"] = name
        tests.append(
            f"NOT EXISTS (SELECT 1 FROM whole_scores s WHERE s.name = :unscored_{number} AND"
            " (s.caption_key = c.caption_key"
            " OR s.caption_key = '' AND s.feature_key = c.feature_key))"
        )
    return f"({' OR '.join(tests)})"


def preferred(names: Sequence[str], values: dict[str, Any]) -> str:
    """Return the test that no caption of the same clip and prompt is of a more preferred model.

    A clip is known by its video's bytes and its span: features of two models have two keys.
    """
    if not names:
        return ""
    for number, name in enumerate(names):
        values[f"preferred_{number}"] = name
    listed = ", ".join(f":preferred_{number}" for number in range(len(names)))
    return f"""(c.model IN ({listed}) AND NOT EXISTS (SELECT 1 FROM whole_captions b
        WHERE b.prompt_name = c.prompt_name AND b.end_s IS c.end_s AND b.model IN ({listed})
        AND {_rank("b", len(names))} < {_rank("c", len(names))}
        AND (b.video_digest = c.video_digest AND b.start_s = c.start_s
            OR b.feature_key = c.feature_key)
        AND b.caption_key NOT IN (SELECT caption_key FROM rejected_captions)))"""


def _rank(row: str, number: int) -> str:
    cases = " ".join(f"WHEN :preferred_{each} THEN {each}" for each in range(number))
    return f"CASE {row}.model {cases} END"
