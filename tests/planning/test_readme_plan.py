"""The table of memory in the README is what the command above it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from checkpoints import write_published_headers
from click.testing import CliRunner

from cogcache.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text()
MODEL = "THUDM/cogvlm2-llama3-caption"


@pytest.mark.skipif(
    torch.cuda.is_available() or "AVX512" not in torch.backends.cpu.get_cpu_capability(),
    reason="the table is of a machine without a GPU whose processor multiplies bf16",
)
def test_the_readmes_table_of_memory_is_what_the_command_above_it_prints(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    (command,) = re.findall(r"`cogcache (plan --config cogvlm2-caption)`", README)
    folder = write_published_headers(tmp_path / "model")  # it has the headers, and no weight
    done = CliRunner().invoke(main, [*command.split(), "--model", str(folder)])
    assert done.exit_code == 0, done.output
    printed = [line.rstrip() for line in done.output.replace(str(folder), MODEL).splitlines()]
    block = re.search(rf"```text\n({MODEL}: the whole.*?)```", README, re.DOTALL)
    assert block
    shown = block[1].splitlines()
    assert [line for line in shown if line not in printed] == []
    start = printed.index(next(line for line in printed if line.startswith("memory ")))
    table = [line for line in printed[start:] if line and not line.startswith("free here")]
    table = table[: next((n for n, line in enumerate(table) if line.startswith("of ")), len(table))]
    assert shown[-len(table) :] == table


def test_four_and_six_gib_are_not_refused(tmp_path):
    folder = write_published_headers(tmp_path / "model")
    for memory in ("4GiB", "6GiB"):
        done = CliRunner().invoke(
            main, ["plan", "--config", "cogvlm2-caption", "--model", str(folder),
                   "--memory", memory]
        )  # fmt: skip
        assert done.exit_code == 0
        assert "does not fit" not in done.output
