"""A run's report as lines for a reader."""

from __future__ import annotations

from cogcache.stages.runs.report import RunReport
from cogcache.system import MemorySample
from cogcache.units import format_bytes, format_seconds


def report_lines(report: RunReport) -> list[str]:
    """Return the report as lines for a reader."""
    counts, unit = report.counts, "captions" if report.command == "caption" else "clips"
    parts = [f"{counts.done} {unit} made", f"{counts.cached} there already"]
    parts += [f"{counts.copies} the same as others"] if counts.copies else []
    parts += [f"{counts.failed} failed"] if counts.failed else []
    parts += [f"{counts.skipped} failed before (--retry-failed)"] if counts.skipped else []
    if not (counts.found or counts.unsearched or report.shard or report.stopped):
        parts = ["the cache holds no clips of these videos; `cogcache extract` makes them"]
    total = format_seconds(report.total_s)
    shard = f", shard {report.shard}" if report.shard else ""
    lines = [f"{report.command}{shard}: {', '.join(parts)}, in {total}"]
    if counts.unsearched:
        lines.append(f"  {_videos(counts.unsearched)} not cut into clips yet")
    if report.stopped:
        lines.append(f"  stopped early ({report.stopped}); run the same command to go on")
    if not counts.done:
        return lines
    lines += [f"  {report.quantization}"] if report.quantization else []
    lines += [f"  {note}" for note in report.notes]
    split = (f"{part} {format_seconds(s)}" for part, s in report.split.seconds.items())
    lines += [f"  time: {', '.join(split)}"] if report.split.seconds else []
    lines.append(f"  peak memory: {_peak_line(report)}")
    return lines


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
