"""How help is laid out: commands by what they are for, options by what they set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import click

COMMANDS: Final = {
    "Make": ("run", "extract", "caption", "train", "distill", "demo"),
    "Look": ("ls", "search", "diff", "failures", "status", "serve", "gallery", "report"),
    "Correct": ("score", "review", "replace"),
    "Hand on": ("export", "import"),
    "Models": ("models", "plan", "split", "verify-quantization", "verify-model"),
    "Care": ("verify", "forget", "gc", "convert", "rebuild", "merge", "doctor"),
    "Help": ("configs", "help"),
}
"""The commands by section of the help; those that are missing here come under "More"."""
SECTIONS: Final = {
    "": "Options",
    "model": "Model and machine",
    "sampling": "Which frames",
    "clips": "How videos are cut",
    "vision": "Stage one",
    "language": "Stage two",
    "generation": "How captions are written",
    "summary": "Summaries",
    "quality": "Which clips are worth it",
    "limits": "Limits",
    "machines": "Several devices or machines",
}
OLD_SPELLINGS: Final = frozenset({"--force", "--features"})
"""Former names of options. They still work, and help does not show them."""
EXAMPLES: Final = {
    "run": "cogcache run clips/ --cache cache --config cogvlm2-caption",
    "extract": "cogcache extract clips/ --cache cache --config cogvlm2-caption",
    "caption": "cogcache caption --cache cache --prompt 'weather=What is the weather like?'",
    "ls": "cogcache ls --cache cache --prompt-name weather",
    "search": "cogcache search --cache cache 'dog OR cat'",
    "export": "cogcache export captions.jsonl --cache cache",
    "replace": "cogcache replace dog wolf --cache cache",
    "import": "cogcache import edited.jsonl --cache cache --set mine",
    "plan": "cogcache plan clips/ --config cogvlm2-caption --memory 12GiB",
    "split": "cogcache split THUDM/cogvlm2-llama3-caption captioner",
    "serve": "cogcache serve --cache cache",
    "verify": "cogcache verify --cache cache --fix",
    "gc": "cogcache gc --cache cache",
    "forget": "cogcache forget --cache cache --prompt-name weather",
}


class SettingOption(click.Option):
    """An option made from a setting; help lists it under the setting's table."""

    def __init__(self, *names: Any, table: str, **given: Any) -> None:
        super().__init__(*names, **given)
        self.table = table


class GroupedCommand(click.Command):
    """A command whose help lists options by what they set, and ends with an example."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section a table of settings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or not isinstance(parameter, click.Option):
                continue
            rows = sections.setdefault(_section(getattr(parameter, "table", "")), [])
            rows.append((_without_old(record[0]), record[1]))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        if (example := EXAMPLES.get(self.name or "")) is not None:
            with formatter.section("Example"):
                formatter.write_text(example)


def _section(table: str) -> str:
    """Return the title of a table's options, with its name in TOML."""
    title = SECTIONS.get(table, table.capitalize())
    return f"{title} [{table}]" if table not in ("", "model") else title


def _without_old(names: str) -> str:
    """Leave out spellings that were replaced: "--overwrite, --force" is "--overwrite"."""
    spellings, _, metavar = names.partition(" ")
    if "," in spellings:  # click separates them by a comma and a blank
        *spelled, last = names.split(", ")
        last, _, metavar = last.partition(" ")
        shown = [each for each in (*spelled, last) if each not in OLD_SPELLINGS]
        return f"{', '.join(shown)} {metavar}".strip()
    return names


def write_commands(group: click.Group, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the commands of a group by section, each with its whole summary."""
    listed = {name for names in COMMANDS.values() for name in names}
    more = [name for name in group.list_commands(ctx) if name not in listed]
    for title, names in {**COMMANDS, "More": more}.items():
        rows = list(_rows(group, ctx, names))
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _rows(
    group: click.Group, ctx: click.Context, names: Iterable[str]
) -> Iterable[tuple[str, str]]:
    for name in names:
        command = group.get_command(ctx, name)
        if command is not None and not command.hidden:
            yield name, command.get_short_help_str(limit=500)


def dressed(command: click.Command) -> click.Command:
    """Return a command with this help, `-h`, and every default shown."""
    if type(command) is click.Command:
        command.__class__ = GroupedCommand
    command.context_settings = {**command.context_settings, **CONTEXT}
    return command


CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "show_default": True}
