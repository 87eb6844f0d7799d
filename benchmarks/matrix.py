"""Tests the families' reference outputs on other releases of transformers, newer and older.

    python -m benchmarks.matrix                              # everything that `make matrix` does
    python -m benchmarks.matrix --releases 5.22.2 5.24.0     # these alone; other entries stay

Each release gets a virtual environment with itself, and the tokenizers and huggingface_hub that it
wants; all else is taken from the environment that runs this program. Older minor versions follow
each other down to the first that fails. The result goes into benchmarks/matrix.json; a test says
what of it belongs into `PASSED` (cogcache/models/releases.py) and the bounds of pyproject.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
RESULT: Final = ROOT / "benchmarks" / "matrix.json"
TESTS: Final = ("tests/models/test_published.py", "tests/models/test_cogvlm2.py")
"""What a release has to pass: the goldens of families, and those of the flagship."""
LOCAL: Final = ("transformers", "tokenizers", "huggingface_hub")
"""What an environment has of its own."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of the tests on one release."""

    transformers: str
    tokenizers: str
    huggingface_hub: str
    passed: int
    failed: int
    failing: list[str]
    seconds: float


def numbers(release: str) -> tuple[int, ...]:
    """Return a version as numbers, to sort by."""
    return tuple(int(each) for each in release.split("."))


def newest_patches() -> list[str]:
    """Ask the package index for the newest patch of each minor version; the newest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = re.search(r"Available versions: (.*)", told)
    assert listed is not None, told
    patches: dict[tuple[int, ...], str] = {}
    for release in sorted(listed[1].split(", "), key=numbers):
        patches[numbers(release)[:2]] = release
    return sorted(patches.values(), key=numbers, reverse=True)


def make_environment(folder: Path, release: str) -> Path:
    """Make an environment with a release of transformers; return its Python."""
    if not (folder / "pyvenv.cfg").exists():
        venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    [site] = folder.glob("lib/python*/site-packages")
    # Its own packages come first; files of this kind in the folders that they name are not read.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "zz_base.pth").write_text("\n".join([str(ROOT), *others]) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    wanted = f"transformers=={release}"
    subprocess.run([*pip, "--disable-pip-version-check", wanted], check=True)
    return python


def versions_in(python: Path) -> dict[str, str]:
    """Return the versions of what an environment has of its own."""
    code = (
        f"import json, importlib.metadata as m; print(json.dumps([m.version(n) for n in {LOCAL}]))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(LOCAL, json.loads(done.stdout), strict=True))


def try_release(release: str, python: Path, tests: Sequence[str]) -> Tried:
    """Run the tests on one release."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
        command += ["-m", "not slow and not gpu", f"--junitxml={report}", *tests]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=sys.stderr)
        found = versions_in(python)
        assert found["transformers"] == release
        if not report.exists():
            return Tried(**found, passed=0, failed=1, failing=["pytest itself"], seconds=0.0)
        return read_report(report, found)


def read_report(report: Path, versions: dict[str, str]) -> Tried:
    """Count what pytest wrote down."""
    cases = list(ET.parse(report).iter("testcase"))
    bad = [each for each in cases if {"failure", "error"} & {part.tag for part in each}]
    skipped = [each for each in cases if "skipped" in {part.tag for part in each}]
    return Tried(
        **versions,
        passed=len(cases) - len(bad) - len(skipped),
        failed=len(bad) or int(not cases),
        failing=[_short(str(each.get("name"))) for each in bad],
        seconds=round(sum(float(each.get("time", 0)) for each in cases), 1),
    )


def _short(name: str) -> str:
    """Return a test's name; of one test for many families, the family."""
    match = re.fullmatch(r"test_pixels_ids_\w+\[(\w+)\]", name)
    return match[1] if match else name


def downwards(pinned: str) -> Iterator[str]:
    """Yield the pinned release, the newest, and the older ones, as long as they are asked for."""
    patches = newest_patches()
    yield pinned
    yield from (each for each in patches[:1] if numbers(each) > numbers(pinned))
    yield from (each for each in patches if numbers(each)[:2] < numbers(pinned)[:2])


def table(rows: Sequence[Tried]) -> str:
    """Return the table that is printed."""
    head = f"{'transformers':14}{'tokenizers':12}{'hub':8}{'passed':>7}{'failed':>7}  failing"
    lines = [
        f"{each.transformers:14}{each.tokenizers:12}{each.huggingface_hub:8}{each.passed:7}"
        f"{each.failed:7}  {', '.join(each.failing[:3])}{' …' if len(each.failing) > 3 else ''}"
        for each in rows
    ]
    return "\n".join([head, *lines])


def write(rows: Sequence[Tried]) -> None:
    """Enter what was tried; what was found of other releases stays."""
    before = json.loads(RESULT.read_text()) if RESULT.exists() else []
    found = {each["transformers"]: each for each in before}
    found |= {each.transformers: asdict(each) for each in rows}
    ordered = sorted(found.values(), key=lambda each: numbers(each["transformers"]))
    RESULT.write_text(json.dumps(ordered, indent=1) + "\n")


def main() -> None:
    """Try releases until an older one fails, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", nargs="+", help="these, in place of all")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what each has to pass")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venvs", metavar="DIR")
    asked = parser.parse_args()
    pinned, rows = version("transformers"), []
    for release in asked.releases or downwards(pinned):
        python = make_environment(asked.environments / f"transformers-{release}", release)
        rows.append(try_release(release, python, asked.tests))
        write(rows)
        if not asked.releases and rows[-1].failed and numbers(release) < numbers(pinned):
            break
    print(table(rows))


if __name__ == "__main__":
    main()
