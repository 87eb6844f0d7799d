"""Help that a newcomer finds their way in."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete, get_completion_class
from click.testing import CliRunner

from cogcache.cli import main
from cogcache.cli.help import COMMANDS, EXAMPLES, OLD_SPELLINGS

ROOT = Path(__file__).parents[2]
SHOWN = sorted(name for name, command in main.commands.items() if not command.hidden)


def help_of(*command: str) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, [*command, "-h"])
    assert result.exit_code == 0
    return result.output


def test_commands_stand_in_sections_with_whole_summaries():
    text = help_of()
    assert [title for title in COMMANDS if f"\n{title}:\n" in text] == [*COMMANDS]
    assert "..." not in text.partition("Make:")[2]
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in SHOWN)


def test_options_stand_under_what_they_set():
    text = help_of("run")
    titles = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert len(titles) > 8
    assert "Which frames [sampling]" in titles


@pytest.mark.parametrize("name", SHOWN)
def test_help_fits_a_terminal_and_shows_no_old_spelling(name):
    text = help_of(name)
    assert max(map(len, text.splitlines())) <= 80
    assert not {*re.findall(r"(--[a-z-]+)\b", text)} & (OLD_SPELLINGS - {"--features"})


def test_every_default_is_shown_0_too():
    text = " ".join(help_of("run").split())
    assert "[default: 0]" in text
    assert "[default: 24]" in text
    assert "0 takes a video whole, or a scene [default: 0]" in text


def test_options_that_stage_two_ignores_are_hidden_and_still_taken():
    assert "--decode-timeout-s" not in help_of("caption")
    assert "--decode-timeout-s" in help_of("extract")
    options = [each for param in main.commands["caption"].params for each in param.opts]
    assert "--decode-timeout-s" in options


def test_include_rejected_is_shown_where_it_changes_something_and_taken_elsewhere():
    shown = {name for name in SHOWN if "--include-rejected" in help_of(name)}
    assert shown == {"export", "gallery", "train", "distill"}
    assert "--include-rejected" in [each for p in main.commands["ls"].params for each in p.opts]


@pytest.mark.parametrize(("command", "old"), [("gallery", "--force"), ("run", "--features")])
def test_old_spellings_still_work(command, old):
    assert old in [each for param in main.commands[command].params for each in param.opts]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_name_commands_and_options_that_there_are(name):
    _, command, *_ = EXAMPLES[name].split()
    known = {each for param in main.commands[command].params for each in param.opts}
    assert {*re.findall(r"--[a-z-]+", EXAMPLES[name])} <= known


def test_help_loads_nothing_heavy():
    code = "import sys\nfrom cogcache.cli import main\ntry: main(['run', '-h'])\nfinally:\n"
    code += " assert not {'torch', 'h5py', 'sqlite3'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_each_command_with_the_first_sentence_of_its_own_help():
    listed = {name: said for said_of in COMMANDS.values() for name, said in said_of.items()}
    shown = {name: each for name, each in main.commands.items() if not each.hidden}
    assert listed == {name: each.get_short_help_str(limit=500) for name, each in shown.items()}


@pytest.mark.parametrize(
    ("words", "begun", "offered"),
    [
        ([], "ex", {"export", "extract"}),
        (["extract"], "--max-f", {"--max-frames"}),
        (["extract", "--config"], "cogvlm2-c", {"cogvlm2-caption"}),
        (["configs"], "ti", {"tiny"}),
        (["help"], "long", {"long-videos"}),
        ([], "sta", {"status"}),  # `stage` is hidden
    ],
)
def test_a_shell_completes_commands_options_and_names(words, begun, offered):
    complete = ShellComplete(main, {}, "cogcache", "_COGCACHE_COMPLETE")
    assert {item.value for item in complete.get_completions(words, begun)} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_docs_say_how_a_shell_learns_it(shell):
    page = (ROOT / "docs" / "first-captions.md").read_text()
    assert f"_COGCACHE_COMPLETE={shell}_source cogcache" in page
    assert get_completion_class(shell) is not None
