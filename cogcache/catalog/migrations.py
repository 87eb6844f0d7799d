"""The numbered steps by which a catalog gets its tables. Add steps; never change one.

`whole_rows` says what a new table needs besides its step. Each step is applied once, in order, in a
transaction, and is noted in ``_sqlite_migrations``, a table as sqlite-utils makes it: earlier
versions of cogcache applied their steps with that library.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from sqlite3 import Connection
from typing import Final

from cogcache.catalog.later_migrations import STEPS
from cogcache.catalog.review_tables import REVIEW_TABLES
from cogcache.catalog.whole_rows import TABLES, Checksums, Damage, columns_of, define, key_fits

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


SUMS: Final = {
    "caption_totals": """INSERT INTO caption_totals SELECT model, prompt_name, quantization, flags,
        num_tokens / 10 * 10 AS tokens_from, count(*), sum(seconds) FROM captions
        GROUP BY model, prompt_name, quantization, flags, tokens_from""",
    "clip_totals": """INSERT INTO clip_totals SELECT model, family, decoder,
        count(*), sum(num_frames), sum(size_bytes) FROM clips GROUP BY model, family, decoder""",
}
"""What fills the tables that are sums over others."""
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
    *SUMS.values(),
    *_triggers("captions"),
    *_triggers("clips"),
    # Within a set of captions, this index has them by their numbers: pages follow it.
    "CREATE INDEX captions_set ON captions (prompt_name, model, quantization)",
    "CREATE INDEX failures_reason ON failures (reason, stage)",
    "CREATE INDEX videos_sums ON videos (duration_s, size_bytes)",
)


_FIRST = """
CREATE TABLE files (
    path TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode TEXT NOT NULL,
    digest TEXT NOT NULL
);
CREATE TABLE runs (
    run INTEGER PRIMARY KEY AUTOINCREMENT,
    command TEXT NOT NULL,
    model TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    status TEXT NOT NULL,
    settings TEXT NOT NULL,
    planned_peak_bytes INTEGER,
    measured_peak_bytes INTEGER,
    split TEXT NOT NULL,
    counts TEXT NOT NULL,
    report TEXT NOT NULL
);
CREATE TABLE memory (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE videos (
    digest TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    duration_s REAL,
    fps REAL,
    width INTEGER,
    height INTEGER,
    total_num_frames INTEGER,
    codec TEXT,
    size_bytes INTEGER NOT NULL
);
CREATE INDEX videos_path ON videos (path);
CREATE TABLE clips (
    feature_key TEXT PRIMARY KEY,
    video_digest TEXT NOT NULL REFERENCES videos (digest),
    video TEXT NOT NULL,
    start_s REAL NOT NULL,
    end_s REAL,
    family TEXT NOT NULL,
    model TEXT NOT NULL,
    num_frames INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    decoder TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_at TEXT NOT NULL,
    run INTEGER REFERENCES runs (run)
);
CREATE INDEX clips_video ON clips (video, start_s);
CREATE INDEX clips_video_digest ON clips (video_digest);
CREATE TABLE captions (
    id INTEGER PRIMARY KEY,
    caption_key TEXT NOT NULL UNIQUE,
    feature_key TEXT NOT NULL,
    video TEXT NOT NULL,
    start_s REAL NOT NULL,
    end_s REAL,
    prompt_name TEXT NOT NULL,
    prompt TEXT NOT NULL,
    caption TEXT NOT NULL,
    model TEXT NOT NULL,
    quantization TEXT NOT NULL,
    flags TEXT NOT NULL,
    num_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    settings TEXT NOT NULL,
    created_at TEXT NOT NULL,
    run INTEGER REFERENCES runs (run)
);
CREATE INDEX captions_feature_key ON captions (feature_key);
CREATE INDEX captions_video ON captions (video, start_s);
CREATE TABLE failures (
    video TEXT NOT NULL,
    start_s REAL NOT NULL,
    end_s REAL,
    stage TEXT NOT NULL,
    feature_key TEXT,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    tries INTEGER NOT NULL,
    first_at TEXT NOT NULL,
    last_at TEXT NOT NULL,
    run INTEGER REFERENCES runs (run)
);
CREATE UNIQUE INDEX failures_clip ON failures (video, start_s, ifnull(end_s, -1), stage);
"""

_FIRST_SEARCH: Final = (
    "CREATE VIRTUAL TABLE captions_fts USING FTS5 (caption, content = captions)",
    """CREATE TRIGGER captions_ai AFTER INSERT ON captions BEGIN
        INSERT INTO captions_fts (rowid, caption) VALUES (new.rowid, new.caption);
    END""",
    """CREATE TRIGGER captions_ad AFTER DELETE ON captions BEGIN
        INSERT INTO captions_fts (captions_fts, rowid, caption)
        VALUES ('delete', old.rowid, old.caption);
    END""",
    """CREATE TRIGGER captions_au AFTER UPDATE ON captions BEGIN
        INSERT INTO captions_fts (captions_fts, rowid, caption)
        VALUES ('delete', old.rowid, old.caption);
        INSERT INTO captions_fts (rowid, caption) VALUES (new.rowid, new.caption);
    END""",
)


def _first_tables(conn: Connection) -> None:
    # Captions have a number of their own, and no key into clips: VACUUM would renumber rows that
    # the full text index knows by number, and captions must outlive their features.
    for statement in (*_FIRST.split(";\n"), *_FIRST_SEARCH):
        conn.execute(statement)


UNSPACED: Final = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Letters of scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, kana, Han."""

_ADD_WORDS = "INSERT INTO captions_fts (rowid, caption) VALUES (new.id, new.caption)"
_REMOVE_WORDS = """INSERT INTO captions_fts (captions_fts, rowid, caption)
        VALUES ('delete', old.id, old.caption)"""
_ADD_LETTERS = """INSERT INTO captions_unspaced (rowid, caption)
        SELECT id, caption FROM captions_separated WHERE id = new.id"""
_REMOVE_LETTERS = "DELETE FROM captions_unspaced WHERE rowid = old.id"

INDEX_WORDS: Final = "INSERT INTO captions_fts (captions_fts) VALUES ('rebuild')"
INDEX_LETTERS: Final = (
    "INSERT INTO captions_unspaced (rowid, caption) SELECT id, caption FROM captions_separated"
)
_SEARCH = (
    "DROP TRIGGER captions_ai",
    "DROP TRIGGER captions_ad",
    "DROP TRIGGER captions_au",
    "DROP TABLE captions_fts",
    """CREATE VIRTUAL TABLE captions_fts USING fts5 (
        caption, content = 'captions', content_rowid = 'id', prefix = '3 4'
    )""",
    # Thai vowel signs are marks, not letters: without M* they would separate words.
    """CREATE VIRTUAL TABLE captions_unspaced USING fts5 (
        caption, tokenize = "unicode61 categories 'L* N* Co M*'"
    )""",
    # Each unspaced letter becomes a word, set off by zero-width spaces, and a phrase of such
    # words is a substring. The trigram tokenizer finds nothing shorter than three letters, and
    # most Chinese words have two. A view, as a trigger cannot hold WITH; no function of ours, as
    # other programs that write captions do not have it.
    f"""CREATE VIEW captions_separated AS SELECT id, (
        WITH RECURSIVE letters (letter, rest) AS (
            SELECT substr(caption, 1, 1), substr(caption, 2)
            UNION ALL SELECT substr(rest, 1, 1), substr(rest, 2) FROM letters WHERE rest <> ''
        )
        SELECT group_concat(
            iif(letter GLOB '[{UNSPACED}]', char(8203) || letter || char(8203), letter), ''
        ) FROM letters
    ) AS caption FROM captions
    WHERE length(caption) <> length(CAST(caption AS BLOB)) AND caption GLOB '*[{UNSPACED}]*'""",
    f"""CREATE TRIGGER captions_ai AFTER INSERT ON captions BEGIN
        {_ADD_WORDS}; {_ADD_LETTERS};
    END""",
    f"""CREATE TRIGGER captions_ad AFTER DELETE ON captions BEGIN
        {_REMOVE_WORDS}; {_REMOVE_LETTERS};
    END""",
    f"""CREATE TRIGGER captions_au AFTER UPDATE OF id, caption ON captions BEGIN
        {_REMOVE_WORDS}; {_REMOVE_LETTERS}; {_ADD_WORDS}; {_ADD_LETTERS};
    END""",
    INDEX_WORDS,
    INDEX_LETTERS,
    "CREATE INDEX captions_prompt_name ON captions (prompt_name)",
    "CREATE INDEX captions_model ON captions (model)",
    "CREATE INDEX captions_created_at ON captions (created_at)",
    "CREATE INDEX captions_flagged ON captions (flags) WHERE flags <> '[]'",
)


def _search(conn: Connection) -> None:
    for statement in _SEARCH:
        conn.execute(statement)


def _totals(conn: Connection) -> None:
    for statement in STATEMENTS:
        conn.execute(statement)


_EMBEDDED = (
    """CREATE TABLE embedded (
        model TEXT NOT NULL,
        caption_id INTEGER NOT NULL,
        PRIMARY KEY (model, caption_id)
    ) WITHOUT ROWID""",
    "CREATE INDEX embedded_caption_id ON embedded (caption_id)",
    *(
        f"""CREATE TRIGGER captions_{name} AFTER {event} ON captions BEGIN
            DELETE FROM embedded WHERE caption_id = old.id;
        END"""
        for name, event in (("ed", "DELETE"), ("eu", "UPDATE OF id, caption"))
    ),
)
"""Which captions the vector index of a model holds as they are now."""


def _embedded(conn: Connection) -> None:
    for statement in _EMBEDDED:
        conn.execute(statement)


def _run_names(conn: Connection) -> None:
    # A number is one catalog's own: by its name a run is known in any that it is merged into.
    conn.execute("ALTER TABLE runs ADD COLUMN uid TEXT")
    conn.execute("UPDATE runs SET uid = started_at || '/' || run || '/' || command")
    conn.execute("CREATE UNIQUE INDEX runs_uid ON runs (uid)")


_UNKNOWN_VIDEOS = """UPDATE captions SET video_digest = coalesce(
        (SELECT k.video_digest FROM clips k WHERE k.feature_key = captions.feature_key),
        iif(json_valid(settings), json_extract(settings, '$.video_digest'), NULL)
    ) WHERE video_digest IS NULL"""
"""Notes of captions, as far as the catalog can tell, which bytes they were made of."""

_VIDEOS_OF_CAPTIONS = (
    # Clips are deleted with their features, and captions stay: they must say themselves which
    # bytes they are of. A name does not say it, as other bytes may be there by now.
    "ALTER TABLE captions ADD COLUMN video_digest TEXT",
    "ALTER TABLE failures ADD COLUMN video_digest TEXT",
    _UNKNOWN_VIDEOS,
    """UPDATE failures SET video_digest =
        (SELECT k.video_digest FROM clips k WHERE k.feature_key = failures.feature_key)""",
    "CREATE INDEX captions_video_digest ON captions (video_digest, start_s)",
    "CREATE INDEX files_digest ON files (digest)",
)


def _videos_of_captions(conn: Connection) -> None:
    for statement in _VIDEOS_OF_CAPTIONS:
        conn.execute(statement)


def _offsets(conn: Connection) -> None:
    conn.execute("ALTER TABLE videos ADD COLUMN offset_s REAL")


_FIRST_WITH_CHECKSUMS: Final = frozenset(
    ("runs", "files", "memory", "videos", "clips", "failures", "captions")
)
"""Tables that were there at the eighth step; later ones are made with checksums."""


def _checksums(conn: Connection) -> None:
    for table in [each for each in TABLES if each.name in _FIRST_WITH_CHECKSUMS]:
        conn.execute(f"ALTER TABLE {table.name} ADD COLUMN checksum INTEGER")
        checksums = Checksums(table, columns_of(conn, table.name))
        define(conn, checksums, Damage())
        # A caption whose key is not that of its settings was damaged before: it gets none.
        fitting = "WHERE key_fits(caption_key, settings)" if table.name == "captions" else ""
        conn.create_function("key_fits", 2, key_fits, deterministic=True)
        conn.execute(
            f"UPDATE {table.name} SET checksum = checksum_{table.name}({checksums.arguments()})"
            f" {fitting}"
        )


def _reviews(conn: Connection) -> None:
    for statement in REVIEW_TABLES:
        conn.execute(statement)


MIGRATIONS: Final[tuple[tuple[str, Callable[[Connection], None]], ...]] = (
    ("0001_first_tables", _first_tables),
    ("0002_search", _search),
    ("0003_totals", _totals),
    ("0004_embedded", _embedded),
    ("0005_run_names", _run_names),
    ("0006_videos_of_captions", _videos_of_captions),
    ("0007_offsets", _offsets),
    ("0008_checksums", _checksums),
    ("0009_reviews", _reviews),
    *STEPS,
)
_NOTED: Final = (
    """CREATE TABLE IF NOT EXISTS _sqlite_migrations (
        id INTEGER PRIMARY KEY, migration_set TEXT, name TEXT, applied_at TEXT
    )""",
    """CREATE UNIQUE INDEX IF NOT EXISTS idx__sqlite_migrations_migration_set_name
        ON _sqlite_migrations (migration_set, name)""",
)


def apply(conn: Connection, stop_before: str | None = None) -> None:
    """Apply the steps that a catalog lacks, in order; the caller has begun a transaction.

    Args:
        conn: to the catalog.
        stop_before: name of the first step to leave out; None applies all.
    """
    for statement in _NOTED:
        conn.execute(statement)
    rows = conn.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'cogcache'")
    applied = {row[0] for row in rows}
    for name, step in MIGRATIONS:
        if name == stop_before:
            return
        if name not in applied:
            step(conn)
            now = datetime.now(UTC).isoformat(" ")
            conn.execute(
                "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
                " VALUES ('cogcache', ?, ?)",
                (name, now),
            )
