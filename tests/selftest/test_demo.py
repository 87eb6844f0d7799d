"""The demonstration: both stages on clips whose true captions are known."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from scenes import catalog_of

from cogcache.cli import main
from cogcache.cli.demo import what_next
from cogcache.selftest.demonstration import ASKED, MIN_SHARE, NUM_CLIPS, Answer, Demonstration
from cogcache.system import package_files


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder of a demonstration, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    named = folder / ".." / folder.name  # a newcomer's `--folder ../demo`
    return folder, CliRunner().invoke(main, ["demo", "--folder", str(named)])


def test_the_demonstration_passes(shown):
    _, result = shown
    assert result.exit_code == 0, result.output


def test_a_dozen_clips_are_captioned_with_every_question(shown):
    folder, _ = shown
    assert len(list((folder / "clips").glob("*.mp4"))) == NUM_CLIPS == 12
    with catalog_of(folder / "cache") as catalog:
        rows = catalog.captions.rows()
    assert len(rows) == NUM_CLIPS * len(ASKED)
    assert {row["prompt_name"] for row in rows} == set(ASKED)


def test_what_was_said_stands_beside_the_truth_with_memory_and_time(shown):
    _, result = shown
    assert "clip-11.mp4" in result.output
    assert "the same" in result.output
    for process in ("vision half", "language half", "whole model"):
        assert process in result.output
    assert "MiB" in result.output
    assert "wait_for_frames" in result.output


def answers(num_wrong: int) -> tuple[Answer, ...]:
    right = [Answer(f"{n}.mp4", asked, "Red.", "Red.") for n in range(12) for asked in ASKED]
    return tuple(
        replace(answer, said="Blue.") if n < num_wrong * len(ASKED) else answer
        for n, answer in enumerate(right)
    )


@pytest.mark.parametrize(("num_wrong", "passed"), [(0, True), (3, True), (4, False)])
def test_it_passes_only_where_each_question_is_answered_well_enough(num_wrong, passed):
    demonstration = Demonstration(answers(num_wrong), (), {})
    assert demonstration.passed is passed
    assert demonstration.shares()["color"] == pytest.approx(1 - num_wrong / 12)
    assert MIN_SHARE == 0.75


def test_one_question_that_is_answered_badly_is_enough_to_fail():
    bad = [replace(a, said="?") if a.question == "speed" else a for a in answers(0)]
    assert not Demonstration(tuple(bad), (), {}).passed


@pytest.mark.parametrize(
    ("typed", "on_path", "first"),
    [
        (".venv/bin/cogcache", None, ".venv/bin/cogcache"),
        (".venv/bin/cogcache", "/usr/bin/cogcache", "cogcache"),
        ("/somewhere/cogcache/__main__.py", None, "cogcache"),
    ],
)
def test_it_ends_with_three_commands_that_can_be_typed_as_they_stand(
    monkeypatch, typed, on_path, first
):
    monkeypatch.setattr(sys, "argv", [typed])
    monkeypatch.setattr("shutil.which", lambda _: on_path)
    _, *lines = what_next().splitlines()
    assert len(lines) == 3
    for line in lines:
        name, command, *words = line.strip().partition("   ")[0].split()
        assert name == first
        options = {each for param in main.commands[command].params for each in param.opts}
        assert {word for word in words if word.startswith("--")} <= options
        if "--config" in words:
            assert words[words.index("--config") + 1] in package_files("configs")
