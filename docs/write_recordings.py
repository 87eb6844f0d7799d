"""Takes the pictures of terminals in the docs: `make recordings`. Needs some minutes, and rich.

With names, such as `demo`, those alone; a later one needs what an earlier one has made.

Each command runs as it stands, with the bundled model, in a folder of its own. What it prints goes
into an SVG file; long outputs are shortened, and the picture says so.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

DOCS: Final = Path(__file__).parent
COLUMNS: Final = 112

TIMES: Final = re.compile(r"  (time|extract|caption|whole): |Where the time went|\w+: loading lib")
"""Lines that are left out: where the time went on the machine that took the picture."""


@dataclass(frozen=True)
class Recording:
    """A picture, the commands in it, and how many lines of each output are shown."""

    name: str
    commands: tuple[str, ...]
    first: int
    last: int


RECORDINGS: Final = (
    Recording("demo", ("cogcache demo --folder demo 2> log.txt",), 16, 13),
    Recording(
        "two-stages",
        (
            "cogcache extract demo/clips --cache cache --model tiny",
            "cogcache caption --cache cache",
            "cogcache caption --cache cache --prompt 'color=What color is the shape?'",
        ),
        3,
        4,
    ),
    Recording(
        "listing",
        (
            "cogcache ls --cache cache --side-by-side --limit 3",
            "cogcache search --cache cache 'blue OR purple' --limit 3",
        ),
        12,
        4,
    ),
)


def main() -> None:
    """Run the commands and write the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        for recording in RECORDINGS:
            if not sys.argv[1:] or recording.name in sys.argv[1:]:
                write(recording, Path(folder))


def write(recording: Recording, folder: Path) -> None:
    """Run the commands of a recording in a folder and draw what they print."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for command in recording.commands:
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text("\n".join(shortened(printed_by(command, folder), recording))))
    svg = console.export_svg(title="cogcache", unique_id=recording.name)
    # Without the font that the picture would fetch from a server: readers have one of their own.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    (DOCS / f"{recording.name}.svg").write_text(svg)


def printed_by(command: str, folder: Path) -> list[str]:
    """Return what a command prints on a terminal of this width; exit if it fails."""
    programs = Path(sys.executable).parent
    env = {**os.environ, "COLUMNS": str(COLUMNS), "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=env, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout}")
    # Of a line that is written over, such as a progress bar, the last state.
    lines = [line.rpartition("\r")[2].rstrip() for line in done.stdout.splitlines()]
    lines = [line.replace(f"{folder}/", "") for line in lines]
    return [line for line in lines if not TIMES.match(line)]


def shortened(lines: list[str], recording: Recording) -> list[str]:
    """Leave out the middle of a long output."""
    if len(lines) <= recording.first + recording.last + 1:
        return lines
    return [*lines[: recording.first], "...", *lines[-recording.last :]]


if __name__ == "__main__":
    main()
