"""The option that names the cache, for commands with settings and for those without any.

Kept apart from the other options: these need the settings, whose import takes as long as a listing.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import click

from cogcache.system import location_of


class NamedPath(click.Path):
    """A path that was named: an empty text, which an unset variable leaves, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("it is empty; a variable that is not set may have left it so", param, ctx)
        return super().convert(value, param, ctx)


class LocationType(NamedPath):
    """A folder or a file, or the URL of what lies in a store."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path or the object."""
        found = super().convert(value, param, ctx)
        return location_of(found) if isinstance(found, str) else found


class CachePath(NamedPath):
    """The folder of a cache; where none is named, those that lie here are."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        """Say what to type."""
        here = sorted(path.parent.name for path in Path().glob("*/cogcache.toml"))
        known = f"; caches here: {', '.join(map(quote, here[:5]))}" if here else ""
        return f"Name the folder of the cache, or set COGCACHE_CACHE{known}"


cache_option = click.option(
    "--cache",
    type=CachePath(file_okay=False, path_type=Path),
    required=True,
    envvar="COGCACHE_CACHE",
    metavar="DIR",
    help="Folder of the cache: features and catalog; or set COGCACHE_CACHE.",
)
"""``--cache DIR``, handed to the command as ``cache: Path``."""
