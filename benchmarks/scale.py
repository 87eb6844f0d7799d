"""Computes the time and disk for 10⁴ to 10⁹ clips from unit costs: the tables of docs/scale.md.

    python -m benchmarks.scale

Each unit cost names its source there: measured here, from the published sizes, or assumed. Change
an assumption with an option, such as ``--reached 0.3``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

CLIPS = [10**n for n in range(4, 10)]


@dataclass(frozen=True)
class UnitCosts:
    """Of one clip of 24 frames and one caption, with the flagship."""

    projected_mb: float = 8.9
    """Sealed with zstd at full size (random weights): measured."""
    pooled_mb: float = 3.3
    """5.51 MB of published shapes, and 0.59 of that sealed: measured on a small model."""
    catalog_kb: float = 4.5
    """Rows of video, clip and caption with their indexes: measured."""
    listing_kb: float = 2.5
    """Memory of a run that lists what there is: measured from 1,000 to 100,000 clips."""
    listing_us: float = 50.0
    """Processor time of the same: measured."""
    vision_tflop: float = 53.0
    """A pass of 24 frames, from the published shapes."""
    prefill_tflop: float = 22.6
    """1,620 tokens through 6.98 billion weights, from the published shapes."""
    tokens: float = 150.0
    """Of a caption: assumed."""
    reached: float = 0.4
    """Share of a card's peak that is reached: assumed."""


@dataclass(frozen=True)
class Card:
    """A GPU; all of it reported or assumed, nothing measured here."""

    name: str
    peak_tflops: float
    """bfloat16 without sparsity, by its maker."""
    tokens_per_s: float
    """Llama-3.1-8B, 32 rows together, reported by bitsandbytes for v0.45."""
    dollars_per_h: float
    """Assumed."""


CARDS = (Card("24 GB (RTX 4090)", 165.0, 679.0, 0.40), Card("H100", 989.0, 1228.0, 2.50))
DOLLARS_PER_GB_MONTH = 0.023
DOLLARS_PER_MILLION_PUTS = 5.0


def seconds(card: Card, costs: UnitCosts) -> tuple[float, float]:
    """Return a card's seconds a clip in each stage."""
    reached = card.peak_tflops * costs.reached
    return (
        costs.vision_tflop / reached,
        costs.prefill_tflop / reached + costs.tokens / card.tokens_per_s,
    )


def amount(number: float, units: tuple[str, ...], step: float = 1000.0) -> str:
    """Return a number with three digits and the unit that fits it."""
    for unit in units[:-1]:
        if number < step:
            return f"{number:.3g} {unit}"
        number /= step
    return f"{number:,.3g} {units[-1]}" if number < 1e3 else f"{number:,.0f} {units[-1]}"


def duration(hours: float) -> str:
    """Return hours in the unit that fits."""
    if hours < 1:
        return f"{hours * 60:.2g} min"
    return f"{hours:.3g} h" if hours < 48 else f"{hours / 24:,.3g} days"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def stored(costs: UnitCosts) -> str:
    """Return what lies on disks, and what listing it takes."""
    rows = []
    for clips in CLIPS:
        month = clips * costs.projected_mb / 1e3 * DOLLARS_PER_GB_MONTH
        rows.append(
            [
                f"{clips:,}",
                amount(clips * costs.projected_mb, ("MB", "GB", "TB", "PB")),
                amount(clips * costs.pooled_mb, ("MB", "GB", "TB", "PB")),
                f"{clips:,}",
                amount(clips * costs.catalog_kb, ("kB", "MB", "GB", "TB")),
                amount(clips * costs.listing_kb, ("kB", "MB", "GB", "TB")),
                duration(clips * costs.listing_us / 3.6e9),
                f"${month:,.0f}",
                f"${clips / 1e6 * DOLLARS_PER_MILLION_PUTS:,.2f}",
            ]
        )
    header = ["clips", "features, projected", "pooled", "files", "catalog rows, together"]
    header += ["memory to list", "time to list", "projected a month, object store", "puts"]
    return table(header, rows)


def worked(costs: UnitCosts) -> str:
    """Return hours and money of the cards."""
    rows = []
    for clips in CLIPS:
        row = [f"{clips:,}"]
        for card in CARDS:
            hours = [clips * each / 3600 for each in seconds(card, costs)]
            row += [f"{each:,.3g} h" if each < 1e3 else f"{each:,.0f} h" for each in hours]
            row.append(f"${sum(hours) * card.dollars_per_h:,.0f}")
            row.append(duration(sum(hours) / 1000))
        rows.append(row)
    header = ["clips"]
    for card in CARDS:
        header += [f"{card.name}: stage one", "stage two", "money", "on 1,000 of them"]
    return table(header, rows)


def main() -> None:
    """Parse, compute, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for each in fields(UnitCosts):
        option = f"--{each.name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=each.default)
    costs = UnitCosts(**vars(parser.parse_args()))
    for card in CARDS:
        one, two = seconds(card, costs)
        print(f"{card.name}: {one:.2f} s a clip in stage one, {two:.2f} s in stage two")
    print(f"\n{stored(costs)}\n\n{worked(costs)}")


if __name__ == "__main__":
    main()
