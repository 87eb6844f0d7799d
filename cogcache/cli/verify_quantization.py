"""`verify-quantization`: what a quantised language half loses, on the user's own clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cogcache.cli.cache_option import cache_option
from cogcache.cli.numbers import Real, Whole
from cogcache.cli.options import settings_options
from cogcache.cli.printing import json_option
from cogcache.settings import Settings

if TYPE_CHECKING:
    from cogcache.stages import ComparedCaptions

COMPARED = ("model", "sampling", "vision", "language", "inference", "generation")
PART = Real(0, 1)


@click.command("verify-quantization")
@cache_option
@click.option(
    "--compare-clips",
    type=Whole(1),
    default=32,
    show_default=True,
    help="Most clips that are captioned, spread over the cache.",
)
@click.option(
    "--positions",
    type=Whole(1),
    default=64,
    show_default=True,
    help="Most places of a caption at which logits are compared.",
)
@click.option("--max-kl", type=Real(0), help="Most mean divergence, in nats.")
@click.option("--min-agreement", type=PART, help="Least part of places with the same top token.")
@click.option("--min-similarity", type=PART, help="Least part of words that captions share.")
@click.option("--max-flagged", type=PART, help="Most part of captions that get flags by it.")
@json_option
@settings_options(*COMPARED, prompts=True)
def verify_quantization(
    cache: Path,
    compare_clips: int,
    positions: int,
    json_: bool,
    settings: Settings,
    **bounds: float | None,
) -> None:
    """Compare the quantised language half with the unquantised one, on clips of a cache.

    Each runs in a process of its own, one after the other. Nothing is stored in the cache.
    Exit status: 1 if a bound that was given does not hold.
    """
    from cogcache.stages import Bounds, check_precision, summary

    pairs = check_precision(cache, settings, clips=compare_clips, positions=positions)
    found = summary(pairs)
    broken = Bounds(**bounds).broken_by(found)
    if json_:
        rows = [pair.row() for pair in pairs]
        click.echo(json.dumps({"summary": found, "broken": broken, "captions": rows}, indent=1))
    else:
        sides = ("unquantised", "quantised")
        if settings.inference.is_vllm:
            sides = ("transformers", "vllm")
        click.echo("\n".join([*_lines(found, sides), "", *_side_by_side(pairs, sides), *broken]))
    raise SystemExit(1 if broken else 0)


def _lines(found: dict[str, float], sides: tuple[str, str]) -> list[str]:
    from cogcache.cli.tables import as_table
    from cogcache.stages import RATED

    rates: list[dict[str, Any]] = [
        {
            "rate": flag,
            sides[0]: f"{found[f'reference_{flag}']:.1%}",
            sides[1]: f"{found[flag]:.1%}",
        }
        for flag in RATED
    ]
    return [
        f"{found['captions']:.0f} captions, {found['positions']:.0f} places of them",
        f"  divergence of logits (KL): {found['kl']:.4f} nats, at worst {found['kl_max']:.4f}",
        f"  same top token: {found['agreement']:.2%} of places",
        f"  words in common: {found['similarity']:.1%}; the same caption: {found['identical']:.1%}",
        "",
        as_table(rates, ("rate", *sides)),
    ]


def _side_by_side(pairs: list[ComparedCaptions], sides: tuple[str, str]) -> list[str]:
    from cogcache.cli.tables import as_table
    from cogcache.cli.times import as_players_show
    from cogcache.stages import worst

    rows = [
        {**pair.row(), sides[0]: pair.reference_caption, sides[1]: pair.caption}
        for pair in worst(pairs)
    ]
    columns = ("video", "start_s", "prompt_name", "similarity", "kl", *sides)
    return [
        f"The {len(rows)} that are furthest apart:",
        as_table(as_players_show(rows), columns),
        "",
    ]
