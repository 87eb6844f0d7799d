"""Imports only point downwards; modules of one layer do not import one another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cogcache"

# Lowest first. Digits before the point are the layers of the design; those after it order the
# parts of one subject. A folder below models/ counts as one module.
LAYERS = {
    0.0: {"endings", "errors", "stopping"},
    0.05: {"main_memory", "scratch"},
    0.1: {
        "devices",
        "kept",
        "likeness",
        "machine",
        "machine_faults",
        "totals",
        "units",
        "urls",
    },
    0.2: {"catalog_version", "own_process", "remote", "worker_limits"},
    1.0: {
        "canonical",
        "headers",
        "hub",
        "inputs",
        "memory",
        "migrations",
        "sampling",
        "schemas",
        "sealing",
        "shards",
        "settings_base",
        "settings_errors",
        "templates",
        "toml_file",
        "worker_process",
    },
    1.05: {"settings_clips", "cache_mark", "settings_machines", "spool"},
    1.1: {"catalog_rows", "config", "database", "feature_format", "keys", "live", "shapes"},
    1.15: {"split_manifest", "tensor_files"},
    1.2: {"checkpoint", "claims", "feature_file", "feature_reader", "file_memory", "prompts"},
    1.3: {"catalog", "store"},
    1.25: {"catalog_merge", "feature_files"},
    1.4: {"browse", "filling", "local_catalog", "recovery", "repacking"},
    1.5: {"figures", "upkeep"},
    1.6: {"merging", "rebuild"},
    1.9: {"inbox"},
    2.0: {"container", "h264", "quantization", "worker"},
    2.05: {"crew", "weight_errors"},
    2.06: {"crew_processes", "crew_ray"},
    2.1: {"frame_index", "prequantized", "verification", "workers"},
    2.2: {"decord_reader", "pyav_reader"},
    2.3: {"video"},
    2.4: {"scenes"},
    3.0: {"models.family"},
    3.1: {"models.cogvlm2"},
    3.2: {"models.partition", "models.registry"},
    3.25: {"models.head", "models.sizes", "models.waiting"},
    3.27: {"models.offload"},
    3.3: {"models.compiled", "models.derived", "models.halves"},
    3.4: {"models.identity", "models.projection"},
    3.9: {"cutting", "structured", "timeline"},
    3.95: {"clipspans"},
    3.97: {"clipchoice"},
    4.0: {
        "captionlist",
        "choosing",
        "digesting",
        "generation",
        "forcing",
        "guards",
        "kvcache",
        "preparation",
        "runs",
    },
    4.01: {"batches", "made"},
    4.02: {"keptprefixes"},
    4.04: {"prefixes"},
    4.05: {"decoding", "readahead", "summaries", "telling", "worklist"},
    4.1: {"caption_sharing", "following", "plan", "progress", "sharing"},
    4.15: {"budget"},
    4.18: {"loading", "planning"},
    4.19: {"captioning", "encoding", "reuse"},
    4.195: {"featuremaking", "place"},
    4.196: {"extraction", "writing"},
    4.197: {"caption_role", "clip_roles", "foundclips"},
    4.198: {"crewing", "searching"},
    4.199: {"finding"},
    4.2: {"caption", "conversion", "extract", "precision_check", "splitting", "stages", "whole"},
    4.9: {"caption_import", "queries", "selection"},
    5.0: {
        "comparison",
        "demo",
        "doctor",
        "embedding",
        "export",
        "modelinfo",
        "options",
        "search",
        "tables",
    },
    5.05: {"semantic"},
    5.1: {"report", "web"},
    5.2: {"gallery"},
    6.0: {"cli"},
    6.1: {"__main__"},
}
LEVEL = {module: level for level, modules in LAYERS.items() for module in modules}
# Names resolved when used: the one place that points upwards.
FREE = {"__init__", "models"}


def module_of(name: str) -> str:
    """Return the unit of LAYERS that ``cogcache.<name>`` is part of."""
    return ".".join(name.split(".")[: 2 if name.startswith("models.") else 1])


def modules() -> dict[str, list[Path]]:
    """Return the files of each unit."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found.setdefault(module_of(name), []).append(path)
    return found


def imported_names(tree: ast.Module) -> set[str]:
    """Return what a file imports of cogcache, late imports and those for types included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("cogcache.") for name in names if name.startswith("cogcache.")}


def imports_of(unit: str) -> set[str]:
    names = set()
    for path in modules()[unit]:
        names |= imported_names(ast.parse(path.read_text()))
    return {module_of(name) for name in names} - {unit}


def test_every_module_has_a_layer():
    assert set(modules()) - FREE == set(LEVEL)


@pytest.mark.parametrize("unit", sorted(set(modules()) - FREE))
def test_imports_point_downwards(unit):
    upwards = {name for name in imports_of(unit) if LEVEL.get(name, 9.0) >= LEVEL[unit]}
    assert not upwards, f"{unit} must not import {', '.join(sorted(upwards))}"


def test_the_stages_do_not_import_each_other():
    assert LEVEL["extract"] == LEVEL["caption"]


def test_the_package_of_models_imports_nothing():
    assert imports_of("models") == set()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from cogcache.store import FeatureStore", "store"),
        ("from cogcache.models.cogvlm2.layout import build", "models.cogvlm2"),
        ("from cogcache.models import halves", "models.halves"),
        ("from cogcache import store", "store"),
        ("import cogcache.store", "store"),
        ("def f():\n    import cogcache.store as s", "store"),
        ("if TYPE_CHECKING:\n    from cogcache.store import FeatureStore", "store"),
    ],
)
def test_every_way_to_import_is_seen(line, found):
    assert {module_of(name) for name in imported_names(ast.parse(line))} == {found}
