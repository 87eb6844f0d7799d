"""The command line: a command parses, makes one call into the library and prints.

A file a group of commands. Exit status: 0 all done, 1 some videos failed, 2 misuse.
"""

from __future__ import annotations

import logging

import click

from cogcache.cli.demo import demo
from cogcache.cli.doctor import doctor
from cogcache.cli.listings import failures, ls, models
from cogcache.cli.stages import caption, extract, run
from cogcache.errors import CogcacheError


class _Shown(click.ClickException):
    exit_code = 2


class CogcacheGroup(click.Group):
    """Shows our own errors as one message; any other error is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; the one place where our errors become click's."""
        try:
            return super().invoke(ctx)
        except CogcacheError as error:
            raise _Shown(str(error)) from error


@click.group(cls=CogcacheGroup)
@click.version_option(package_name="cogcache")
@click.option("--verbose", "-v", is_flag=True, help="Log what is done on the way.")
def main(verbose: bool) -> None:
    """Caption videos in two stages: encode once, caption for ever."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbose else logging.WARNING)


for command in (run, extract, caption, ls, failures, models, doctor, demo):
    main.add_command(command)
