"""What the docs name is there, and what is there is named by the docs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cogcache.cli import main
from cogcache.settings.settings import TABLES, leaves
from cogcache.system.distribution import EXTRAS

ROOT = Path(__file__).parents[2]
SHOWN = sorted(name for name, command in main.commands.items() if not command.hidden)
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}


@pytest.mark.parametrize("name", SHOWN)
def test_every_command_is_in_the_readme_and_has_help(name):
    assert f"`{name}`" in README
    assert main.commands[name].help


@pytest.mark.parametrize("name", SHOWN)
def test_every_option_has_help(name):
    for option in main.commands[name].params:
        assert option.param_type_name == "argument" or option.help, option.name


@pytest.mark.parametrize("page", ["settings", "families"])
def test_the_tables_are_those_of_the_code(page):
    command = [sys.executable, f"docs/write_{page}.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("leaf", leaves(*TABLES), ids=lambda leaf: leaf.name)
def test_every_setting_is_in_the_docs_with_its_option(leaf):
    assert f"| `{leaf.name}` | `{leaf.option}" in DOCS["settings.md"]


def test_the_table_of_extras_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", DOCS["first-captions.md"], re.MULTILINE)
    assert dict(rows) == EXTRAS


def test_the_messages_that_the_page_of_questions_explains_are_those_of_the_code():
    source = "\n".join(path.read_text() for path in (ROOT / "cogcache").rglob("*.py"))
    messages = re.findall(r"^\| `(.+?)` \|", DOCS["faq.md"], re.MULTILINE)
    assert len(messages) >= 8
    for message in messages:
        for part in filter(None, (part.strip(" ,") for part in re.split(r"…|\d+", message))):
            words = (rf"(?:{re.escape(word)}|\{{[^}}]*\}})" for word in part.split())
            assert re.search(" ".join(words), source), message


def test_the_names_in_the_file_tree_exist():
    tree = re.search(r"```text\n(cogcache/ .*?)```", DOCS["contributors.md"], re.DOTALL)[1]
    folders: list[str] = []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        folders[len(indent) // 2 :] = [name]
        assert ROOT.joinpath(*folders).exists(), "/".join(folders)


def test_links_between_the_docs_lead_somewhere():
    for name, text in DOCS.items():
        folder = ROOT if (ROOT / name).exists() else ROOT / "docs"
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (folder / link).exists(), f"{name}: {link}"


def test_make_targets_in_the_docs_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in DOCS.items():
        assert set(re.findall(r"`make ([a-z]+)", text)) <= targets, name


def test_the_changelog_has_the_version_and_room_for_the_next():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.*?)\]", DOCS["CHANGELOG.md"], re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]


def test_ci_runs_the_test_command_of_the_readme():
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in README


def test_the_files_of_an_open_project_can_be_read():
    yaml = pytest.importorskip("yaml")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in forms:
        assert {"name", "description", "body"} <= {*yaml.safe_load(form.read_text())}, form.name
    steps = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]
    assert {"run": "bash .ci/run"} in steps["steps"]


def test_every_page_of_the_docs_is_in_the_site():
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"- {page.relative_to(ROOT / 'docs')}\n" in listed, page.name
