"""An environment with nothing but the wheel, and what else the tests run with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("cogcache", "configs", "docs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md",
           "LICENSE", "constraints.txt")  # fmt: skip


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the source."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", "*.png")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=left_out)
        else:
            shutil.copyfile(path, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", root / "dist", source)
    (built,) = (root / "dist").iterdir()
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment with the wheel; other packages are these tests'."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    pip("--python", home / "bin" / "python", "install", "--no-deps", "--no-compile", wheel)
    # Afterwards: pip would find the package there, and leave the wheel out.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))
    return home / "bin"


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="session")
def typed(installed, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that types a line in a shell, in a folder, as a newcomer would."""
    home = tmp_path_factory.mktemp("home")
    env = {name: value for name, value in os.environ.items() if not name.startswith("COGCACHE_")}
    env |= {"PATH": f"{installed}:{env['PATH']}", "HOME": str(home), "COLUMNS": "80"}
    env.pop("PYTHONPATH", None)

    def type_(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=False
        )

    return type_
