"""`diff`: two sets of captions beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cogcache.cli.cache_option import cache_option
from cogcache.cli.filters import catalog_of, look_options, print_absent, selection_options
from cogcache.cli.printing import json_option, print_rows

if TYPE_CHECKING:
    from cogcache.catalog import Look, Selection


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@cache_option
@click.option("--all", "all_", is_flag=True, help="Show what is the same in both, too.")
@selection_options
@look_options
@json_option
def diff(
    a: str, b: str, cache: Path, all_: bool, selection: Selection, look: Look, json_: bool
) -> None:
    """Show two sets of captions beside each other, where they differ.

    A and B are names of prompts, or any of prompt=…,model=…,quantization=…,run=…:
    `diff short long`, `diff quantization=none quantization=nf4`, `diff run=3 run=7`. Words that
    only one side has are marked: [-only A-] and {+only B+}.
    """
    from cogcache.catalog import compare, parse_selector
    from cogcache.cli.times import as_players_show

    one, other = (parse_selector(text, selection) for text in (a, b))
    found = compare(catalog_of(cache), one, other, look)
    print_absent(found.absent)
    wanted = [pair for pair in found.pairs if all_ or pair.status != "same"]
    if json_:
        print_rows([pair.row() for pair in wanted], (), json_=True)
    elif wanted:
        names = (f"A: {a}", f"B: {b}")
        rows = as_players_show([pair.shown() for pair in wanted])
        shown = [{**row, names[0]: row["a"], names[1]: row["b"]} for row in rows]
        by_prompt = ("prompt_name",) if any(row["prompt_name"] for row in rows) else ()
        columns = ("video", "start_s", "end_s", *by_prompt, *names)
        print_rows(shown, columns, json_=False)
    click.echo(found.summary(), err=json_)
