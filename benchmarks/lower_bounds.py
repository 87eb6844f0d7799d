"""Writes the oldest releases that pyproject.toml allows as constraints, to run the tests with.

torch and torchvision are left out: their oldest releases are those that are run everywhere.

    python -m benchmarks.lower_bounds > lower-bounds.txt
    python -m pip install -c lower-bounds.txt '.[dev]'
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
LEFT_OUT = ("torch", "torchvision")
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[^]]*\])?>=(?P<least>[\w.]+)")


def lower_bounds(content: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the names and the oldest releases of what a pyproject.toml asks for.

    Args:
        content: of the file; what has no lower bound is passed over.

    Example:
        >>> [*lower_bounds({"project": {"dependencies": ["av>=14", "tqdm"]}})]
        [('av', '14')]
    """
    project = content["project"]
    assert isinstance(project, dict)
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    for requirement in (each for some in lists for each in some):
        found = _REQUIREMENT.match(requirement)
        if found and found["name"] not in LEFT_OUT:
            yield found["name"], found["least"]


def main() -> None:
    """Print them, by name."""
    content = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    for name, least in sorted(set(lower_bounds(content))):
        print(f"{name}=={least}")


if __name__ == "__main__":
    main()
