"""Who may import whom: the rooms of the package, lowest first, and their fronts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cogcache"

TOP = {"errors", "units", "keys"}
# What each room may import besides itself and what stands at the top; a name with a dot is a part.
ROOMS = {
    "settings": set(),
    "system": {"settings"},
    "store": {"settings", "system"},
    "video": {"settings", "system"},
    "catalog": {"settings", "system", "store", "video.file_state"},
    "models": {"settings", "system", "store", "video"},
    "planning": {"settings", "system", "video", "models"},
    "generation": {"settings", "system", "store.format", "models"},
    "review": {"settings", "system", "catalog"},
    "export": {"settings", "system", "store", "video", "catalog"},
    "web": {"settings", "system", "store", "video", "catalog", "review"},
    "quality": {"settings", "system", "store", "catalog", "models", "generation"},
    "training": {"settings", "system", "store", "catalog", "models", "generation"},
    "stages": {
        *("settings", "system", "store", "video", "catalog", "models", "planning", "generation"),
        *("quality", "training", "review"),
    },
}
ROOMS["selftest"] = ROOMS["api"] = {*ROOMS, "export", "web"} - {"selftest", "api"}
ROOMS["cli"] = {*ROOMS} - {"cli"}
# The same inside `stages` and `catalog`: what a part may import of its own room.
STAGES = {
    "runs": set(),
    "clips": {"runs"},
    "distributed": {"runs"},
    "encoding": {"runs", "clips", "distributed"},
    "captioning": {"runs", "clips", "distributed"},
}


def modules() -> dict[str, Path]:
    """Return all modules by name, packages as their `__init__`."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def named_by_front(room: str) -> dict[str, str]:
    """Return the names that a room's front hands on, and the modules that define them."""
    stub = PACKAGE / room / "__init__.pyi"
    names = {}
    for node in ast.parse(stub.read_text()).body if stub.exists() else ():
        if isinstance(node, ast.ImportFrom):
            home = f"{room}.{node.module}" if node.module else room
            names |= {alias.name: home for alias in node.names}
    return names


FRONTS = {room: named_by_front(room) for room in ROOMS}


def imported_names(tree: ast.Module) -> set[str]:
    """Return what a file imports of cogcache, late imports and those for types included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("cogcache.") for name in names if name.startswith("cogcache.")}


def home_of(name: str) -> str:
    """Return the module that an imported name comes from, through a front or not."""
    room, _, rest = name.partition(".")
    if rest in FRONTS.get(room, {}):
        return FRONTS[room][rest]
    return name


def outside(module: str) -> set[str]:
    """Return what a module imports of other rooms."""
    room = module.split(".")[0]
    names = imported_names(ast.parse(modules()[module].read_text()))
    return {name for name in names if name.split(".")[0] not in {room, *TOP}}


IN_ROOMS = [name for name in modules() if "." in name]


def test_nothing_else_lies_at_the_top():
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    files = {"__init__.py", "__init__.pyi", "__main__.py", "errors.py", "units.py", "keys.py"}
    assert found <= {*files, "py.typed", "tiny", *ROOMS}


@pytest.mark.parametrize("module", IN_ROOMS)
def test_imports_point_downwards(module):
    allowed = ROOMS[module.split(".")[0]]
    homes = {home_of(name) for name in outside(module)}
    wrong = {home for home in homes if not any(f"{home}.".startswith(f"{a}.") for a in allowed)}
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("module", IN_ROOMS)
def test_outsiders_import_only_what_a_front_names(module):
    wrong = set()
    for name in outside(module):
        room, _, rest = name.partition(".")
        if room != "cli" and rest.rpartition(".")[2] not in FRONTS[room]:
            wrong.add(name)
    assert not wrong, f"{module}: not named by their rooms' fronts: {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("module", [name for name in IN_ROOMS if name.startswith("stages.")])
def test_inside_the_stages_imports_point_downwards(module):
    part = module.split(".")[1]
    if part not in STAGES:
        return
    names = imported_names(ast.parse(modules()[module].read_text()))
    parts = {name.split(".")[1] for name in names if name.startswith("stages.")}
    assert parts <= {part, *STAGES[part]}


@pytest.mark.parametrize("part", ["search", "upkeep"])
def test_inside_the_catalog_its_own_files_do_not_import_searches_or_upkeep(part):
    for module, path in modules().items():
        if module.startswith("catalog.") and not module.startswith(f"catalog.{part}."):
            names = imported_names(ast.parse(path.read_text()))
            assert not any(name.startswith(f"catalog.{part}.") for name in names), module


def test_the_stages_do_not_import_each_other():
    entries = {"stages.extract", "stages.caption", "stages.convert"}
    for entry in entries:
        names = imported_names(ast.parse(modules()[entry].read_text()))
        assert not {name for name in names if name.rpartition(".")[0] in entries - {entry}}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from cogcache.store import FeatureStore", "store.FeatureStore"),
        ("from cogcache.models.cogvlm2.layout import build", "models.cogvlm2.layout.build"),
        ("import cogcache.store", "store"),
        ("def f():\n    import cogcache.store as s", "store"),
        ("if TYPE_CHECKING:\n    from cogcache.store import Bits", "store.Bits"),
    ],
)
def test_every_way_to_import_is_seen(line, found):
    assert imported_names(ast.parse(line)) == {found}
