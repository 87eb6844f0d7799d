"""What the pages say is typed as it stands, from the wheel, in a folder that is not the source."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-captions.md").read_text()
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of a language; "" for those of none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def lines(text: str, language: str = "sh") -> list[str]:
    """Return the commands of the blocks of a language."""
    found = [line for block in blocks(text, language) for line in block.splitlines()]
    return [line for line in found if line.startswith("cogcache ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("somewhere else")


def test_the_command_is_the_wheels(typed, installed, folder):
    said = typed("python -c 'import cogcache; print(cogcache.__file__)'", folder).stdout
    assert Path(said.strip()).is_relative_to(installed.parent)
    version = typed("cogcache --version", folder)
    assert version.stdout.startswith("cogcache, version ")
    assert version.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_of_first_captions_is_true(typed, folder):
    """All of it in one folder, one line after the other, as a reader would."""
    made = typed("cogcache demo --folder demo --only-clips", folder)
    assert "12 clips in demo/clips" in made.stdout
    said = {}
    for line in lines(PAGE):
        done = typed(line, folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        said[line] = done
    assert len(said) >= 13
    (caption, *_) = (done for line, done in said.items() if " caption --cache" in line)
    assert "caption: 12 captions made, 0 there already" in caption.stdout
    assert "next: cogcache ls --cache cache" in caption.stdout
    assert "moving coloured shapes" not in caption.stderr  # these clips it knows
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert (folder / "film.vtt").read_text().startswith("WEBVTT")
    asked = said["cogcache caption --cache cache --prompt 'color=What color is the shape?'"]
    assert "12 captions made" in asked.stdout
    back = said["cogcache forget --cache cache --undo"]
    assert "12 captions: taken back" in back.stdout


def test_every_line_that_the_page_shows_and_does_not_type_has_options_that_there_are(typed, folder):
    shown_only = [*lines(PAGE, "text"), *lines(PAGE, "")]
    helps: dict[str, str] = {}
    for line in shown_only:
        command, options = line.split()[1], re.findall(r"--[a-z-]+", line)
        if command not in helps:
            helps[command] = typed(f"cogcache {command} --help", folder).stdout
        for option in options:
            assert option in helps[command], line


STAND_INS = {
    "THUDM/cogvlm2-llama3-caption": "tiny",
    "cogvlm2-caption": "tiny",
    "--config short-answers": "--prompt 'shape=What shape is it?'",
}
"""What takes the place of a model that would have to be downloaded."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_readme_are_true(typed, tmp_path):
    typed("cogcache demo --folder demo --only-clips", tmp_path)
    shutil.copytree(tmp_path / "demo" / "clips", tmp_path / "clips")
    shutil.copy(tmp_path / "clips" / "clip-00.mp4", tmp_path / "holiday.mp4")
    found = [line for block in blocks(README, "") for line in block.splitlines()]
    commands = [line for line in found if line.startswith("cogcache ")]
    assert len(commands) >= 5
    for line in commands:
        for name, other in STAND_INS.items():
            line = line.replace(name, other)
        done = typed(line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_readme_and_the_page_name_only_commands_and_options_that_there_are():
    from cogcache.cli import main

    for text in (README, PAGE):
        for command in set(re.findall(r"`cogcache ([a-z-]+)", text)):
            assert command in main.commands, command
