"""The command line: a command parses, makes one call into the library and prints.

A file a group of commands. Exit status: 0 all done, 1 some videos failed, 2 misuse,
70 a bug, with its traceback; 128 and a signal's number where that ended the run early.
"""

from __future__ import annotations

from cogcache.cli import interrupts

# isort: split
# Signals are heard from here on: all else takes time to import.
import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

import click

from cogcache.cli.commands import Commands
from cogcache.cli.help import CONTEXT, write_commands
from cogcache.cli.streams import DAMAGED_ROWS, make_ready, printable_lines, say
from cogcache.system import check_distribution, machine_error, our_version, scratch

scratch.settle_temporary_place()  # in worker processes, too: they import this before torch

BUG = 70
"""Exit status of a bug: EX_SOFTWARE of BSD."""


class _Shown(click.ClickException):
    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_code = exit_status  # type: ignore[misc]

    def format_message(self) -> str:
        return printable_lines(super().format_message())

    def show(self, file: IO[Any] | None = None) -> None:
        problem, hint, what_to_do = self.format_message().partition("\nHint: ")
        say(f"Error: {problem}", "red")
        if hint:
            say(f"Hint: {what_to_do}", "green")


class CogcacheGroup(click.Group):
    """Shows our own errors as one message; any other error is a bug and keeps its traceback."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **named: Any) -> Any:
        """Run the program: by what the command line says, unless there are ``args``."""
        if args is not None:
            return super().main(args, *others, **named)
        interrupts.hear()
        try:
            return super().main(args, *others, **named)
        finally:
            interrupts.pass_by()
            if interrupts.were_heard():
                with suppress(OSError):
                    click.echo("\nstopped; run the same command to go on", err=True)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by what they are for."""
        write_commands(formatter)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; the one place where our errors become click's."""
        try:
            result = self._invoked(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except (KeyboardInterrupt, click.Abort):
            with suppress(OSError):
                click.echo("\nstopped; run the same command to go on", err=True)
            raise SystemExit(128 + signal.SIGINT) from None
        except Exception as error:
            if interrupts.were_heard():
                # A library took the SystemExit in its midst for an error of its own: while
                # modules are imported, some do.
                raise SystemExit(interrupts.ending_status()) from error
            if (told := machine_error(error)) is not None:
                raise _Shown(str(told), told.exit_status) from error
            traceback.print_exc()
            raise SystemExit(BUG) from None
        return result

    def _invoked(self, ctx: click.Context) -> object:
        """Run the command. If damaged rows were left out, its exit status is not 0."""
        try:
            result = super().invoke(ctx)
        except SystemExit as end:
            if end.code or not DAMAGED_ROWS.told:
                raise
            result = None
        if DAMAGED_ROWS.told:
            rows = len(DAMAGED_ROWS.told)
            left_out = "a damaged row was" if rows == 1 else f"{rows} damaged rows were"
            click.echo(f"{left_out} left out; `cogcache rebuild` keeps all others", err=True)
            raise SystemExit(1)
        return result


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"cogcache, version {our_version()}")
        context.exit()


@click.group(cls=CogcacheGroup, context_settings=CONTEXT)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log what is done on the way.")
def main(verbose: bool) -> None:
    """Caption videos in two stages: encode each video once, caption it with any prompt."""
    make_ready(verbose=verbose)
    if (told := check_distribution()) is not None:
        click.echo(told, err=True)


main.commands = Commands()
