"""Options of the command line, made from the settings, so that the two cannot drift apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cogcache.settings import Leaf, Settings, leaves, load_settings, parse_prompts, prompt_sets_of

Command = Callable[..., Any]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_ALIASES = {
    "segment_s": ["--segment"],
    "overlap_s": ["--overlap"],
    "min_scene_s": ["--min-scene"],
    "min_free_gib": ["--min-free"],
    "decode_memory_gib": ["--decode-memory"],
    "recycle_growth_gib": ["--recycle-growth"],
}

cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the cache: features and catalog.",
)
"""``--cache DIR``, handed to the command as ``cache: Path``."""


def settings_options(*tables: str, prompts: bool = False) -> Callable[[Command], Command]:
    """Return a decorator that gives a command its settings.

    The command gets ``--config FILE``, an option for each setting of ``tables`` and, with
    ``prompts``, ``--prompt`` and ``--prompts``. It is called with one argument for all of them:
    ``settings``, a `Settings` of defaults, overridden by the file, overridden by the options.

    Args:
        tables: names out of `cogcache.settings.settings.TABLES`.
        prompts: whether the command takes prompts.
    """
    names = [leaf.name for leaf in leaves(*tables)]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_settings(*args: Any, config: Path | None, **given: Any) -> Any:
            # Of options that can be repeated, click makes an empty tuple where none was given.
            values = {name: given.pop(name) for name in names}
            overrides = {name: None if value == () else value for name, value in values.items()}
            if prompts:
                texts, file, sets = (given.pop(n) for n in ("prompt", "prompts", "prompt_set"))
                overrides |= _prompts(texts, file, sets)
            return command(*args, settings=load_settings(config, overrides), **given)

        decorated: Command = with_settings
        # click lists options in the reverse order of their decorators.
        for option in reversed(_options(tables, prompts=prompts)):
            decorated = option(decorated)
        return decorated

    return decorate


def as_arguments(settings: Settings, *tables: str, prompts: bool = False) -> list[str]:
    """Return the command line that gives another process the same settings.

    Args:
        settings: what the other process shall work with.
        tables: those of its command; settings of other tables are left out.
        prompts: whether its command takes prompts.
    """
    arguments = []
    for leaf in leaves(*tables):
        table = settings if leaf.table == "model" else getattr(settings, leaf.table)
        arguments += _arguments(leaf, getattr(table, leaf.name))
    if prompts:
        arguments += [f"--prompt={name}={text}" for name, text in settings.prompts.items()]
    return arguments


def _prompts(texts: tuple[str, ...], file: Path | None, sets: tuple[str, ...]) -> dict[str, object]:
    """Return what prompts to override: of a file with sets that are named, the sets alone count."""
    if not sets:
        return {"prompts": parse_prompts(texts, file) or None}
    found = {"prompts": parse_prompts(texts) or None, "prompt_set": sets}
    return found | ({"prompt_sets": prompt_sets_of(file)} if file else {})


def _arguments(leaf: Leaf, value: object) -> list[str]:
    if isinstance(value, bool):
        return [leaf.option if value else _no(leaf)]
    if isinstance(value, tuple):
        return [f"{leaf.option}={each}" for each in value or ("",)]
    if value is None:
        value = "" if leaf.type is str else 0
    return [f"{leaf.option}={value}"]


def _options(tables: tuple[str, ...], *, prompts: bool) -> list[Callable[[Command], Command]]:
    config = click.option("--config", type=_FILE, metavar="FILE", help="Settings in TOML.")
    options = [config, *(_prompt_options() if prompts else ())]
    return options + [_option(leaf) for leaf in leaves(*tables)]


def _prompt_options() -> list[Callable[[Command], Command]]:
    return [
        click.option(
            "--prompt",
            multiple=True,
            metavar="TEXT",
            help="What to ask of each clip, as 'the question' or 'name=the question'; repeatable.",
        ),
        click.option(
            "--prompts",
            type=_FILE,
            metavar="FILE",
            help='Named prompts in TOML: [prompts] and lines of name = "text".',
        ),
        click.option(
            "--prompt-set",
            multiple=True,
            metavar="NAME",
            help="Take this set of prompts, [prompt_sets.NAME] of a file; repeatable.",
        ),
    ]


def _option(leaf: Leaf) -> Callable[[Command], Command]:
    # Only what was given overrides the file: hence no default but None.
    names = [leaf.option, *_ALIASES.get(leaf.name, []), leaf.name]
    if leaf.type is bool:
        names[0] += "/" + _no(leaf)
    kind: Any = click.Choice(leaf.choices) if leaf.choices else leaf.type
    return click.option(*names, type=kind, default=None, multiple=leaf.several, help=_help(leaf))


def _help(leaf: Leaf) -> str:
    shown = str(leaf.default).lower() if isinstance(leaf.default, bool) else leaf.default
    text = leaf.description.replace("`", "").removesuffix(".")
    if leaf.several:
        return f"{text}; repeatable"
    return text if shown is None else f"{text} [default: {shown}]"


def _no(leaf: Leaf) -> str:
    return "--no-" + leaf.option.removeprefix("--")
