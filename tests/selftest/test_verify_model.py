"""A checkpoint in one piece and in two stages: what is the same, and that a fault is seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
import zoo
import zoo_wide
from click.testing import CliRunner
from published import Golden

from cogcache.cli import main
from cogcache.models.derived import positions
from cogcache.selftest import other_python, reference, verify_model
from cogcache.selftest.compared import LIMITS, OTHER_RESIZE, compare

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about files of early releases
WHAT = ["ids", "positions", "pixels", "features", "first logits", "tokens"]


@pytest.fixture
def in_this_process(monkeypatch):
    """Do the work of all three processes in this one: starting them takes most of the time."""
    monkeypatch.setattr(verify_model, "in_own_process", lambda function, job: function(job))
    monkeypatch.setattr(other_python.OtherPython, "run", run_here)


def run_here(python, folder):
    if status := reference.main(str(folder)):
        raise python._failure(folder, status)


def verified(*arguments):
    """Run the command; return its exit status, what was compared by name, and its lines."""
    result = CliRunner().invoke(main, ["verify-model", "--json", *map(str, arguments)])
    if result.exit_code not in (0, 1) or not result.stdout:
        return result.exit_code, {}, result.output
    told = json.loads(result.stdout)
    rows = {f"{row['clip']} {row['what']}": row for row in told["compared"]}
    return result.exit_code, rows, "\n".join(told["opening"])


def wrong(rows):
    return {row["what"] for row in rows.values() if not row["same"]}


ANIMALS = (zoo.LLAVA_ONEVISION, zoo.INTERNVL, zoo.VIDEO_LLAMA_3, zoo_wide.GEMMA3)


@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name)
def test_a_sound_checkpoint_is_the_same(tmp_path, in_this_process, animal):
    status, rows, _ = verified(animal.write(tmp_path / "checkpoint"))
    assert status == 0, rows
    assert {row["what"] for row in rows.values()} == {*WHAT}
    assert {row["clip"] for row in rows.values()} == {"made-up-0", "made-up-1"}


def test_the_bundled_model_is_the_same_in_one_piece_and_its_published_code_is_not_run(
    in_this_process,
):
    status, rows, opening = verified("tiny", "--dtype=float32")
    assert status == 0, rows
    assert {row["what"] for row in rows.values()} == {"features", "first logits", "tokens"}
    assert "published code is not run" in opening


@pytest.fixture(scope="module")
def glm4v(tmp_path_factory):
    golden = Golden.read("glm4v")
    folder = tmp_path_factory.mktemp("glm4v")
    return golden.checkpoint(folder / "checkpoint"), golden.folder / "short.mp4"


def test_three_processes_find_the_same_and_say_what_it_takes(glm4v):
    command = [sys.executable, "-m", "cogcache", "verify-model", *map(str, glm4v)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert "glm4v was published with 4.53.3" in lines[0]
    assert any("-m venv glm4v-4.53.3" in line for line in lines)
    assert any(line.startswith("the whole model in float32 takes") for line in lines)
    assert [line.split()[0] for line in lines if "short" in line] == ["same"] * len(WHAT)
    assert lines[-1] == "all the same"


def test_a_fault_in_the_positions_is_named(glm4v, in_this_process, monkeypatch):
    def shifted(slots, grids):
        found = right(slots, grids)
        found[:, -3:] += 1
        return found

    right = positions.positions_of
    monkeypatch.setattr(positions, "positions_of", shifted)
    status, rows, _ = verified(*glm4v)
    assert status == 1
    assert wrong(rows) >= {"positions"}
    assert not wrong(rows) & {"ids", "pixels", "features"}
    assert "first at" in rows["0-short positions"]["found"]


def test_what_todays_transformers_does_otherwise_is_said_with_how_to_get_the_release(
    tmp_path, in_this_process
):
    folder = Golden.read("qwen2_5_vl").checkpoint(tmp_path / "checkpoint")
    status, rows, opening = verified(folder)
    assert status == 1
    assert "positions" in wrong(rows)
    assert not wrong(rows) & {"ids", "pixels", "features"}
    assert "text behind a video stands amid its positions" in opening
    assert "pip install transformers==4.49.0" in opening


def test_a_release_that_cannot_run_the_checkpoint_is_named_with_its_error(
    tmp_path, in_this_process
):
    """As today's cannot run LLaVA-NeXT-Video with its files as published."""
    folder = Golden.read("llava_next_video").checkpoint(tmp_path / "checkpoint")
    status, _, said = verified(folder)
    assert status == 2
    assert "cannot run the whole model: RecursionError" in said
    assert "pip install transformers==4.42.4" in said


def bare_python(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    return tmp_path / "bare" / "bin" / "python"


def no_python(tmp_path):
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\necho hello\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bare_python, "has no torch, transformers, safetensors, numpy"),
        (no_python, "is no Python that can be run"),
        (lambda folder: Path(os.devnull), "is no"),
    ],
)
def test_an_unfit_python_is_refused_with_how_to_make_a_fit_one(glm4v, tmp_path, make, said):
    status, _, output = verified(*glm4v, f"--reference-python={make(tmp_path)}")
    assert status == 2
    assert said in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("option", "said"),
    [(f"--reference-python={sys.executable}", "remote code"), ("--offload", "cannot wait")],
)
def test_what_the_flagship_cannot_is_refused(option, said):
    status, _, output = verified("tiny", option)
    assert status == 2
    assert said in output


def test_what_does_not_fit_is_refused_before_anything_is_loaded(glm4v):
    status, _, output = verified(*glm4v, "--memory=1MiB")
    assert status == 2
    assert "the whole model in bfloat16 takes" in output
    assert "--offload" in output


def test_what_waits_on_the_disk_gives_the_same(glm4v, in_this_process, monkeypatch):
    room = {"device_map": "auto", "max_memory": {"cpu": 600_000}}
    monkeypatch.setattr(verify_model.Needed, "placement", lambda _: room)
    placed = []
    load = reference.Release.model
    monkeypatch.setattr(
        reference.Release, "model", lambda self: placed.append(load(self)) or placed[0]
    )
    status, rows, _ = verified(*glm4v)
    assert status == 0, rows
    assert "disk" in placed[0].hf_device_map.values()


RUN = {
    "input_ids": torch.tensor([5, 7, 7, 7, 6]),
    "positions": torch.arange(5).expand(3, -1),
    "next_position": torch.full((3, 1), 5),
    "pixels": torch.linspace(-1, 1, 100),
    "pixels_mean": torch.zeros(1),
    "pixels_count": torch.tensor([100]),
    "features": torch.eye(3),
    "logits": torch.eye(3).repeat(4, 1)[:8],
    "tokens": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]),
}
FAULTS = {
    "ids": {"input_ids": torch.tensor([5, 7, 7, 7, 7])},
    "positions": {"next_position": torch.full((3, 1), 6)},
    "pixels": {"pixels": torch.linspace(-1, 1, 100) + 0.01},
    "features": {"features": torch.eye(3) * 1.01},
    "first logits": {"logits": torch.eye(3).repeat(4, 1)[:8] * 1.01},
    "tokens": {"tokens": torch.tensor([0, 1, 2, 0, 1, 2, 0, 2])},
}


@pytest.mark.parametrize("what", WHAT)
def test_each_thing_that_differs_is_told_from_the_others(what):
    assert all(row.same for row in compare("clip", RUN, RUN, LIMITS["float32"]))
    found = compare("clip", RUN | FAULTS[what], RUN, LIMITS["float32"])
    assert [row.what for row in found if not row.same] == [what]


def test_a_placeholder_that_the_release_repeats_in_the_model_is_the_same():
    theirs = RUN | {"input_ids": torch.tensor([5, 7, 6])}
    assert all(row.same for row in compare("clip", RUN, theirs, LIMITS["float32"]))


def test_a_token_that_was_chosen_narrowly_may_be_the_other_one():
    logits = RUN["logits"].clone()
    logits[7] = torch.tensor([0.0, 1.0, 1.0 - 1e-5])
    theirs = RUN | {"logits": logits}
    assert all(
        row.same for row in compare("clip", RUN | FAULTS["tokens"], theirs, LIMITS["float32"])
    )


def test_where_frames_are_known_to_be_resized_otherwise_more_may_differ_but_no_ids():
    resized = {"pixels": torch.linspace(-1, 1, 100) + 3e-3, "features": torch.eye(3) * 1.05}
    changed = RUN | resized
    assert all(row.same for row in compare("clip", changed, RUN, OTHER_RESIZE))
    assert not all(row.same for row in compare("clip", changed, RUN, LIMITS["float32"]))
    found = compare("clip", changed | FAULTS["ids"], RUN, OTHER_RESIZE)
    assert [row.what for row in found if not row.same] == ["ids"]
