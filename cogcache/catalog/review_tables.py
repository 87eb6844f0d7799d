"""The tables that the ninth step of `migrations` makes: what people did with captions, and scores.

Never changed: a later step changes them.
"""

from __future__ import annotations

from typing import Final

REVIEW_TABLES: Final = (
    # A row a version, never changed: what people did with a caption, as a whole each time.
    """CREATE TABLE edits (
        uid TEXT NOT NULL,
        caption_key TEXT NOT NULL,
        edited_key TEXT NOT NULL,
        set_name TEXT NOT NULL,
        action TEXT NOT NULL,
        text TEXT,
        was TEXT,
        state TEXT NOT NULL,
        tags TEXT NOT NULL,
        author TEXT NOT NULL,
        created_at TEXT NOT NULL,
        batch TEXT NOT NULL,
        undoes TEXT NOT NULL,
        checksum INTEGER
    )""",
    "CREATE UNIQUE INDEX edits_uid ON edits (uid)",
    "CREATE INDEX edits_caption ON edits (caption_key, set_name, created_at, uid)",
    "CREATE INDEX edits_batch ON edits (batch)",
    "CREATE INDEX edits_rejected ON edits (caption_key) WHERE state = 'rejected'",
    """CREATE TABLE scores (
        name TEXT NOT NULL,
        feature_key TEXT NOT NULL,
        caption_key TEXT NOT NULL,
        score REAL NOT NULL,
        model TEXT NOT NULL,
        prompt TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        details TEXT NOT NULL,
        created_at TEXT NOT NULL,
        run INTEGER REFERENCES runs (run),
        checksum INTEGER
    )""",
    "CREATE UNIQUE INDEX scores_of ON scores (name, feature_key, caption_key)",
    "CREATE INDEX scores_caption ON scores (caption_key, name)",
    # What was scored is gone or says something else: the score goes with it.
    """CREATE TRIGGER captions_sd AFTER DELETE ON captions BEGIN
        DELETE FROM scores WHERE caption_key = old.caption_key;
    END""",
    """CREATE TRIGGER captions_su AFTER UPDATE OF caption ON captions
        WHEN old.caption <> new.caption BEGIN
        DELETE FROM scores WHERE caption_key = old.caption_key;
    END""",
)
