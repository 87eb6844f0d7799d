"""Rules of the house that no other tool holds."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from cogcache.system import CachePaths

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "cogcache").rglob("*.py"))
PROGRAMS = [
    path for name in ("cogcache", "tiny_training", "docs") for path in (ROOT / name).rglob("*.py")
]
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
LIMITS = TOOLS["house"]
MAX_LINES, MIN_LINES = LIMITS["max-module-lines"], LIMITS["min-module-lines"]
SHORTER = {
    "__main__.py": "`python -m cogcache`",
    "cli/doctor.py": "a command has a module",
    "cli/printing.py": "all listings share it, and it imports no tables until there are rows",
    "cli/split.py": "a command has a module",
    "cli/toy.py": "said by both commands that are shown videos",
    "export/wording.py": "what stands around a caption, for every format",
    "generation/stop_texts.py": "needs no torch: settings of both ways to decode share it",
    "models/cogvlm2/weight_names.py": "importing it registers the names with transformers",
    "models/derived/internvl.py": "a family that differs from the rule has a module",
    "models/derived/video_llama_3.py": "a family that differs from the rule has a module",
    "settings/toml_files.py": "read by settings and by prompts, which import each other one way",
    "stages/encoding/stage_one.py": "this process and workers share it; neither imports the other",
    "stages/runs/failures.py": "the clips' search and the writer share it",
    "system/host.py": "claims and temporary names both begin with it",
    "system/hub.py": "the one place that asks the hub",
    "system/package_files.py": "settings and pages that come with the package",
    "video/last_read.py": "the index and the reading keep one file each by it",
}
"""Modules of fewer than `MIN_LINES` lines, fronts aside, and why they are no part of another."""
MAX_FUNCTION_LINES, MAX_CLASS_LINES = LIMITS["max-function-lines"], LIMITS["max-class-lines"]
MAX_PARAMETERS = TOOLS["ruff"]["lint"]["pylint"]["max-args"]
LONGER = {
    "models/family.py Family": "the contract of all families: half of it is docstrings",
    "store/store.py FeatureStore": "an entry a thing one can do with features; 130 are docstrings",
    "models/cogvlm2/family.py CogVLM2Family": "implements every method of Family",
    "models/derived/family.py DerivedFamily": "implements every method of Family",
    "models/cogvlm2/modeling.py forward": "the parameters that transformers calls it with",
}
"""Functions and classes beyond these bounds, docstrings counted, and why."""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def calls_of(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


def text_files() -> list[Path]:
    """Return the files of the project, wherever git or a package has put them."""
    folders = [".ci", "cogcache", "configs", "docs", "tests", "tiny_training"]
    paths = [*ROOT.iterdir(), *(path for name in folders for path in (ROOT / name).rglob("*"))]
    # In a further worktree of git's `.git` is a file that says where the repository lies.
    files = [path for path in paths if path.is_file() and path.name != ".git"]
    return [path for path in files if b"\0" not in path.read_bytes()]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_a_reader_can_hold(path):
    num_lines = path.read_text().count("\n")
    assert num_lines <= MAX_LINES


def test_a_short_module_has_a_reason():
    lengths = {
        path.relative_to(ROOT / "cogcache").as_posix(): path.read_text().count("\n")
        for path in MODULES
        if path.name != "__init__.py"
    }
    assert {name for name, length in lengths.items() if length < MIN_LINES} == {*SHORTER}


def beyond_bounds(path: Path) -> set[str]:
    """Return the functions and classes of a module that are longer than they may be."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef) and _num_lines(node) > MAX_CLASS_LINES:
            found.add(node.name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names += [each.arg for each in (given.vararg, given.kwarg) if each]
            num_parameters = len(names) - (names[:1] in (["self"], ["cls"]))
            if _num_lines(node) > MAX_FUNCTION_LINES or num_parameters > MAX_PARAMETERS:
                found.add(node.name)
    return {f"{path.relative_to(ROOT / 'cogcache').as_posix()} {name}" for name in found}


def _num_lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return int(node.end_lineno or 0) - node.lineno + 1


def test_functions_classes_and_parameter_lists_are_short_or_have_a_reason():
    assert {each for path in MODULES for each in beyond_bounds(path)} == {*LONGER}


def test_contributors_read_the_limits_that_are_held():
    said = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    assert (MAX_LINES, MAX_PARAMETERS, LIMITS["max-suite-minutes"]) == (400, 7, 20)
    assert f"at most {MAX_LINES} lines, a class {MAX_CLASS_LINES}, a function" in said
    assert f"function {MAX_FUNCTION_LINES} and seven parameters" in said
    assert f"`make test` stays under {LIMITS['max-suite-minutes']} minutes" in said


def test_no_remote_code():
    for path in PROGRAMS:
        words = [word.arg for call in calls_of(path) for word in call.keywords]
        assert "trust_remote_code" not in words, path


def test_no_pickles():
    for path in PROGRAMS:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                assert not {"pickle", "dill", "joblib"} & {each.name for each in node.names}, path
            elif isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in {"torch.load", "np.load", "numpy.load"}, path


def test_only_the_command_line_prints():
    for path in MODULES:
        names = {ast.unparse(call.func) for call in calls_of(path)}
        if path.parent.name != "cli":
            assert not {"print", "click.echo"} & names, path


def test_importing_does_not_configure_logging():
    for path in MODULES:
        names = {ast.unparse(call.func) for call in calls_of(path)}
        if path.parent.name != "cli":
            assert not {"logging.basicConfig", "warnings.simplefilter"} & names, path


def test_no_file_names_a_folder_of_one_machine():
    folders = re.compile(r"(?<![\w.}/])/(work|root|farm|home/\w+|Users/\w+)/\w")
    for path in text_files():
        match = folders.search(path.read_text())
        assert not match, f"{path.relative_to(ROOT)}: {match}"


def test_one_class_writes_where_the_files_of_a_cache_lie():
    known = [getattr(CachePaths(Path()), name) for name in vars(CachePaths) if name[0] != "_"]
    names = {path.name for path in known if path.name}
    assert {"cogcache.toml", "catalog.sqlite", "features", "claims"} <= names
    for path in MODULES:
        joined = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.BinOp)]
        written = {each.right.value for each in joined if isinstance(each.right, ast.Constant)}
        name = path.relative_to(ROOT / "cogcache").as_posix()
        # A folder of prefixes lies outside of the cache and has a quarantine of its own.
        allowed = {"quarantine"} if name == "generation/prefix_files.py" else set()
        if name != "system/cache_paths.py":
            assert not written & names - allowed, name
