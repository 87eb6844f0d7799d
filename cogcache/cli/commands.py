"""The commands by name, each imported when it is first asked for: `ls` needs no settings."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Final

import click

from cogcache.cli.help import dressed

MODULES: Final = {
    "stages": ("run", "extract", "caption", "stage"),
    "train": ("train", "distill"),
    "search": ("search",),
    "diff": ("diff",),
    "export": ("export", "import"),
    "score": ("score",),
    "review": ("review", "replace"),
    "plan": ("plan",),
    "split": ("split",),
    "listings": ("ls", "failures", "models"),
    "topics": ("configs", "help"),
    "doctor": ("doctor",),
    "demo": ("demo",),
    "forget": ("forget",),
    "upkeep": ("status", "verify", "gc", "rebuild", "merge"),
    "convert": ("convert",),
    "verify_quantization": ("verify-quantization",),
    "verify_model": ("verify-model",),
    "web": ("serve", "gallery", "report"),
}
"""Names of commands, by the modules that define them."""


class Commands(MutableMapping[str, click.Command]):
    """The commands, as a mapping that a click group can use in place of a dictionary."""

    def __init__(self) -> None:
        self._module_of = {name: module for module, names in MODULES.items() for name in names}
        self._imported: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._imported:
            module = import_module(f"cogcache.cli.{self._module_of[name]}")
            defined = (each for each in vars(module).values() if isinstance(each, click.Command))
            self._imported[name] = dressed(next(each for each in defined if each.name == name))
        return self._imported[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._imported[name] = command
        self._module_of.setdefault(name, "")

    def __delitem__(self, name: str) -> None:
        del self._module_of[name]
        self._imported.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._module_of)

    def __len__(self) -> int:
        return len(self._module_of)
