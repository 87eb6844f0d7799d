"""A run's report as lines for a reader, and as one object for a program."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from cogcache.stages.runs.report import RunReport
from cogcache.system import MemorySample
from cogcache.units import format_bytes, format_seconds


def report_lines(
    report: RunReport, cache: Path | None = None, *, verbose: bool = False
) -> list[str]:
    """Return what was made, how fast, what failed, and the next command.

    Args:
        report: of a run that has ended.
        cache: its folder, for the commands to type next; None for none.
        verbose: tell what was chosen and why, too.
    """
    counts = report.counts
    shard = f", shard {report.shard}" if report.shard else ""
    total = format_seconds(report.total_s)
    lines = [f"{report.command}{shard}: {', '.join(_counted(report))}, in {total}{_rate(report)}"]
    if counts.unsearched:
        lines.append(f"  {_videos(counts.unsearched)} not cut into clips yet")
    if report.stopped:
        lines.append(f"  stopped early ({report.stopped}); run the same command to go on")
    if counts.done:
        lines += _technical(report, verbose=verbose)
    if cache is None:
        return lines
    return lines + failure_lines(report, cache) + next_lines(report, cache)


def failure_lines(report: RunReport, cache: Path) -> list[str]:
    """Return the command that lists what failed; nothing where nothing did."""
    if not (report.counts.failed or report.counts.skipped):
        return []
    return [f"  what failed, and why: cogcache failures {_at(cache)}"]


def next_lines(report: RunReport, cache: Path) -> list[str]:
    """Return the command that comes next; nothing where the run is to be typed again."""
    follows = {"extract": "caption", "caption": "ls"}.get(report.command)
    if report.stopped or report.error or follows is None:
        return []
    return [f"  next: cogcache {follows} {_at(cache)}"]


def report_object(report: RunReport) -> dict[str, Any]:
    """Return the report as one JSON object; its names are those of the catalog's rows."""
    end = report.end()
    return {
        "command": report.command,
        "run": report.run,
        "model": report.model,
        "exit_status": report.exit_status,
        "status": end.status,
        "planned_peak_bytes": end.planned_peak_bytes,
        "measured_peak_bytes": end.measured_peak_bytes,
        **asdict(report.counts),
        "before_loading_bytes": report.base_bytes,
        "stopped": report.error or report.stopped,
        "total_s": report.total_s,
        "split": dict(report.timings.seconds),
    }


def _counted(report: RunReport) -> list[str]:
    counts = report.counts
    unit = ("caption" if report.command == "caption" else "clip") + "s" * (counts.done != 1)
    if not (counts.found or counts.unsearched or report.shard or report.stopped):
        return ["the cache holds no clips of these videos; `cogcache extract` makes them"]
    parts = [f"{counts.done:,} {unit} made", f"{counts.cached:,} there already"]
    parts += [f"{counts.copies:,} the same as others"] if counts.copies else []
    parts += [f"{counts.failed:,} failed"] if counts.failed else []
    return parts + (
        [f"{counts.skipped:,} failed before (--retry-failed)"] if counts.skipped else []
    )


def _rate(report: RunReport) -> str:
    if not report.counts.done or report.total_s < 1:
        return ""
    return f" ({60 * report.counts.done / report.total_s:,.3g} a minute)"


def _technical(report: RunReport, *, verbose: bool) -> list[str]:
    lines = []
    if verbose:
        lines += [f"  {report.quantization}"] if report.quantization else []
    lines += [f"  {note}" for note in report.notes if verbose or note in report.warnings]
    split = (f"{part} {format_seconds(s)}" for part, s in report.timings.seconds.items())
    lines += [f"  time: {', '.join(split)}"] if report.timings.seconds else []
    return [*lines, f"  peak memory: {_peak_line(report)}"]


def _at(cache: Path) -> str:
    return f"--cache {quote(str(cache))}"


def _peak_line(report: RunReport) -> str:
    peak, planned = report.peak or MemorySample(), report.planned
    plan = f", planned {format_bytes(report.planned_bytes)}" if planned else ""
    if peak.device_bytes:
        device, reserved = format_bytes(peak.device_bytes), format_bytes(peak.reserved_bytes)
        driver = format_bytes(peak.driver_bytes)
        counted = f", {driver} by the driver's count" if peak.driver_bytes else ""
        return f"{device} on the device ({reserved} reserved{counted}){plan}"
    anonymous, mapped = format_bytes(peak.anonymous_bytes), format_bytes(peak.file_bytes)
    total, base = format_bytes(peak.host_bytes), format_bytes(report.base_bytes)
    return f"{total} ({anonymous} its own, {mapped} mapped; {base} before loading){plan}"


def _videos(number: int) -> str:
    return "1 video" if number == 1 else f"{number:,} videos"
