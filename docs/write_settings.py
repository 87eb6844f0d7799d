"""Write the tables of docs/settings.md from the code; with --check, only compare them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cogcache.settings.settings import TABLES, Leaf, Settings, leaves

PAGE = Path(__file__).with_name("settings.md")
HEAD = "| Key | Option | Type | Default | Meaning |\n| --- | --- | --- | --- | --- |\n"
TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def table_of(name: str) -> str:
    """Return the Markdown of one table of settings."""
    return HEAD + "".join(row_of(leaf) for leaf in leaves(name))


def row_of(leaf: Leaf) -> str:
    """Return the line of one setting."""
    option = f"`{leaf.option}`"
    if leaf.type is bool:
        option += f", `--no-{leaf.option.removeprefix('--')}`"
    kind = ", ".join(f"`{choice}`" for choice in leaf.choices) or TYPES[leaf.type]
    kind += ", or a list of it" if leaf.several else ""
    default = leaf.default if leaf.default is not None else "" if leaf.type is str else 0
    default = "" if leaf.several else default
    shown = f'"{default}"' if isinstance(default, str) else str(default).lower()
    return f"| `{leaf.name}` | {option} | {kind} | `{shown}` | {leaf.description} |\n"


def page_of(text: str) -> str:
    """Return ``text`` with the table after each mark written anew."""
    for name in TABLES:
        about = "" if name == "model" else Settings.model_fields[name].annotation.__doc__
        body = f"{about}\n\n{table_of(name)}".lstrip()
        mark = rf"(?<=<!-- table: {name} -->\n).*?(?=<!-- end -->)"
        text, found = re.subn(mark, body.replace("\\", r"\\"), text, flags=re.DOTALL)
        if found != 1:
            sys.exit(f"{PAGE.name} should have one mark <!-- table: {name} -->, not {found}")
    return text


def main() -> None:
    """Write the page, or compare it."""
    text = PAGE.read_text()
    if "--check" not in sys.argv:
        PAGE.write_text(page_of(text))
    elif page_of(text) != text:
        sys.exit(f"{PAGE.name} is not what the code says: run `make docs`")


if __name__ == "__main__":
    main()
