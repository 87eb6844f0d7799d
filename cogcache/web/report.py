"""A chart of what the runs of a cache used: PNG, SVG, or an HTML file that contains it.

Memory of both stages over time beside the whole model's, throughput, where the time went, how
long captions are, and why clips failed.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cogcache.catalog import STAGES
from cogcache.errors import ConfigError
from cogcache.system import CachePaths, seal
from cogcache.units import GIB, MIB, format_bytes, format_seconds
from cogcache.web import figures
from cogcache.web.browse import Browser, BrowseRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg", "html")
# Distinct to colour-blind readers too (Okabe and Ito's).
_OWN, _MAPPED, _DEVICE = "#0072b2", "#e69f00", "#009e73"
_LINE: Final = "#d55e00"
_SHADES: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#999999")
_DARK: Final = ("#0072b2", "#009e73")
_RUNS: Final = 8
_MIN_ROWS: Final = 4
"""Bars do not get thicker when there are fewer than this."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the picture shows."""

    stages: Mapping[str, BrowseRow]
    """The runs asked for; else the last one of each stage that made something."""
    collection: BrowseRow
    reasons: Mapping[str, int]
    rates: Mapping[str, float]
    """Clips or captions a second of the last runs that made something."""


def write_report(cache: Path, out: Path, runs: Sequence[int] = ()) -> Path:
    """Write the picture of a cache's runs; return its path.

    Args:
        cache: folder of the cache.
        out: a file whose suffix names the format: ``.png``, ``.svg`` or ``.html``.
        runs: numbers of those whose memory is drawn, one a stage; none for the last ones.

    Raises:
        CogcacheError: the suffix is another one, the catalog cannot be used, or nothing has run.
    """
    kind = out.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"{out} does not end in .png, .svg or .html", "name such a file")
    with Browser(CachePaths(cache).catalog) as browser:
        findings, learnt = find(browser, runs), _learnt(browser)
    picture = draw(findings, "svg" if kind == "html" else kind)
    seal(out, _page(findings, picture, learnt) if kind == "html" else picture, cache=cache)
    return out


def find(browser: Browser, runs: Sequence[int] = ()) -> Findings:
    """Read what the picture shows.

    Raises:
        ConfigError: no run has made anything yet, or one that is asked for cannot be drawn.
    """
    stages = _asked_for(browser, runs) if runs else figures.last_runs(browser)
    if not stages:
        raise ConfigError("no run has made anything yet", "start one with `cogcache run`")
    reasons = dict(figures.failure_reasons(browser).most_common())
    return Findings(stages, figures.figures_of(browser), reasons, _rates(browser))


def _asked_for(browser: Browser, runs: Sequence[int]) -> dict[str, BrowseRow]:
    """Return these runs by their stages, in the stages' order."""
    hint = "`cogcache ls runs` lists them; name one of each stage at most"
    found: dict[str, BrowseRow] = {}
    for number in sorted(runs):
        run = figures.run(browser, number)
        if run is None:
            raise ConfigError(f"--run {number}: the catalog has no such run", hint)
        if not run["report"].get("timeline"):
            problem = f"--run {number}: its memory was not recorded to its end ({run['status']})"
            raise ConfigError(problem, hint)
        if found.setdefault(run["command"], run) is not run:
            other = found[run["command"]]["run"]
            raise ConfigError(f"--run {other} and --run {number} are both {run['command']}", hint)
    return {stage: found[stage] for stage in STAGES if stage in found} | found


def _rates(browser: Browser) -> dict[str, float]:
    done = [row for row in figures.runs(browser).rows if row["counts"].get("done")]
    units = {"extract": "clips", "caption": "captions"}
    return {
        f"run {row['run']}, {units.get(row['command'], row['command'])}": row["counts"]["done"]
        / row["total_s"]
        for row in done[:_RUNS]
        if row["total_s"]
    }


def draw(findings: Findings, kind: str) -> bytes:
    """Return the picture as PNG or SVG; equal findings give equal bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Names of models and prompts may hold a $, which would be read as a formula.
    style: dict[Any, Any] = {"text.parse_math": False, "svg.hashsalt": "cogcache", "font.size": 9}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(10, 9), layout="constrained")
        _fill(figure, findings)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    return buffer.getvalue()


def _fill(figure: Figure, findings: Findings) -> None:
    rows = figure.subplot_mosaic([["memory", "memory"], ["time", "rates"], ["lengths", "reasons"]])
    _memory(rows["memory"], findings.stages)
    _times(rows["time"], findings.collection["seconds"])
    _bars(rows["rates"], findings.rates, "Throughput of the last runs, per second", "%.3g")
    lengths = sorted(findings.collection["lengths"].items())
    _lengths(rows["lengths"], dict(lengths))
    _bars(rows["reasons"], findings.reasons, "Failures by reason", "%d")


def _memory(axes: Axes, stages: Mapping[str, BrowseRow]) -> None:
    """Draw the stages one after the other, and what the whole model would take at least."""
    start_s, unit = 0.0, _unit(stages)
    for stage, run in stages.items():
        samples = run["report"].get("timeline", [])
        times = [start_s + sample["time_s"] for sample in samples]
        kinds, colors = _kinds(samples)
        layers = [[sample[kind] / unit for sample in samples] for kind in kinds]
        axes.stackplot(times, layers, colors=colors, alpha=0.8, edgecolor="none")
        end_s = times[-1] if times else start_s
        peak = format_bytes(run["measured_peak_bytes"] or 0)
        label = f"{stage}, run {run['run']}: peak {peak}"
        axes.annotate(label, (start_s, 1.0), xycoords=("data", "axes fraction"), va="bottom")
        axes.axvline(end_s, color="#999999", linewidth=0.6)
        start_s = end_s
    if whole := whole_bytes(stages):
        axes.axhline(whole / unit, color=_LINE, linestyle="--")
        text = f"the whole model in one piece: {format_bytes(whole)} before its first step"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
        place: dict[str, Any] = {
            "xytext": (-4, 4),
            "textcoords": "offset points",
            "ha": "right",
            "va": "bottom",
        }
        axes.annotate(text, (start_s, whole / unit), color=_LINE, bbox=box, **place)
    axes.set_ylabel("GiB" if unit == GIB else "MiB")
    axes.set_xlabel("seconds")
    axes.margins(x=0, y=0.15)
    axes.set_ylim(bottom=0)
    axes.set_title("Memory over time", loc="left", pad=18)
    _legend(axes, stages)


def _legend(axes: Axes, stages: Mapping[str, BrowseRow]) -> None:
    from matplotlib.patches import Patch

    names = {_OWN: "the process's own", _MAPPED: "mapped files", _DEVICE: "device"}
    used = {color for run in stages.values() for color in _kinds(run["report"]["timeline"])[1]}
    patches = [Patch(color=color, label=name) for color, name in names.items() if color in used]
    axes.legend(handles=patches, loc="lower right", ncols=len(patches))


def _kinds(samples: list[Any]) -> tuple[list[str], list[str]]:
    if any(sample["device_bytes"] for sample in samples):
        return ["device_bytes"], [_DEVICE]
    return ["anonymous_bytes", "file_bytes"], [_OWN, _MAPPED]


def whole_bytes(stages: Mapping[str, BrowseRow]) -> int | None:
    """Return what the whole model takes at least: its weights and, on the CPU, the libraries."""
    weights = figures.whole_model_bytes(stages)
    if weights is None:
        return None
    on_device = any(_kinds(run["report"]["timeline"])[1] == [_DEVICE] for run in stages.values())
    base = max(int(run["report"].get("base_bytes", 0)) for run in stages.values())
    return weights + (0 if on_device else base)


def _unit(stages: Mapping[str, BrowseRow]) -> int:
    peaks = [run["measured_peak_bytes"] or 0 for run in stages.values()]
    return GIB if max(peaks) >= 2 * GIB else MIB


def _times(axes: Axes, seconds: Mapping[str, Mapping[str, float]]) -> None:
    for row, parts in enumerate(seconds.values()):
        left = 0.0
        for number, (part, part_s) in enumerate(sorted(parts.items(), key=lambda item: -item[1])):
            color = _SHADES[number % len(_SHADES)]
            bar = axes.barh(row, part_s, left=left, color=color)
            if part_s > 0.08 * max(sum(each.values()) for each in seconds.values()):
                label = f"{part.replace('_', ' ')}\n{format_seconds(part_s)}"
                ink = "white" if color in _DARK else "black"
                axes.bar_label(bar, [label], label_type="center", fontsize=7, color=ink)
            left += part_s
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.set_ylim(max(len(seconds), 2) - 0.5, -0.5)
    axes.set_title("Where the time of all runs went, in seconds", loc="left")


def _lengths(axes: Axes, lengths: Mapping[int, int]) -> None:
    axes.bar(list(lengths), list(lengths.values()), width=9, align="edge", color=_OWN)
    axes.set_xlim(0, max([*lengths, 50]) + 10)
    _whole_numbers(axes.yaxis)
    axes.set_title("Captions by length, in tokens", loc="left")


def _bars(axes: Axes, counts: Mapping[str, float], title: str, written: str) -> None:
    axes.set_title(title, loc="left")
    if not counts:
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    bars = axes.barh(list(counts), list(counts.values()), color=_OWN)
    axes.bar_label(bars, fmt=written, padding=3)
    axes.set_ylim(max(len(counts), _MIN_ROWS) - 0.5, -0.5)
    axes.margins(x=0.15)
    if written == "%d":
        _whole_numbers(axes.xaxis)


def _whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _learnt(browser: Browser) -> list[Mapping[str, Any]]:
    """Return captions before and after training, of the last run that trained."""
    sql = """SELECT * FROM shown_runs WHERE run = (SELECT max(run) FROM shown_runs
        WHERE json_extract(report, '$.training.samples[0]') IS NOT NULL)"""
    rows = browser.rows(sql)
    return list(rows[0]["report"]["training"]["samples"]) if rows else []


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return captions of clips kept for evaluation, side by side; nothing where none are."""
    if not samples:
        return ""
    names = ("clip", "prompt", "before", "now", "wanted")
    head = "".join(f"<th scope=col>{name}" for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(each.get(name, '')))}" for name in names)
        for each in samples
    )
    return f"<h2>What training changed</h2>\n<table><tr>{head}{rows}</table>\n"


def _page(findings: Findings, picture: bytes, learnt: Sequence[Mapping[str, Any]] = ()) -> bytes:
    rows = "".join(
        f"<tr><th scope=row>{html.escape(str(name))}<td>{html.escape(value)}"
        for name, value in _words(findings).items()
    )
    source = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Report of a cache</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem;
 padding: 0 1rem; color: #1b2230; background: #fff }} img {{ width: 100% }}
 th {{ text-align: left; font-weight: 400; padding-right: 2rem; color: #5a6475 }}</style>
<h1>Report of a cache</h1>
<table>{rows}</table>
{_samples(learnt)}<img alt="Memory over time, throughput, time, lengths of captions and failures"
 src="data:image/svg+xml;base64,{source}">
""".encode()


def _words(findings: Findings) -> dict[str, str]:
    found = findings.collection
    words = {
        "Videos": f"{found['videos']:,}, {format_seconds(found['duration_s'])}",
        "Clips": f"{found['clips']:,}, {format_bytes(found['feature_bytes'])} of features",
        "Captions": f"{found['captions']:,} for {found['coverage']:.1%} of the clips",
        "Failed clips": f"{sum(findings.reasons.values()):,}",
    }
    for stage, run in findings.stages.items():
        made = f"{run['counts']['done']:,} made in {format_seconds(run['report']['total_s'])}"
        words[f"Run {run['run']}, {stage}"] = (
            f"{made}, peak {format_bytes(run['measured_peak_bytes'] or 0)}"
        )
    if whole := whole_bytes(findings.stages):
        words["The whole model"] = f"{format_bytes(whole)} before its first step"
    return words
