"""How help is laid out: commands by what they are for, options by what they set."""

from __future__ import annotations

from typing import Any, Final

import click

COMMANDS: Final = {
    "Make": {
        "run": "Run both stages, each in its own process.",
        "extract": "Stage one: encode VIDEOS with the vision half and cache the features.",
        "caption": "Stage two: caption from the cache with the language half alone.",
        "train": "Train the language half on captions of the cache; the vision half is not loaded.",
        "distill": "Train a smaller model on a teacher's captions and its probabilities for each token.",
        "demo": "Caption a dozen made-up clips in two stages and compare with the truth.",
    },
    "Look": {
        "ls": "List captions (the default), clips or runs.",
        "search": "Find captions, the best first.",
        "diff": "Show two sets of captions beside each other, where they differ.",
        "failures": "List clips that failed, with the reason.",
        "status": "Show the runs at work on a cache: how far, how fast, how much memory.",
        "serve": "Show clips, captions, failures, runs and figures in a browser.",
        "gallery": "Write captions beside their pictures into one HTML file, OUT, to send to others.",
        "report": "Draw memory, time, throughput, lengths and failures into OUT: .png, .svg or .html.",
    },
    "Correct": {
        "score": "Score captions and clips: numbers that say which ones to look at.",
        "review": "Accept, reject, tag and edit captions; every step can be undone.",
        "replace": "Replace OLD by NEW in captions, as edits; every change is shown first.",
    },
    "Hand on": {
        "export": "Write captions for others: rows, subtitles, or a folder that a trainer reads.",
        "import": "Import captions from SOURCE as a separate set: JSONL, CSV, or a folder of .txt files.",
    },
    "Models": {
        "models": "List the families of models, or say what CHECKPOINT is and what a clip of it takes.",
        "plan": "Say what each stage will take: memory, disk and time, from headers and config alone.",
        "split": "Write the halves of MODEL to the folder OUT, the language half already quantised.",
        "verify-quantization": "Compare the quantised language half with the unquantised one, on clips of a cache.",
        "verify-model": "Compare MODEL in one piece with its two stages: ids, positions, pixels, features, tokens.",
    },
    "Care": {
        "verify": "Check every feature file against its checksum and against the catalog.",
        "forget": "List the captions that pass the filters; with --yes, delete them.",
        "gc": "List cached features whose video is gone or replaced.",
        "convert": "Convert features to another cache point or compression, without decoding a video.",
        "rebuild": "Rebuild the catalog from the feature files, and keep every undamaged caption.",
        "merge": "Merge other caches into one; SOURCES are left unchanged.",
        "doctor": "Check the installation, decoders, 4-bit arithmetic, disk and device.",
    },
    "Help": {
        "configs": "List the settings to start from, or copy those called NAME to the file TARGET.",
        "help": "Show a page of the docs: `cogcache help long-videos`; without TOPIC, list them.",
    },
}
"""The commands by section of the help, each with the first sentence of its own help.

They stand here so that `--help` need not import the commands, and with them the settings.
"""
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


def write_commands(formatter: click.HelpFormatter) -> None:
    """Write the commands by section, each with its whole summary."""
    for title, summaries in COMMANDS.items():
        with formatter.section(title):
            formatter.write_dl([*summaries.items()])


def dressed(command: click.Command) -> click.Command:
    """Return a command with this help, `-h`, and every default shown."""
    if type(command) is click.Command:
        command.__class__ = GroupedCommand
    command.context_settings = {**command.context_settings, **CONTEXT}
    return command


CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "show_default": True}
