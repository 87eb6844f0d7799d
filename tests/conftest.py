from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# These have to stand before torch and huggingface_hub are imported; programs that tests start
# inherit them. Test processes run side by side: each takes one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach for the net; those of downloads serve a hub of their own on loopback.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Most tests are about the model in the package; those of how a model is named take this away.
os.environ.setdefault("COGCACHE_MODEL", "tiny")

# Whoever runs the tests in the background may have these ignored, and what they start inherits it.
for _ending in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_ending) is signal.SIG_IGN:
        signal.signal(_ending, signal.SIG_DFL)


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a text into a TOML file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "my.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def products_as_torch_takes_them() -> Iterator[None]:
    """Have products in bf16 taken by torch's own kernels, as a whole model's are.

    Where the processor multiplies no bf16 both stages take them in float32: other arithmetic than
    that of the model they are compared with. What this changes has tests of its own.
    """
    from cogcache.system import Processor

    multiplies = Processor("made up", "x86_64", "AVX512", avx512_bf16=True, amx=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cogcache.models.halves.raised.processor", lambda: multiplies)
        yield


_SET_UP: list[Path] = []
"""The file whose tests run."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep what is there before a file's first test out of the garbage collector's rounds.

    That is modules, classes and the tests themselves: millions of objects that live until the end.
    Each half that is loaded collects garbage once, which went through all of them: half of what
    the contract of families took. What the file's own tests make is collected as ever.
    """
    if [item.path] != _SET_UP:
        gc.collect()
        gc.freeze()
        _SET_UP[:] = [item.path]


def _judge_of(family: str) -> str:
    """Say what judges a family's ids, positions and pixels; the contract is about the two stages.

    That is its own release, by a golden; today's transformers only for lack of one.
    """
    from importlib.metadata import version

    from cogcache.models.releases import RELEASES

    release, today = RELEASES.get(family), version("transformers")
    if release is not None and (release.golden or release.transformers == today):
        return release.transformers
    return f"{today}, for lack of a golden"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the contract of families found: a line a family, a column a claim."""
    found: dict[str, dict[str, set[str]]] = {}
    notes: dict[str, str] = {}
    for outcome, mark in (("failed", "FAIL"), ("passed", "ok"), ("skipped", "-")):
        for report in terminalreporter.stats.get(outcome, ()):
            told = dict(getattr(report, "user_properties", ()))
            if "claim" in told:
                found.setdefault(told["family"], {}).setdefault(told["claim"], set()).add(mark)
                notes |= {told["family"]: told["note"]} if "note" in told else {}
    if not found:
        return
    claims = list(dict.fromkeys(claim for family in found.values() for claim in family))
    rows = [["family", *claims, "in 4 bits", "judge of what goes in"]]
    for family, outcomes in sorted(found.items()):
        marks = [
            next((m for m in ("FAIL", "ok", "-") if m in outcomes.get(c, ())), "") for c in claims
        ]
        rows.append([family, *marks, notes.get(family, ""), _judge_of(family)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section("families and what was shown of them")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
