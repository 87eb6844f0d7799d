from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cogcache

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "transformers", "h5py", "bitsandbytes", "decord", "av", "numpy"}


def python(code: str) -> str:
    """Return what ``code`` prints in a fresh process; a warning there is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loaded_by(code: str) -> set[str]:
    return set(python(f"import sys\n{code}\nprint(*sys.modules)").split())


def test_public_names_are_sorted_and_complete():
    assert cogcache.__all__ == sorted(cogcache.__all__)
    stub = (ROOT / "cogcache" / "__init__.pyi").read_text()
    assert set(cogcache.__all__) == {*re.findall(r" as (\w+)\n", stub), "__version__"}


def test_public_names_are_listed_by_dir():
    assert set(cogcache.__all__) <= set(dir(cogcache))


@pytest.mark.parametrize("name", sorted({*cogcache.__all__} - {"__version__"}))
def test_a_public_name_resolves_to_what_its_module_defines(name):
    value = getattr(cogcache, name)
    assert value.__module__.startswith("cogcache.")
    assert inspect.isclass(value) or inspect.isfunction(value)
    assert inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="cogcache attribute extrakt"):
        cogcache.extrakt  # noqa: B018


def test_importing_a_stage_leaves_its_name_the_function():
    code = "import cogcache.stages.extract, cogcache.stages.caption as c; import cogcache; "
    code += "from cogcache import extract; from cogcache.stages import caption; "
    assert (
        python(code + "print(callable(extract), callable(cogcache.caption), callable(caption))")
        == "True True True\n"
    )


def test_importing_cogcache_loads_next_to_nothing():
    assert not {"pydantic", "click", *HEAVY} & loaded_by("import cogcache")


def test_help_loads_nothing_heavy():
    # click ends the process when the help is printed.
    run = "runpy.run_module('cogcache', run_name='__main__')"
    code = f"import runpy\nsys.argv = ['', '--help']\ntry: {run}\nexcept SystemExit: pass"
    loaded = loaded_by(code)
    assert "cogcache.cli" in loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize(
    "module",
    [
        "settings.settings",
        "cli.options",
        "settings.prompts",
        "store.store",
        "catalog.catalog",
        "video.reading",
    ],
)
def test_modules_that_resuming_needs_do_not_load_torch(module):
    assert not {"torch", "transformers", "bitsandbytes"} & loaded_by(f"import cogcache.{module}")


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cogcache.__version__ == project["version"]
