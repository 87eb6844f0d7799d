"""Sums over a whole collection, kept in the catalog by triggers: the third migration.

To add up 100,000 clips anew for each page would take a good part of a second.
"""

from __future__ import annotations

from typing import Final

_COUNT_CAPTION: Final = """INSERT INTO caption_totals
    VALUES ({row}.model, {row}.prompt_name, {row}.quantization, {row}.flags,
        {row}.num_tokens / 10 * 10, {sign}1, {sign}{row}.seconds)
    ON CONFLICT DO UPDATE SET
        captions = captions + excluded.captions, seconds = seconds + excluded.seconds;"""
_COUNT_CLIP: Final = """INSERT INTO clip_totals
    VALUES ({row}.model, {row}.family, {row}.decoder,
        {sign}1, {sign}{row}.num_frames, {sign}{row}.size_bytes)
    ON CONFLICT DO UPDATE SET clips = clips + excluded.clips,
        num_frames = num_frames + excluded.num_frames,
        size_bytes = size_bytes + excluded.size_bytes;"""
_COUNTED: Final = {
    "captions": (_COUNT_CAPTION, "model, prompt_name, quantization, flags, num_tokens, seconds"),
    "clips": (_COUNT_CLIP, "model, family, decoder, num_frames, size_bytes"),
}


def _triggers(table: str) -> list[str]:
    count, columns = _COUNTED[table]
    added, taken = count.format(row="new", sign=""), count.format(row="old", sign="-")
    bodies = {
        "INSERT": added,
        "DELETE": taken,
        f"UPDATE OF {columns}": f"{taken} {added}",
    }
    return [
        f"CREATE TRIGGER {table}_{event.split()[0].lower()}_totals AFTER {event} ON {table}"
        f" BEGIN {body} END"
        for event, body in bodies.items()
    ]


STATEMENTS: Final = (
    """CREATE TABLE caption_totals (
        model TEXT, prompt_name TEXT, quantization TEXT, flags TEXT, tokens_from INTEGER,
        captions INTEGER NOT NULL, seconds REAL NOT NULL,
        PRIMARY KEY (model, prompt_name, quantization, flags, tokens_from)
    ) WITHOUT ROWID""",
    """CREATE TABLE clip_totals (
        model TEXT, family TEXT, decoder TEXT,
        clips INTEGER NOT NULL, num_frames INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
        PRIMARY KEY (model, family, decoder)
    ) WITHOUT ROWID""",
    """INSERT INTO caption_totals SELECT model, prompt_name, quantization, flags,
        num_tokens / 10 * 10 AS tokens_from, count(*), sum(seconds) FROM captions
        GROUP BY model, prompt_name, quantization, flags, tokens_from""",
    """INSERT INTO clip_totals SELECT model, family, decoder,
        count(*), sum(num_frames), sum(size_bytes) FROM clips GROUP BY model, family, decoder""",
    *_triggers("captions"),
    *_triggers("clips"),
    # Within a set of captions, this index has them by their numbers: pages follow it.
    "CREATE INDEX captions_set ON captions (prompt_name, model, quantization)",
    "CREATE INDEX failures_reason ON failures (reason, stage)",
    "CREATE INDEX videos_sums ON videos (duration_s, size_bytes)",
)
