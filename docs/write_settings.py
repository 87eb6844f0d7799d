"""Write the tables of docs/settings.md from the code; with --check, only compare them."""

from __future__ import annotations

from pathlib import Path

from marked_tables import with_table, write_or_check

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
        text = with_table(text, PAGE, name, body)
    return text


if __name__ == "__main__":
    write_or_check(PAGE, page_of)
