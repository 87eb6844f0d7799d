from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import test_contract_ten
import test_contract_wide
import zoo
from click.testing import CliRunner
from contracts import ModelFamilyTests

from cogcache.cli import main
from cogcache.models import describe
from cogcache.models.registry import FAMILIES, get_family

ROOT = Path(__file__).parents[2]
ENTRIES = {entry.name: entry for entry in FAMILIES}
ANIMALS = {
    test.animal.name: test.animal
    for module in (test_contract_ten, test_contract_wide)
    for test in vars(module).values()
    if isinstance(test, type) and issubclass(test, ModelFamilyTests) and hasattr(test, "animal")
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return zoo.QWEN2_5_VL.write(tmp_path_factory.mktemp("qwen2_5_vl"))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["models", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_is_listed_as_under_the_contract_is_under_it():
    listed = {name: entry.architectures for name, entry in ENTRIES.items() if name != "cogvlm2"}
    assert listed == {name: (animal.model,) for name, animal in ANIMALS.items()}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_familys_class_is_where_its_entry_says(name):
    assert get_family(name).__name__.endswith("Family")


@pytest.mark.parametrize("name", ENTRIES)
def test_a_family_is_in_the_docs(name):
    assert f"| `{name}` |" in (ROOT / "docs" / "families.md").read_text()


def test_configs_of_families_are_those_of_their_recipes():
    command = [sys.executable, "docs/write_configs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ten_families_and_cogvlm2_have_a_config():
    models = {tomllib.loads(p.read_text())["model"] for p in (ROOT / "configs").glob("*.toml")}
    first_eleven = list(ENTRIES.values())[:11]
    assert all(models & {*entry.models} for entry in first_eleven)
    known = {model for entry in FAMILIES for model in entry.models}
    assert models <= known


def test_the_list_says_what_was_shown_and_how_large_the_halves_are():
    rows = json.loads(run("--json"))
    assert [row["family"] for row in rows] == [*ENTRIES]
    cogvlm2 = rows[0]
    assert (cogvlm2["vision_bytes"], cogvlm2["language_bytes"]) == (8_954_538_496, 16_060_522_496)
    assert all(row["tested"] for row in rows)


def test_the_list_is_a_table_for_readers():
    text = run()
    assert re.search(r"cogvlm2\b.*?8\.34 GiB", text, re.DOTALL)
    assert "qwen3_vl_moe" in text


def test_a_checkpoint_is_described(qwen):
    text = run(str(qwen), "--frames", "8", "--size", "48x32")
    assert "qwen2_5_vl (Qwen2_5_VLForConditionalGeneration)" in text
    assert "contract" in text
    assert re.search(r"features +bfloat16 \[24, 64\]", text)
    assert "extra.second_per_grid_ts" in text


def test_half_sizes_are_those_of_the_checkpoint(qwen):
    found = describe.describe(str(qwen), num_frames=2, size=(32, 48))
    stored = (qwen / "model.safetensors").stat().st_size
    both = 2 * (found.vision_bytes + found.language_bytes)  # it is stored in float32
    assert both == pytest.approx(stored, rel=0.05)


def test_no_weights_are_needed_to_describe(qwen, tmp_path):
    for path in qwen.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    found = describe.describe(str(tmp_path), num_frames=2, size=(32, 48))
    assert found.vision_parameters > 0


def test_an_architecture_that_nobody_tested_is_called_so(qwen, tmp_path, monkeypatch):
    monkeypatch.setattr(describe, "FAMILIES", ())
    assert "not tested" in describe.describe(str(qwen), num_frames=2, size=(32, 48)).tested


def test_the_bundled_model_is_described():
    found = describe.describe("tiny", num_frames=3)
    assert found.family == "cogvlm2"
    assert list(found.cached) == ["features"]


@pytest.mark.parametrize("size", ["640", "640*360", "x"])
def test_a_size_that_is_none_is_refused(qwen, size):
    done = CliRunner().invoke(main, ["models", str(qwen), "--size", size])
    assert done.exit_code == 2
    assert "is not WIDTHxHEIGHT" in done.output


def test_errors_name_the_checkpoint():
    done = CliRunner().invoke(main, ["models", "no/such-folder"])
    assert done.exit_code == 2
    assert "no/such-folder" in done.output
