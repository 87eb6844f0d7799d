"""Checkpoints from strangers: each ends with a message that names it, in little time and memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_checkpoints import CHANGES, TOKENIZERS

from cogcache.errors import CheckpointError
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.checkpoints.tokenizer_bounds import check_tokenizer
from cogcache.models.derived.processor_files import load_processor
from cogcache.models.registry import family_of

TRY = """
import json, os, resource, shutil, signal, sys, tempfile, warnings
from pathlib import Path
import torch, transformers
from hostile_checkpoints import CHANGES
from cogcache.errors import CogcacheError
from cogcache.models import Checkpoint
from cogcache.models.describe import describe
from cogcache.models.halves.load import WholeModel, load_half

class Late(BaseException):
    pass

def late(*_):
    raise Late

def halves(model):
    whole = WholeModel.of(Checkpoint.open(model))
    for half in ("vision", "language"):
        load_half(whole, half)

def described(model):
    describe(model, num_frames=2, size=(28, 28))

warnings.simplefilter("ignore")
sound, work = Path(sys.argv[1]), Path(tempfile.mkdtemp())
described(str(sound)), halves(str(sound))
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (most, most))
signal.signal(signal.SIGALRM, late)
for name in sys.argv[2:]:
    folder = work / name
    shutil.copytree(sound, folder)
    CHANGES[name](folder)
    found = []
    for use in (described, halves):
        signal.alarm(30)
        try:
            use(str(folder))
            found.append("usable")
        except CogcacheError as error:
            found.append(f"refused: {error}")
        except BaseException as error:
            found.append(f"FAULT: {error!r}")
        finally:
            signal.alarm(0)
    print("FOUND", name, json.dumps(found), flush=True)
    shutil.rmtree(folder)
"""
NAMES = [
    "layers_huge",
    "layers_2000",
    "layers_text",
    "layers_negative",
    "vision_layers_huge",
    "heads_zero",
    "width_zero",
    "width_huge",
    "width_400_digits",
    "vocabulary_huge",
    "image_huge",
    "patch_zero",
    "activation_unknown",
    "vision_is_a_list",
    "text_is_a_text",
    "dtype_unknown",
    "quantization_text",
    "labels_many",
    "config_deep",
    "config_huge",
    "index_upwards",
    "index_absolute",
    "index_deep",
    "header_shape_huge",
    "header_shape_text",
    "header_deep",
    "header_huge",
    "header_said_twice",
    "index_said_twice",
    "index_a_link_to_a_pipe",
    "shard_a_link_to_a_pipe",
    "tokenizer_a_pipe",
    "generation_config_deep",
]
"""What the suite tries; the slow test tries them all."""


def tried(model: Path, names: list[str]) -> dict[str, list[str]]:
    """Use a checkpoint that is changed in each of the ways; return what came of it, by name."""
    support = str(Path(__file__).parents[1] / "support")
    command = [sys.executable, "-c", TRY, str(model), *names]
    environment = {**os.environ, "PYTHONPATH": support}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split(" ", 2)[1:] for line in done.stdout.splitlines() if "FOUND " in line]
    return {name: json.loads(found) for name, found in lines}


TINY = Path(__file__).parents[2] / "cogcache" / "tiny"


@pytest.fixture(scope="module")
def found():
    return tried(TINY, NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_checkpoint_is_refused_with_a_message(found, name):
    assert not [each for each in found[name] if each.startswith("FAULT")]


@pytest.mark.parametrize(
    "name",
    [
        "layers_huge", "layers_2000", "vision_layers_huge", "width_huge", "width_400_digits",
        "index_upwards", "index_absolute", "header_shape_huge", "config_deep", "header_deep",
        "header_huge", "header_said_twice", "index_said_twice", "shard_a_link_to_a_pipe",
    ],
)  # fmt: skip
def test_what_would_do_harm_is_not_used(found, name):
    assert found[name][1].startswith("refused")
    assert "Hint: " in found[name][1]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_would_fill_the_memory_is_refused_before_it_is_given_a_text(
    tmp_path, name
):
    shutil.copyfile(TINY / "tokenizer.json", tmp_path / "tokenizer.json")
    check_tokenizer(tmp_path)
    TOKENIZERS[name](tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        check_tokenizer(tmp_path)
    assert "fetch it anew" in caught.value.hint


def test_both_kinds_of_families_look_at_their_tokenizer_first(tmp_path):
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    TOKENIZERS["tokenizer_growing"](folder)
    with pytest.raises(CheckpointError, match="times as long"):
        family_of(Checkpoint.open(str(folder))).tokenizer_json()
    with pytest.raises(CheckpointError, match="times as long"):
        load_processor(folder, "qwen2_vl")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cogvlm2", "qwen2_5_vl"])
def test_all_kinds_of_odd_checkpoints(tmp_path, family):
    import zoo

    model = TINY if family == "cogvlm2" else zoo.QWEN2_5_VL.write(tmp_path)
    all_found = tried(model, list(CHANGES))
    assert {
        name: found
        for name, found in all_found.items()
        if [each for each in found if each.startswith("FAULT")]
    } == {}
