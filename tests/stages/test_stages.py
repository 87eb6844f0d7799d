"""Each stage as a process: what it holds, what it ends with, and what reaches it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from scenes import write_scene

from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.cogvlm2.modeling import CogVLM2VideoForConditionalGeneration as MODEL
from cogcache.models.halves.load import WholeModel
from cogcache.stages.both import run_stage

WATCHED = """
import gc, json, sys
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

seen = {}

def look(module, inputs):
    if not seen:  # the first pass: all is loaded
        tensors = [each for each in gc.get_objects() if type(each) is torch.nn.Parameter]
        modules = [each for each in gc.get_objects() if issubclass(type(each), torch.nn.Module)]
        seen["bytes"] = sum(each.nbytes for each in tensors if each.device.type != "meta")
        seen["names"] = [
            name for model in modules if type(model).__name__ == sys.argv[5]
            for name, each in model.named_parameters() if each.device.type != "meta"
        ]

register_module_forward_pre_hook(look)

from pathlib import Path
import cogcache

settings = cogcache.load_settings(None, json.loads(sys.argv[3]))
if sys.argv[1] == "extract":
    report = cogcache.extract([sys.argv[4]], Path(sys.argv[2]), settings)
else:
    report = cogcache.caption(Path(sys.argv[2]), settings)
print(json.dumps({**seen, "by_shard": dict(report.bytes_by_shard), "done": report.counts.done}))
"""


def watched(command: str, cache: Path, model: Path, video: Path) -> dict:
    """Run a stage in a process that looks around at its first pass through a module."""
    options = {"model": str(model), "quantization": "none", "decode_workers": 1}
    if command == "extract":
        del options["quantization"]
    arguments = [command, str(cache), json.dumps(options), str(video), MODEL.__name__]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """What each stage held. Shards without its own tensors are not there while it runs."""
    folder = tmp_path_factory.mktemp("stages")
    write_scene(folder / "a.mp4", 0)
    whole = WholeModel.of(Checkpoint.open("tiny"))
    held = {}
    for command, half in (("extract", "vision"), ("caption", "language")):
        model = Path(shutil.copytree(whole.checkpoint.folder, folder / f"model-{half}"))
        kept = whole.checkpoint.shards_of(whole.partition.names(half))
        for shard in {*whole.checkpoint.weight_map.values()} - {*kept}:
            (model / shard).unlink()
        held[half] = watched(command, folder / "cache", model, folder / "a.mp4")
    return whole, held


@pytest.mark.parametrize("half", ["vision", "language"])
def test_a_process_that_runs_a_stage_never_holds_a_tensor_of_the_other_half(stages, half):
    whole, held = stages
    names = held[half]["names"]
    assert names
    assert {whole.partition.modules.half_of(name) for name in names} == {half}


@pytest.mark.parametrize("half", ["vision", "language"])
def test_all_parameters_of_the_process_are_those_of_its_half(stages, half):
    whole, held = stages
    parameters = dict(whole.meta.named_parameters())
    targets = whole.partition.targets
    names = [name for name in whole.partition.names(half) if targets[name] in parameters]
    described = whole.checkpoint.tensors(names).values()
    assert held[half]["bytes"] == sum(each.num_bytes for each in described)
    assert sorted(held[half]["by_shard"]) == whole.checkpoint.shards_of(names)
    assert held[half]["done"] == 1


# ---- run_stage ----------------------------------------------------------------------------------


def test_the_exit_status_of_the_stage_is_passed_on(tmp_path):
    assert run_stage(["--version"]) == 0
    assert run_stage(["ls", f"--cache={tmp_path / 'nothing'}"]) == 2


def when_it_runs(act: Callable[[psutil.Process], object]) -> threading.Thread:
    """Call `act` with the stage's process once there is one that runs Python code of ours."""

    def watch() -> None:
        until_s = time.monotonic() + 30
        while time.monotonic() < until_s:
            for child in psutil.Process().children():
                if "cogcache" in child.cmdline():
                    act(child)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_stage_that_the_system_killed_is_no_success():
    thread = when_it_runs(lambda stage: stage.kill())
    assert run_stage(["doctor"]) == 128 + signal.SIGKILL
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_and_what_follows_is_told(number):
    thread = when_it_runs(lambda stage: os.kill(os.getpid(), number))
    assert run_stage(["doctor"]) == 128 + number
    thread.join()
    assert not [each for each in psutil.Process().children() if "cogcache" in each.cmdline()]
