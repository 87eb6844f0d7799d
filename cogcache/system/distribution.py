"""What this package is called where packages are installed, and how to install what is missing.

The distribution is ``cogcache-video``: another project holds the name ``cogcache`` on PyPI, with
the same import name. The package and the command are ``cogcache`` all the same.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from typing import Final

from cogcache.errors import ConfigError

DISTRIBUTION: Final = "cogcache-video"
OTHER: Final = "cogcache"
"""The name of the other project's distribution, and of ours until 0.1.0."""
EXTRAS: Final = {
    "parquet": "`export` to Parquet",
    "plot": "`report`, and the figures of `serve`",
    "ray": "`--engine ray`: workers on a Ray cluster",
    "s3": "videos and features in object stores (`s3://…`)",
    "scenes": "`--scenes`: videos cut where their scenes begin",
    "semantic": "`search --semantic`: captions found by their meaning",
    "structured": "`--json-schema`: captions that follow a schema",
    "train": "`train`: the language half trained on cached features",
    "web": "`serve` and `gallery`: pages for a browser",
    "nvml": "the memory of NVIDIA GPUs as the driver counts it",
}
"""What each extra is for. `doctor` is made from it; docs/first-captions.md has the same table."""
_OUR_SUMMARY: Final = "Caption videos in two stages"


def our_version() -> str:
    """Return the installed version; "unknown" where the package is used without being installed."""
    for name in (DISTRIBUTION, OTHER):
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if name == DISTRIBUTION or _is_ours(found):
            return found.version
    return "unknown"


def version_of(package: str) -> str:
    """Return the version of a package; of ``cogcache``, whichever name it is installed under."""
    return our_version() if package == OTHER else version(package)


def install_line(*extras: str) -> str:
    """Return the command that installs the package with these extras from its source folder."""
    what = f"'.[{','.join(extras)}]'" if extras else "."
    return f"pip install -c constraints.txt {what}"


def extra_hint(*extras: str) -> str:
    """Return the hint of an error: an extra is not installed."""
    return f"in the folder of cogcache's source: {install_line(*extras)}"


def check_distribution() -> str | None:
    """Look for the other project of the same import name.

    Returns:
        What to tell the user, as an old install of ours is still there; None where all is well.

    Raises:
        ConfigError: the other project's files lie among ours: nobody knows which of them run.
    """
    try:
        found = distribution(OTHER)
    except PackageNotFoundError:
        return None
    if not _is_ours(found):
        raise ConfigError(
            f"another project named cogcache ({found.version}) is installed in {sys.prefix}: "
            "it has the same import name, and the files of the two are mixed",
            f"pip uninstall {OTHER} {DISTRIBUTION}, then {extra_hint()}",
        )
    if _is_editable(found):  # it has no files of its own here
        return None
    return old_install(found)


def old_install(found: Distribution) -> str:
    """Say what to do about this package where it is still installed under its old name."""
    return (
        f"an old install of this package, {OTHER} {found.version}, is still there: "
        f"pip uninstall {OTHER}, then {extra_hint()}"
    )


def _is_ours(found: Distribution) -> bool:
    # A stub's metadata may lack the line.
    return str(found.metadata["Summary"] or "").startswith(_OUR_SUMMARY)


def _is_editable(found: Distribution) -> bool:
    return '"editable": true' in (found.read_text("direct_url.json") or "")
