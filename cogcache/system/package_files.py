"""Files that come with the package: settings to start from, and the pages of the docs.

A wheel has them inside the package; in a checkout they lie beside it.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Final, Literal

from cogcache.errors import ConfigError

_PACKAGE: Final = Path(str(sys.modules["cogcache"].__file__)).parent
SUFFIXES: Final = {"configs": ".toml", "docs": ".md"}


def package_files(kind: Literal["configs", "docs"]) -> dict[str, Path]:
    """Return the files of one kind by their names, without suffix."""
    inside = _PACKAGE / kind
    folder = inside if inside.is_dir() else _PACKAGE.parent / kind
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIXES[kind]}"))}


def package_file(kind: Literal["configs", "docs"], name: str) -> Path:
    """Return one of the files.

    Raises:
        ConfigError: there is none of this name; the nearest one is named.
    """
    files = package_files(kind)
    if (found := files.get(name)) is not None:
        return found
    near = difflib.get_close_matches(name, files, n=3)
    near += [each for each in files if each.startswith(name) and each not in near]
    hint = f"did you mean {', '.join(sorted(near))}?" if near else f"there are {', '.join(files)}"
    what = "settings" if kind == "configs" else "page"
    raise ConfigError(f"there is no file {name}, nor {what} of that name", hint)
