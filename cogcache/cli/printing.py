"""How rows are printed, in every listing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

json_option = click.option("--json", "json_", is_flag=True, help="Print one JSON array.")
"""``--json``, handed to the command as ``json_: bool``."""


def print_rows(rows: Sequence[Any], columns: Sequence[str], *, json_: bool) -> None:
    """Print rows as a table of some of their columns, or whole as one JSON array."""
    from cogcache.cli.tables import as_json, as_table

    click.echo(as_json(rows) if json_ else as_table(rows, columns))
