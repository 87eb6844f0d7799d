"""Rows about runs, running and finished, for `cogcache status` and listings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cogcache.catalog import Catalog
from cogcache.store import check_cache, live_runs
from cogcache.system import CachePaths
from cogcache.units import format_bytes, format_seconds


def statuses(cache: Path) -> list[dict[str, Any]]:
    """Return a row for each run at work on a cache; of an idle cache, that of its last run.

    Raises:
        CacheError: the folder is no cache.
    """
    check_cache(cache)
    if rows := live_runs(cache):
        return rows
    if not CachePaths(cache).catalog.is_file():
        return []
    with Catalog(CachePaths(cache).catalog) as catalog:
        last = catalog.runs.rows()[-1:]
    return [{**run, **run["counts"], "state": _ended(run["status"])} for run in last]


def state_of(run: Mapping[str, Any], live: Sequence[Mapping[str, Any]]) -> str:
    """Return how a run of the catalog ended, or `running`, given the runs that are at work."""
    at_work = {row.get("run") for row in live if row["state"] == "at work"}
    if run["status"] == "running" and run["run"] not in at_work:
        return "dead"
    return str(run["status"])


def _ended(status: str) -> str:
    # A run that is not at work and never said how it ended was killed.
    return "dead" if status == "running" else f"ended: {status}"


def line(row: Mapping[str, Any]) -> str:
    """Return the row of a run as a line of a log file."""
    told = shown({**row, "state": ""})
    parts = [told["progress"], f"{told['failed']} failed" if told["failed"] else "", told["rate"]]
    parts += [f"{told['left']} left" if told["left"] else "", told["state"]]
    return f"{told['command']}: {', '.join(part for part in parts if part)}"


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a run as a reader wants it."""
    gone = sum(row.get(name, 0) for name in ("cached", "done", "failed", "skipped"))
    rate, eta_s = row.get("per_s"), row.get("eta_s")
    memory = row.get("device_bytes") or row.get("host_bytes") or row.get("measured_peak_bytes")
    shard = row.get("shard") or row.get("report", {}).get("shard")
    return {
        **row,
        "command": f"{row['command']} {shard}" if shard else row["command"],
        "progress": f"{gone} of {row['found']}{_to_search(row)}" if "found" in row else "",
        "failed": row.get("failed", 0) + row.get("skipped", 0),
        "rate": f"{rate * 60:.3g} a minute" if rate else "",
        "left": f"{_about(row)}{format_seconds(eta_s)}" if eta_s is not None else "",
        "memory": format_bytes(memory) if memory else "",
        "state": f"stopping: {row['stopping']}" if row.get("stopping") else _state(row),
    }


def _state(row: Mapping[str, Any]) -> str:
    searching = f"searching: {row['searching']}" if row.get("searching") else ""
    return ", ".join(part for part in (row["state"], searching) if part)


def _to_search(row: Mapping[str, Any]) -> str:
    """Say that more clips will be found than are."""
    number = row.get("unsearched", 0)
    return f" and those of {number:,} to cut" if number else ""


def _about(row: Mapping[str, Any]) -> str:
    return "about " if row.get("unsearched") else ""
