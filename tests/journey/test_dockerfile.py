"""The Dockerfile copies what there is, installs as the README says, and runs as nobody special."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def steps() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile and what follows each."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    plain = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in plain]


def of(kind: str) -> list[str]:
    return [rest for instruction, rest in steps() if instruction == kind]


def test_each_file_that_is_copied_is_there_and_is_not_ignored():
    sources = [source for each in of("COPY") for source in shlex.split(each)[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored


def test_what_the_package_is_built_from_is_copied():
    sources = {source for each in of("COPY") for source in shlex.split(each)[:-1]}
    assert {"pyproject.toml", "setup.py", "README.md", "cogcache", "configs", "docs"} <= sources


def test_it_installs_as_the_readme_says():
    (line,) = [each for each in of("RUN") if each.startswith("pip install")]
    readme = (ROOT / "README.md").read_text()
    assert re.search(rf"^{re.escape(line)}$", readme, re.MULTILINE)


def test_it_does_not_run_as_root_and_runs_the_command():
    names = [instruction for instruction, _ in steps()]
    assert of("USER")
    assert of("USER")[-1] not in ("root", "0")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert of("ENTRYPOINT") == ['["cogcache"]']


def test_its_python_is_one_that_the_package_takes():
    (image,) = of("FROM")
    version = re.fullmatch(r"python:3\.(\d+)-slim", image)
    assert version
    lowest = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert lowest
    assert int(version[1]) >= int(lowest[1])


@pytest.mark.slow
def test_it_builds_and_answers():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("needs docker and its daemon")
    subprocess.run([docker, "build", "-t", "cogcache-test", "."], cwd=ROOT, check=True)
    said = subprocess.run(
        [docker, "run", "--rm", "cogcache-test", "--version"], capture_output=True, text=True
    )
    assert said.stdout.startswith("cogcache, version ")
