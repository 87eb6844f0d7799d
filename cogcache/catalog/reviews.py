"""What people did with captions, version after version, and what was measured of them.

Nothing that a model wrote is changed. An edit is a row of ``edits``; the set that it belongs to
(`reviewed`) has a caption of its own for it, which every listing, search and export finds as it
finds those of models. That caption is derived: `settle` makes it from the newest version.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, cast

from cogcache.catalog.database import CatalogFile, cells_of, excluded, insertion
from cogcache.catalog.rows import EDITED, CaptionRow, EditRow, ScoreRow
from cogcache.errors import ConfigError
from cogcache.keys import Field, digest

RowT = TypeVar("RowT", bound=Mapping[str, Any])
_AMONG: Final = "(SELECT value FROM json_each(:keys))"
_REJECTED: Final = f"""SELECT caption_key FROM rejected_captions
    WHERE caption_key IN {_AMONG}"""

_EDITED: Final = """e.uid, e.set_name, e.edited_key, c.feature_key, c.prompt_name, c.caption_key
    FROM whole_edits e JOIN whole_captions c ON c.caption_key = e.caption_key"""
SETTLE: Final = (
    f"""DELETE FROM captions WHERE quantization = '{EDITED}' AND caption_key IN (
        SELECT edited_key FROM current_edits WHERE text IS NULL AND {{among}})""",
    f"""INSERT INTO main.captions (caption_key, feature_key, video, start_s, end_s, prompt_name,
            prompt, caption, model, quantization, flags, num_tokens, seconds, settings,
            created_at, run, video_digest)
        SELECT e.edited_key, c.feature_key, c.video, c.start_s, c.end_s, c.prompt_name,
            c.prompt, e.text, e.set_name, '{EDITED}', '[]', 0, 0.0,
            json_object('set', e.set_name, 'feature_key', c.feature_key, 'prompt_name',
                c.prompt_name, 'edited', e.caption_key),
            e.created_at, NULL, c.video_digest
        FROM current_edits e JOIN whole_captions c ON c.caption_key = e.caption_key
        WHERE e.text IS NOT NULL AND {{among}}
        ON CONFLICT (caption_key) DO UPDATE SET
            caption = excluded.caption, created_at = excluded.created_at
        WHERE captions.caption <> excluded.caption""",
)
"""Makes the captions of sets what the newest versions say; `among` chooses versions ``e``."""


def settle(conn: sqlite3.Connection, caption_keys: Collection[str] | None = None) -> None:
    """Make the captions of sets what the newest versions say.

    Args:
        conn: to the catalog, in a transaction.
        caption_keys: captions that were reviewed; None for all.
    """
    among = "true" if caption_keys is None else f"caption_key IN {_AMONG}"
    values = {} if caption_keys is None else {"keys": json.dumps([*caption_keys])}
    removed, made = SETTLE
    conn.execute(removed.format(among=among), values)
    own = "true" if caption_keys is None else f"e.caption_key IN {_AMONG}"
    conn.execute(made.format(among=own), values)


def edited_key(set_name: str, caption: CaptionRow | Mapping[str, Any]) -> str:
    """Return the key of the caption that a set has for an edited one."""
    fields: dict[str, Field] = {
        "set": set_name,
        "feature_key": caption["feature_key"],
        "prompt_name": caption["prompt_name"],
        "edited": caption["caption_key"],
    }
    return digest(fields)


class Edits:
    """The versions of what people did with captions. They are only ever added to."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def add(self, edits: Sequence[EditRow], latest: Mapping[str, str] | None = None) -> list[str]:
        """Add versions in one transaction, and have the sets' captions follow them.

        Args:
            edits: the versions, of one set, at most one for a caption; their time may be moved
                on, behind that of the version before.
            latest: by caption, the version that was seen last, "" for none.

        Returns:
            The captions that another browser or program has reviewed since: nothing was added
            where there is one.

        Raises:
            ConfigError: a caption that a model made bears the name of the set.
        """
        if not edits:
            return []
        keys = [edit["caption_key"] for edit in edits]
        with self._file.transaction() as conn:
            _check_free(conn, edits[0]["set_name"])
            current = _current(conn, edits[0]["set_name"], keys)
            others = [
                key
                for key, uid in (latest or {}).items()
                if (current[key]["uid"] if key in current else "") != uid
            ]
            if others:
                return others
            for edit in edits:
                before = current.get(edit["caption_key"])
                row = {**edit, "created_at": _later(edit["created_at"], before)}
                conn.execute(insertion("edits", row), cells_of(row))
            settle(conn, keys)
        return []

    def adopt(self, caption_keys: Collection[str]) -> None:
        """Have the sets' captions follow versions that were taken from elsewhere.

        Args:
            caption_keys: captions that got versions, which may have been another's before: what
                they were edited into has another key here.
        """
        keys = {"keys": json.dumps([*caption_keys])}
        rows = self._file.query(f"SELECT {_EDITED} WHERE e.caption_key IN {_AMONG}", keys)
        with self._file.transaction() as conn:
            for row in rows:
                key = edited_key(row["set_name"], row)  # type: ignore[arg-type]
                if key != row["edited_key"]:
                    conn.execute("UPDATE edits SET edited_key = ? WHERE uid = ?", [key, row["uid"]])
            settle(conn, caption_keys)

    def current(self, caption_keys: Collection[str], set_name: str) -> dict[str, EditRow]:
        """Return the newest versions by caption, of those captions that have any."""
        with self._file.reading() as conn:
            return _current(conn, set_name, caption_keys)

    def history(self, caption_key: str, set_name: str | None = None) -> list[EditRow]:
        """Return all versions of what was done with a caption, oldest first."""
        equal = {"caption_key": caption_key, "set_name": set_name}
        return cast(list[EditRow], self._file.select("edits", "created_at, uid", equal=equal))

    def all(self) -> list[EditRow]:
        """Return all versions of all captions, oldest first."""
        return cast(list[EditRow], self._file.select("edits", "created_at, uid"))

    def of_batch(self, batch: str) -> list[EditRow]:
        """Return the versions that were made in one go."""
        rows = self._file.select("edits", "created_at, uid", equal={"batch": batch})
        return cast(list[EditRow], rows)

    def last_batch(self, set_name: str) -> str | None:
        """Return the name of what was done last in one go and not undone; None for nothing."""
        sql = """SELECT batch FROM whole_edits e WHERE set_name = :set_name AND undoes = ''
            AND NOT EXISTS (SELECT 1 FROM whole_edits u WHERE u.undoes = e.uid)
            ORDER BY created_at DESC, uid DESC LIMIT 1"""
        rows = self._file.query(sql, {"set_name": set_name})
        return rows[0]["batch"] if rows else None

    def sources(self, caption_keys: Collection[str]) -> dict[str, str]:
        """Return, by the keys of captions that a set has, those that they were edited from."""
        sql = f"""SELECT DISTINCT edited_key, caption_key FROM whole_edits
            WHERE edited_key IN {_AMONG}"""
        rows = self._file.query(sql, {"keys": json.dumps([*caption_keys])})
        return {row["edited_key"]: row["caption_key"] for row in rows}

    def rejected(self, caption_keys: Collection[str]) -> set[str]:
        """Return those of the keys whose captions were rejected."""
        rows = self._file.query(_REJECTED, {"keys": json.dumps([*caption_keys])})
        return {row["caption_key"] for row in rows}

    def reviewed(self) -> dict[str, EditRow]:
        """Return the newest version by caption, also by the keys of the sets' captions.

        Where a caption was reviewed in several sets, the newest of all counts.
        """
        rows = self._file.select("current_edits", "created_at, uid")
        found: dict[str, EditRow] = {}
        for row in rows:
            found[row["caption_key"]] = found[row["edited_key"]] = cast(EditRow, row)
        return found


class Scores:
    """What was measured of captions and clips."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def add(self, scores: Iterable[ScoreRow], texts: Mapping[str, str] | None = None) -> int:
        """Enter scores in one transaction; those of the same name and subject are replaced.

        Args:
            scores: the rows.
            texts: what was scored, by caption: where it says something else by now, or is gone,
                its scores are left out.
        """
        made: dict[str, object] = {"created_at": _now(), "run": None}
        rows = [cells_of({**made, **score}) for score in scores]
        if not rows:
            return 0
        changed = excluded(rows[0].keys() - {"name", "feature_key", "caption_key"})
        sql = (
            f"{insertion('scores', rows[0])} ON CONFLICT (name, feature_key, caption_key)"
            f" DO UPDATE SET {changed}"
        )
        with self._file.transaction() as conn:
            now = _said(conn, [row["caption_key"] for row in rows if row["caption_key"]])
            same = [
                row
                for row in rows
                if not row["caption_key"]
                or now.get(row["caption_key"]) == (texts or now).get(row["caption_key"])
            ]
            return conn.executemany(sql, same).rowcount if same else 0

    def remove(self, names: Collection[str], keys: Collection[str]) -> int:
        """Forget scores of clips: those of these names, by feature key."""
        sql = f"""DELETE FROM scores WHERE caption_key = '' AND feature_key IN {_AMONG}
            AND name IN (SELECT value FROM json_each(:names))"""
        values = {"keys": json.dumps([*keys]), "names": json.dumps([*names])}
        return self._file.write(sql, values)

    def rows(
        self,
        *,
        names: Collection[str] | None = None,
        caption_keys: Collection[str] | None = None,
        feature_keys: Collection[str] | None = None,
    ) -> list[ScoreRow]:
        """Return the scores that fit all that is given, by name and subject."""
        among = {"name": names, "caption_key": caption_keys, "feature_key": feature_keys}
        order = "name, feature_key, caption_key"
        return cast(list[ScoreRow], self._file.select("scores", order, among=among))

    def order(self, rows: Sequence[RowT], sort: str) -> list[RowT]:
        """Return rows of captions or clips by a score, the lowest first; `-NAME`: the highest.

        Rows that have no such score come last, in their order.

        Raises:
            ConfigError: nothing has a score of that name.
        """
        name = sort.removeprefix("-")
        scores = self.rows(names=[name])
        if not scores:
            known = ", ".join(sorted(self.names())) or "none: `cogcache score` makes some"
            raise ConfigError(f"there is no score {name!r} to sort by", f"there are {known}")
        values = {row["caption_key"] or row["feature_key"]: row["score"] for row in scores}
        sign = -1 if sort.startswith("-") else 1

        def place(row: RowT) -> tuple[bool, float]:
            own = values.get(row.get("caption_key", ""), values.get(row["feature_key"]))
            return own is None, sign * (own or 0.0)

        return sorted(rows, key=place)

    def names(self) -> list[str]:
        """Return the names of the scores that there are."""
        return [row["name"] for row in self._file.query("SELECT DISTINCT name FROM whole_scores")]


def _said(conn: sqlite3.Connection, caption_keys: Collection[str]) -> dict[str, str]:
    sql = f"SELECT caption_key, caption FROM whole_captions WHERE caption_key IN {_AMONG}"
    return dict(map(tuple, conn.execute(sql, {"keys": json.dumps([*caption_keys])})))


def _check_free(conn: sqlite3.Connection, set_name: str) -> None:
    sql = f"""SELECT quantization FROM shown_captions WHERE model = ? AND quantization <> '{EDITED}'
        LIMIT 1"""
    if conn.execute(sql, [set_name]).fetchone():
        problem = f"{set_name!r} is a model, or a set that was imported"
        raise ConfigError(problem, "name another set to edit into: --set NAME")


def _current(
    conn: sqlite3.Connection, set_name: str, caption_keys: Collection[str]
) -> dict[str, EditRow]:
    sql = f"""SELECT * FROM current_edits WHERE set_name = :set_name
        AND caption_key IN {_AMONG}"""
    values = {"set_name": set_name, "keys": json.dumps([*caption_keys])}
    rows = [dict(row) for row in conn.execute(sql, values)]
    return {
        row["caption_key"]: cast(EditRow, {**row, "tags": json.loads(row["tags"])}) for row in rows
    }


def _later(at: str, before: EditRow | None) -> str:
    """Return a time, or one right after that of the version before: clocks are set back, too."""
    if before is None or before["created_at"] < at:
        return at
    moved = datetime.fromisoformat(before["created_at"]) + timedelta(microseconds=1)
    return moved.isoformat(timespec="microseconds")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
