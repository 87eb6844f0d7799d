"""Options of the command line, made from the settings, so that the two cannot drift apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cogcache.cli.cache_option import NamedPath
from cogcache.cli.help import SettingOption
from cogcache.errors import ConfigError
from cogcache.settings import (
    MODELS,
    NO_MODEL,
    Leaf,
    Settings,
    described,
    known_part,
    leaves,
    load_settings,
    parse_prompts,
    prompt_sets_of,
)
from cogcache.system import package_file, package_files

Command = Callable[..., Any]


_FILE = NamedPath(exists=True, dir_okay=False, path_type=Path)


class _ConfigFile(click.ParamType[Path]):
    """A TOML file, or the name of one that comes with the package."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the file's path."""
        path = Path(value)
        if path.exists() or path.suffix or len(path.parts) != 1:
            return Path(_FILE.convert(value, param, ctx))
        return package_file("configs", str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the names, and where none begins so, files."""
        names = [name for name in package_files("configs") if name.startswith(incomplete)]
        found = [CompletionItem(name) for name in names]
        return found or [CompletionItem(incomplete, type="file")]


_ALIASES = {
    "segment_s": ["--segment"],
    "overlap_s": ["--overlap"],
    "min_scene_s": ["--min-scene"],
    "min_free_gib": ["--min-free"],
    "decode_memory_gib": ["--decode-memory"],
    "recycle_growth_gib": ["--recycle-growth"],
}


def settings_options(
    *tables: str,
    prompts: bool = False,
    model_needed: bool = True,
    makes_clips: bool = False,
    without: Collection[str] = (),
    ignored: Collection[str] = (),
) -> Callable[[Command], Command]:
    """Return a decorator that gives a command its settings.

    The command gets ``--config FILE``, an option for each setting of ``tables`` and, with
    ``prompts``, ``--prompt`` and ``--prompts``. It is called with one argument for all of them:
    ``settings``, a `Settings` of defaults, overridden by the file, overridden by the options.

    Args:
        tables: names out of `cogcache.settings.settings.TABLES`.
        prompts: whether the command takes prompts.
        model_needed: whether the command ends where neither the user nor the cache names a model.
        makes_clips: whether it cuts videos, so that how the cache was cut counts.
        without: settings of these tables that the command does not take.
        ignored: those that it takes, so that one command line suits both stages, and ignores:
            help does not show them.
    """
    taken = [leaf for leaf in leaves(*tables) if leaf.name not in without]
    names = [leaf.name for leaf in taken]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_settings(*args: Any, config: Path | None, **given: Any) -> Any:
            # Of options that can be repeated, click makes an empty tuple where none was given.
            values = {name: given.pop(name) for name in names}
            overrides = {name: None if value == () else value for name, value in values.items()}
            if prompts:
                texts, file, sets = (given.pop(n) for n in ("prompt", "prompts", "prompt_set"))
                overrides |= _prompts(texts, file, sets)
            settings = _load(given.get("cache"), config, overrides, with_cuts=makes_clips)
            if model_needed and not settings.model:
                raise ConfigError(NO_MODEL, MODELS)
            return command(*args, settings=settings, **given)

        decorated: Command = with_settings
        # click lists options in the reverse order of their decorators.
        for option in reversed(_options(taken, ignored, prompts=prompts)):
            decorated = option(decorated)
        return decorated

    return decorate


def _load(
    cache: Path | None,
    config: Path | None,
    overrides: Mapping[str, object],
    *,
    with_cuts: bool,
) -> Settings:
    """Return the settings of a command, those that its cache remembers included.

    Stage two takes clips of any cut as long as none is asked for: `with_cuts` is false there.
    """
    settings = load_settings(config, overrides)
    if cache is None:
        return settings
    from cogcache.stages import is_written, remembered, with_published_pixels

    found = remembered(cache, settings.profile or None, settings.model or None)
    if found is None:
        return with_published_pixels(settings) if with_cuts and settings.model else settings
    profile = known_part(found[1])
    if not (with_cuts or settings.profile):
        profile.pop("clips", None)
    if not is_written(cache):
        click.echo(
            f"{cache} has no profile yet; as in its last run: {described(profile)}", err=True
        )
    return load_settings(config, overrides, profile)


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


def _arguments(leaf: Leaf, value: object) -> list[str]:
    if isinstance(value, bool):
        return [leaf.option if value else _no(leaf)]
    if isinstance(value, tuple):
        return [f"{leaf.option}={each}" for each in value or ("",)]
    if value is None:
        value = "" if leaf.type is str else 0
    return [f"{leaf.option}={value}"]


def _prompts(texts: tuple[str, ...], file: Path | None, sets: tuple[str, ...]) -> dict[str, object]:
    """Return what prompts to override: of a file with sets that are named, the sets alone count."""
    if not sets:
        return {"prompts": parse_prompts(texts, file) or None}
    found = {"prompts": parse_prompts(texts) or None, "prompt_set": sets}
    return found | ({"prompt_sets": prompt_sets_of(file)} if file else {})


def _options(
    taken: list[Leaf], ignored: Collection[str], *, prompts: bool
) -> list[Callable[[Command], Command]]:
    config = click.option(
        "--config",
        type=_ConfigFile(),
        metavar="FILE",
        help="Settings in TOML: a file, or a name that `cogcache configs` lists.",
    )
    options = [config, *(_prompt_options() if prompts else ())]
    return options + [_option(leaf, is_hidden=leaf.name in ignored) for leaf in taken]


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


def _option(leaf: Leaf, *, is_hidden: bool = False) -> Callable[[Command], Command]:
    # Only what was given overrides the file: hence no default but None.
    names = [leaf.option, *_ALIASES.get(leaf.name, []), leaf.name]
    if leaf.type is bool:
        names[0] += "/" + _no(leaf)
    kind: Any = click.Choice(leaf.choices) if leaf.choices else leaf.type
    return click.option(
        *names,
        cls=SettingOption,
        table=leaf.table,
        type=kind,
        default=None,
        multiple=leaf.several,
        help=_help(leaf),
        hidden=is_hidden,
    )


def _help(leaf: Leaf) -> str:
    shown = str(leaf.default).lower() if isinstance(leaf.default, bool) else leaf.default
    text = leaf.description.replace("`", "").removesuffix(".")
    if leaf.several:
        return f"{text}; repeatable"
    if shown in (None, ""):  # TOML has no null
        shown = '""' if leaf.type is str else 0
    return f"{text} [default: {shown}]"


def _no(leaf: Leaf) -> str:
    return "--no-" + leaf.option.removeprefix("--")
