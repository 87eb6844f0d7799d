"""The package is installed as cogcache-video; what else may lie under the name cogcache."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cogcache.errors import ConfigError
from cogcache.system import distribution
from cogcache.system.distribution import (
    DISTRIBUTION,
    EXTRAS,
    check_distribution,
    install_line,
    our_version,
    version_of,
)

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = PROJECT["description"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that installs a distribution where no other one of these names is."""
    only = importlib.metadata.distribution

    def found(name: str) -> importlib.metadata.Distribution:
        if name in (DISTRIBUTION, "cogcache"):
            there = importlib.metadata.distributions(name=name, path=[str(tmp_path)])
            if (first := next(iter(there), None)) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return first
        return only(name)

    monkeypatch.setattr(distribution, "distribution", found)

    def install(name: str, version: str, summary: str, *, editable: bool = False) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n"
        (folder / "METADATA").write_text(text)
        if editable:
            url = '{"dir_info": {"editable": true}, "url": "file:///somewhere"}'
            (folder / "direct_url.json").write_text(url)

    return install


def test_the_distribution_is_cogcache_video_and_its_extras_are_those_of_the_table():
    assert PROJECT["name"] == DISTRIBUTION
    assert {*PROJECT["optional-dependencies"]} == {*EXTRAS, "dev", "site"}


def test_the_version_is_that_of_the_new_name(installed):
    installed("cogcache-video", "9.1", OURS)
    installed("cogcache", "0.2.0", "A cache of answers")
    assert our_version() == version_of("cogcache") == "9.1"


def test_the_version_of_an_old_install_of_ours_is_found_and_not_that_of_another_project(installed):
    assert our_version() == "unknown"
    installed("cogcache", "0.1.0", OURS)
    assert our_version() == "0.1.0"


def test_another_project_of_the_same_import_name_is_refused_with_what_to_type(installed):
    installed("cogcache-video", "9.1", OURS)
    installed("cogcache", "0.2.0", "A cache of answers")
    with pytest.raises(ConfigError, match=r"another project named cogcache \(0.2.0\)") as caught:
        check_distribution()
    assert caught.value.hint.startswith("pip uninstall cogcache cogcache-video, then ")


def test_an_old_install_of_ours_is_told_to_go(installed):
    installed("cogcache", "0.1.0", OURS)
    assert "pip uninstall cogcache, then" in (check_distribution() or "")


def test_an_old_install_that_has_no_files_of_its_own_is_no_clash(installed):
    installed("cogcache", "0.1.0", OURS, editable=True)
    assert check_distribution() is None


def test_the_command_line_says_the_clash_before_anything_else(tmp_path):
    folder = tmp_path / "cogcache-0.2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: cogcache\nVersion: 0.2.0\n")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cogcache.cli import main; main()"
    command = [sys.executable, "-c", code, str(tmp_path), "models"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "another project named cogcache (0.2.0)" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_line_installs_the_other_project():
    """`pip install cogcache` would: only a checkout has ours."""
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "cogcache").rglob("*.py")]
    for path in texts:
        for line in path.read_text().splitlines():
            if path.name != "distribution.py":
                assert "pip install cogcache" not in line, path
                assert "pip install 'cogcache" not in line, path
                assert "--upgrade cogcache" not in line, path


def test_the_line_to_install_an_extra_works_in_a_checkout():
    assert install_line("web", "plot") == "pip install -c constraints.txt '.[web,plot]'"
    assert install_line() == "pip install -c constraints.txt ."
