"""The pages of the docs: their command blocks, what these need, and what a page shows of them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.name: path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
NEEDS = ("GPU", "hub", "cluster", "net", "docker", "minutes")
"""What a command block may be marked with, as in `<!-- needs: cluster -->`; it is not run then."""
BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>\w+) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
STAND_INS = (
    (r"--config (?:configs/)?(?:cogvlm2-caption|qwen2\.5-vl)(?:\.toml)?\b", "--model tiny"),
    (r"--config (?:configs/)?long-videos(?:\.toml)?\b", "--config long-videos --model tiny"),
    (r"THUDM/cogvlm2-llama3-caption|Qwen/Qwen2\.5-VL-[37]B-Instruct|\bMODEL\b", "tiny"),
    (r"^cogcache serve\b", "timeout --preserve-status --signal INT 40 cogcache serve"),
    (r"^pip install .*$", "true"),
)
"""What takes the place of a model that would be downloaded, and of what would not end."""


@dataclass(frozen=True)
class Block:
    """A block of commands of a page."""

    page: str
    line: int
    commands: str
    needs: str | None
    shown: str | None
    """The output that the page shows right below the block, if it shows any."""

    def typed(self) -> list[str]:
        """Return its commands, each in one line, without comments."""
        joined = re.sub(r"\\\n\s*", "", self.commands)
        return [line for line in joined.splitlines() if line and not line.startswith("#")]

    def stood_in(self) -> str:
        """Return the commands with small things in the place of what is not here."""
        text = self.commands
        for pattern, other in STAND_INS:
            text = re.sub(pattern, other, text, flags=re.MULTILINE)
        return text


def blocks(page: str) -> list[Block]:
    """Return the blocks of commands of a page, in their order."""
    text, found = PAGES[page], [*BLOCK.finditer(PAGES[page])]
    made = []
    for number, match in enumerate(found):
        if match["language"] != "sh":
            continue
        after = found[number + 1] if number + 1 < len(found) else None
        shown = None
        if after and after["language"] == "text" and not text[match.end() : after.start()].strip():
            shown = after["body"]
        line = text[: match.start()].count("\n") + 1
        made.append(Block(page, line, match["body"], match["needs"], shown))
    return made


def words_of(line: str) -> list[str]:
    """Return the words of a `cogcache` command after its name, up to a pipe or a sign."""
    words = shlex.split(line, comments=True)
    ends = [number for number, word in enumerate(words) if word in ("|", "&&", ";", ">", "&")]
    return words[1 : ends[0] if ends else None]


def not_shown(shown: str, printed: str) -> list[str]:
    """Return the lines of a page's output that were not printed in that order.

    Blanks count as one; `...` stands for anything, in a line or for lines.
    """
    rest = [" ".join(line.split()) for line in printed.splitlines()]
    missing = []
    for line in shown.splitlines():
        words = " ".join(line.split())
        if words in ("", "..."):
            continue
        pattern = re.compile(".*".join(map(re.escape, words.split("..."))))
        place = next((n for n, each in enumerate(rest) if pattern.fullmatch(each)), None)
        if place is None:
            missing.append(words)
        else:
            rest = rest[place + 1 :]
    return missing
