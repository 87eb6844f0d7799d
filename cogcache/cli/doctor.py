"""`doctor`: is this installation well?"""

from __future__ import annotations

from pathlib import Path

import click

from cogcache.cli.cache_option import NamedPath
from cogcache.cli.printing import json_option, print_rows


@click.command()
@click.option(
    "--cache",
    type=NamedPath(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder whose disk is looked at.",
)
@click.option(
    "--backend-python",
    type=NamedPath(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Python of vLLM's environment: what it makes of tiny is compared with what is made here.",
)
@json_option
def doctor(cache: Path | None, backend_python: Path | None, json_: bool) -> None:
    """Check the installation, decoders, 4-bit arithmetic, disk and device."""
    from dataclasses import asdict

    from cogcache.selftest import examine

    rows = [asdict(check) for check in examine(cache, backend_python)]
    shown = rows if json_ else [row | {"ok": "ok" if row["ok"] else "FAULT"} for row in rows]
    print_rows(shown, ("check", "ok", "found"), json_=json_)
    raise SystemExit(0 if all(row["ok"] for row in rows) else 1)
