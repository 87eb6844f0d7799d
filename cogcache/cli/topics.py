"""`configs` and `help`: settings to start from, and the pages of the docs in the terminal."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterable
from pathlib import Path

import click

from cogcache.cli.cache_option import NamedPath
from cogcache.cli.printing import json_option, print_rows
from cogcache.errors import ConfigError
from cogcache.system import package_file, package_files


def _beginning(names: Iterable[str], begun: str) -> list[str]:
    """Return the names that a shell offers for what was typed so far."""
    return [name for name in names if name.startswith(begun)]


@click.command()
@click.argument(
    "name",
    required=False,
    shell_complete=lambda _ctx, _param, begun: _beginning(package_files("configs"), begun),
)
@click.argument("target", type=NamedPath(path_type=Path), required=False)
@json_option
def configs(name: str | None, target: Path | None, json_: bool) -> None:
    r"""List the settings to start from, or copy those called NAME to the file TARGET.

    \b
    cogcache configs
    cogcache configs cogvlm2-caption my.toml
    cogcache run clips/ --cache cache --config my.toml

    `--config cogvlm2-caption` takes them as they are.
    """
    if name is None:
        print_rows([_row(*each) for each in package_files("configs").items()],
                   ("name", "model", "about"), json_=json_)  # fmt: skip
        return
    source = package_file("configs", name)
    if target is None:
        click.echo(source.read_text(encoding="utf-8"), nl=False)
        return
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise ConfigError(f"{target} exists", "name another file")
    shutil.copyfile(source, target)
    click.echo(f"{target} written; take it with --config {target}")


def _row(name: str, path: Path) -> dict[str, str]:
    import tomllib

    text = path.read_text(encoding="utf-8")
    about = text.partition("\n")[0].lstrip("# ")
    return {"name": name, "model": tomllib.loads(text).get("model", ""), "about": about}


@click.command("help")
@click.argument(
    "topic",
    required=False,
    shell_complete=lambda _ctx, _param, begun: _beginning(package_files("docs"), begun),
)
@click.pass_context
def help_(context: click.Context, topic: str | None) -> None:
    """Show a page of the docs: `cogcache help long-videos`; without TOPIC, list them.

    TOPIC may be a command, too: `cogcache help run` is `cogcache run --help`.
    """
    parent = context.find_root()
    group = parent.command
    if topic and isinstance(group, click.Group) and (command := group.commands.get(topic)):
        with click.Context(command, info_name=topic, parent=parent) as inner:
            click.echo(command.get_help(inner))
        return
    if topic is None:
        rows = [{"topic": n, "about": _title(p)} for n, p in package_files("docs").items()]
        print_rows(rows, ("topic", "about"), json_=False)
        click.echo("\n`cogcache help TOPIC` shows a page, `cogcache COMMAND --help` the options")
        return
    pages = package_files("docs")
    if topic not in pages:
        commands = group.commands if isinstance(group, click.Group) else {}
        shown = [name for name, each in commands.items() if not each.hidden]
        near = difflib.get_close_matches(topic, [*shown, *pages], n=1)
        hint = f"did you mean {near[0]}?" if near else "`cogcache help` lists the pages"
        raise ConfigError(f"there is no page and no command {topic!r}", hint)
    click.echo_via_pager(pages[topic].read_text(encoding="utf-8"))


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
