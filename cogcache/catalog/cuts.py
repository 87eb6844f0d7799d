"""How the videos of clips were cut: whole, in segments, at scenes, or as a part that was named.

It is no part of a clip's key, as clips of several cuts may be the same: a video of ten seconds
is taken whole whether it is cut into segments of 24 seconds or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from cogcache.catalog.database import CatalogFile


class Cuts:
    """How the videos of clips were cut; one clip may come of several cuts."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def add(self, cuts: Iterable[tuple[str, str]]) -> None:
        """Add pairs of a feature key and a cut, such as `segment:24`, in one transaction."""
        found = [*cuts]
        known = self.known({cut for _, cut in found}) if found else set()
        new = [pair for pair in found if pair not in known]
        if new:
            sql = "INSERT OR IGNORE INTO cuts (feature_key, cut) VALUES (?, ?)"
            with self._file.transaction() as conn:
                conn.executemany(sql, new)

    def known(self, cuts: Collection[str]) -> set[tuple[str, str]]:
        """Return the pairs of a feature key and one of these cuts."""
        sql = """SELECT feature_key, cut FROM whole_cuts
            WHERE cut IN (SELECT value FROM json_each(:cuts))"""
        rows = self._file.query(sql, {"cuts": json.dumps([*cuts])})
        return {(row["feature_key"], row["cut"]) for row in rows}

    def of(self, feature_keys: Collection[str]) -> dict[str, list[str]]:
        """Return the cuts that clips came of; one of which nobody knows any is left out."""
        found: dict[str, list[str]] = {}
        among = {"feature_key": feature_keys}
        for row in self._file.select("cuts", "feature_key, cut", among=among):
            found.setdefault(row["feature_key"], []).append(row["cut"])
        return found
