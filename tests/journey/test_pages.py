"""The docs are true: command blocks run as they stand, from the wheel, and print what is shown."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
import pytest
from pages import BLOCK, NEEDS, PAGES, ROOT, blocks, not_shown, words_of
from videos import write_video

from cogcache.cli import main

ALL = [block for page in PAGES for block in blocks(page)]
FRESH = {"README.md", "first-captions.md"}
"""Pages that begin without a cache."""
WITH_COMMANDS = sorted({block.page for block in ALL if block.needs is None})
SETS = re.findall(r"^```toml\n(.*?)^```$", PAGES["prompts.md"], re.MULTILINE | re.DOTALL)[-1]
"""What the page of prompts tells to write into a file."""


def test_the_command_is_the_wheels(typed, installed, tmp_path):
    said = typed("python -c 'import cogcache; print(cogcache.__file__)'", tmp_path).stdout
    assert Path(said.strip()).is_relative_to(installed.parent)
    version = typed("cogcache --version", tmp_path)
    assert version.stdout.startswith("cogcache, version ")
    assert version.stderr == ""


def test_the_pages_name_only_commands_that_there_are_in_their_sentences():
    for name, text in PAGES.items():
        for command in set(re.findall(r"`cogcache ([a-z-]+)", text)):
            assert command in main.commands, f"{name}: {command}"


def test_a_fifth_of_the_blocks_at_most_is_marked_as_needing_what_is_not_here():
    marked = [block for block in ALL if block.needs]
    assert {block.needs for block in marked} <= {*NEEDS}
    assert len(marked) <= len(ALL) / 5, [(block.page, block.line) for block in marked]


def test_no_command_stands_in_a_block_that_is_not_tested():
    for name, text in PAGES.items():
        others = [match["body"] for match in BLOCK.finditer(text) if match["language"] != "sh"]
        typed = re.findall(r"^\$? ?(?:cogcache|pip|python) .*", "\n".join(others), re.MULTILINE)
        assert not typed, f"{name}: write ```sh before {typed}"


def test_every_command_of_the_docs_can_be_parsed(tmp_path, monkeypatch):
    """Names of commands and options, choices and numbers of arguments; nothing is run."""
    monkeypatch.chdir(tmp_path)
    lines = {line for block in ALL for line in block.typed() if line.startswith("cogcache ")}
    assert len(lines) >= 80
    wrong = [f"{line}: {fault}" for line in sorted(lines) if (fault := fault_of(line))]
    assert not wrong


def fault_of(line: str) -> str | None:
    """Return what click finds wrong with a command; files that it names need not be there."""
    command, words = main, words_of(line)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if (command := command.commands.get(words[0])) is None:
            return f"no command {words[0]}"
        words = words[1:]
    try:
        command.make_context("cogcache", words)
    except click.exceptions.Exit:
        return None  # of --version
    except click.UsageError as error:
        return None if "does not exist" in error.message else error.message
    return None


@pytest.fixture(scope="session")
def begun(typed, tmp_path_factory):
    """Return what makes a folder with videos, and a captioned cache of twelve; always the same."""
    home = tmp_path_factory.mktemp("home of a reader")
    folder, kept = home / "videos", home / "kept"
    folder.mkdir()
    made = typed("cogcache demo --folder demo --only-clips && mv demo/clips clips && rmdir demo"
                 " && cp -r clips films && cp -r clips my-videos"
                 " && cp clips/clip-00.mp4 holiday.mp4"
                 " && cogcache extract clips films --cache cache --model tiny"
                 " && cogcache caption --cache cache", folder)  # fmt: skip
    assert made.returncode == 0, made.stderr
    write_video(folder / "film.mp4", num_frames=600)
    (folder / "prompts.toml").write_text(SETS)
    shutil.copytree(folder, kept)

    def begin(*left_out: str) -> Path:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, ignore=shutil.ignore_patterns(*left_out))
        return folder

    return begin


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_are_true(typed, begun, page):
    """All of a page in one folder, one block after the other, as a reader would."""
    folder = begun("cache") if page in FRESH else begun()
    for block in blocks(page):
        if block.needs is None:
            done = typed(f"set -e\n{block.stood_in()}", folder)
            said = f"{page}, line {block.line}:\n{block.commands}{done.stdout}{done.stderr}"
            assert done.returncode == 0, said
            assert "Traceback" not in done.stderr, said
            missing = not_shown(block.shown or "", done.stdout + done.stderr)
            assert not missing, f"{said}\nnot printed: {missing}"


def test_the_readme_is_short():
    text = PAGES["README.md"]
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^\|.*$", "", outside, flags=re.MULTILINE)
    assert len(outside.split()) <= 900
    assert len(text.splitlines()) <= 150


def test_every_page_begins_with_what_the_reader_gets():
    for path in (ROOT / "docs").glob("*.md"):
        heading, blank, first, *_ = path.read_text().splitlines()
        assert heading.startswith("# "), path.name
        assert not blank, path.name
        assert re.match(r"(This page|cogcache|`--)", first), f"{path.name}: {first}"
