"""A run of training: it is stopped and killed, ends early, and its adapter is used elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from trained_caches import NUM_CLIPS, PROMPT, QUICK, same, settings, trained, weights
from transformers import TrainingArguments

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.cli import main
from cogcache.errors import TrainingError
from cogcache.models.adapters import model_name
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.load import load_half
from cogcache.models.registry import family_of
from cogcache.settings.settings import load_settings
from cogcache.stages.caption import caption
from cogcache.stages.captioning.precision import check_precision
from cogcache.store.store import FeatureStore
from cogcache.training import checkpoints
from cogcache.training.examples import choose, lay_out
from cogcache.training.loss import Collator, logits_of
from cogcache.training.trainer import CaptionTrainer, Data, arguments_for

# ---- stopped, and killed ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_and_the_run_goes_on_bit_for_bit(
    cache, done, tmp_path, monkeypatch, number
):
    out = tmp_path / "adapter"
    step, sent = CaptionTrainer.training_step, []

    def step_and_signal(trainer, *arguments, **options):
        if not sent:
            sent.append(os.kill(os.getpid(), number))
        return step(trainer, *arguments, **options)

    monkeypatch.setattr(CaptionTrainer, "training_step", step_and_signal)
    first = trained(cache, out)
    monkeypatch.undo()
    assert first.report.stopped == signal.Signals(number).name
    assert checkpoints.last(out) == checkpoints.folder_of(out, 1)
    assert trained(cache, out).report.stopped is None
    assert same(weights(out), weights(done))


def command(cache: Path, out: Path) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    start = [sys.executable, "-m", "cogcache", "train", f"--cache={cache}", f"--out={out}"]
    return [*start, "--captions-of=other", *options]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_goes_on_as_if_it_had_not_been(cache, done, tmp_path, number):
    out = tmp_path / "adapter"
    more = {"env": {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}}
    process = subprocess.Popen(command(cache, out), **more)
    while checkpoints.last(out) is None and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    status = process.wait(timeout=120)
    assert status in (-number, 128 + number, 0), "0: it was done before the signal came"
    assert subprocess.run(command(cache, out), check=True, **more).returncode == 0
    assert same(weights(out), weights(done))


# ---- how it learns ------------------------------------------------------------------------------


def test_a_run_that_no_longer_gets_better_ends_and_keeps_its_best(cache, tmp_path):
    wild = {"learning_rate": 3.0, "clip_norm": 0.0, "warmup": 0.0, "eval_every": 1, "patience": 2}
    done = trained(cache, tmp_path / "adapter", **wild, max_steps=9, samples=0)
    assert done.report.stopped == "2 evaluations without a better loss"
    losses = [each["loss"] for each in done.report.training["evaluation"]]
    assert done.report.training["steps"] < 9
    assert min(losses) < losses[-1]


def test_8_bit_adamw_goes_on_bit_for_bit_too(cache, tmp_path):
    told = {"optimizer": "adamw_8bit", "samples": 0, "max_steps": 3, "save_every": 1}
    trained(cache, tmp_path / "whole", **told)
    trained(cache, tmp_path / "parts", **told, max_hours=1e-9)
    assert checkpoints.last(tmp_path / "parts") == checkpoints.folder_of(tmp_path / "parts", 1)
    trained(cache, tmp_path / "parts", **told)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_fp16_needs_a_gpu_and_says_so_before_a_folder_is_made(cache, tmp_path):
    with pytest.raises(TrainingError, match="--precision fp16 needs a GPU, not cpu"):
        trained(cache, tmp_path / "adapter", precision="fp16")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("service", ["tensorboard", "trackio", "wandb"])
def test_a_service_for_figures_that_is_not_installed_is_named(
    cache, tmp_path, monkeypatch, service
):
    monkeypatch.setattr("cogcache.training.results.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=f"--report-to {service} needs {service}") as caught:
        trained(cache, tmp_path / "adapter", report_to=service)
    assert f"pip install {service}" in caught.value.hint


def test_figures_go_to_tensorboard_where_it_is_there(cache, tmp_path):
    pytest.importorskip("tensorboard")
    trained(cache, tmp_path / "adapter", report_to="tensorboard", samples=0, max_steps=1)
    assert [*(tmp_path / "adapter").rglob("events.out.tfevents.*")]


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(TrainingError, match="2 processes were started to train together"):
        arguments_for(settings().training, tmp_path, Data([], [], None, 1), "cpu")


@pytest.fixture(scope="module")
def laid_out(made):
    family = family_of(Checkpoint.open("tiny"))
    chosen = choose(made / "catalog.sqlite", Selection(models=("other",)), {}, {})
    store = FeatureStore.open(made)
    half = load_half("tiny", "language", dtype=torch.float32).model
    return half, Collator(family, half, store), lay_out(chosen, family, store, "chat", 2048)


def test_the_end_is_learnt_where_it_is_the_padding_token_too(laid_out, monkeypatch):
    _, collate, laid = laid_out
    end = laid.examples[0].answer[-1]
    assert end in collate.family.stop_ids
    monkeypatch.setattr(type(collate.family), "pad_id", end)
    some = sorted(laid.examples, key=lambda each: each.length)[:: NUM_CLIPS - 1]
    assert some[0].length < some[1].length, "none is padded"
    batch = collate.batch(some)
    for example, labels in zip(some, batch.labels, strict=True):
        assert labels[labels >= 0].tolist() == example.answer


def test_logits_are_made_where_labels_are(laid_out):
    half, collate, laid = laid_out
    batch = collate.batch(laid.examples[:2])
    shapes = []
    hook = half.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: shapes.append(output.shape[1])
    )
    with torch.inference_mode():
        logits_of(half, batch)
    hook.remove()
    assert shapes == [len(batch.places)]
    assert len(batch.places) < batch.inputs["input_ids"].shape[1] / 2


# ---- its adapter elsewhere ----------------------------------------------------------------------


def said(cache: Path, model: str) -> dict[str, str]:
    with Catalog(cache / "catalog.sqlite") as catalog:
        rows = catalog.captions.rows()
    return {row["video"]: row["caption"] for row in rows if row["model"] == model}


def test_an_adapters_kept_prefixes_are_its_own_and_give_its_captions(cache, done, tmp_path):
    told = {"device": "cpu", "quantization": "none", "prompts": {"detail": PROMPT}}
    kept = {**told, "keep_prefix": str(tmp_path / "kept")}
    caption(cache, load_settings(None, kept))
    files = {*(tmp_path / "kept").rglob("*.safetensors")}
    assert len(files) == NUM_CLIPS
    other = tmp_path / "other"
    shutil.copytree(cache, other)
    caption(cache, load_settings(None, {**told, "adapter": str(done)}))
    caption(other, load_settings(None, {**kept, "adapter": str(done)}))
    assert len({*(tmp_path / "kept").rglob("*.safetensors")}) == 2 * NUM_CLIPS
    name = model_name("tiny", str(done))
    assert said(cache, name) == said(other, name)
    assert len(said(cache, name)) == NUM_CLIPS


@pytest.mark.slow
def test_a_crew_captions_with_an_adapter_what_one_process_does(cache, done, tmp_path):
    told = {"device": "cpu", "quantization": "none", "adapter": str(done)}
    asked = {**told, "prompts": {"detail": PROMPT}}
    alone = tmp_path / "alone"
    shutil.copytree(cache, alone)
    caption(alone, load_settings(None, asked))
    crew = [f"--cache={cache}", "--devices=cpu,cpu", f"--adapter={done}", "--quantization=none"]
    result = CliRunner().invoke(main, ["caption", *crew, "--prompt", f"detail={PROMPT}"])
    assert result.exit_code == 0, result.output
    name = model_name("tiny", str(done))
    assert said(cache, name) == said(alone, name) != {}


@pytest.mark.slow
def test_verify_quantization_compares_with_the_adapter_on_both_sides(cache, done):
    asked = {"device": "cpu", "quantization": "nf4", "prompts": {"detail": PROMPT}}
    with_adapter = load_settings(None, {**asked, "adapter": str(done)})
    found = [check_precision(cache, each, clips=2, positions=8) for each in (
        load_settings(None, asked), with_adapter
    )]  # fmt: skip
    plain, adapted = ([pair.expectations.kl for pair in pairs] for pairs in found)
    assert len(plain) == len(adapted) == 2
    assert plain != adapted


# ---- memory -------------------------------------------------------------------------------------


def test_a_plan_for_this_processor_counts_what_raising_products_takes(monkeypatch):
    from cogcache.planning import estimates
    from cogcache.system import Processor

    arguments = ["plan", "--model=tiny", "--train", "--json", "--frames=4", "--device=cpu"]
    found = []
    for bf16 in (True, False):
        machine = Processor("made up", "x86_64", "AVX512", avx512_bf16=bf16, amx=False)
        monkeypatch.setattr(estimates, "processor", lambda machine=machine: machine)
        output = CliRunner().invoke(main, arguments).output
        found.append(json.loads(output)["training"]["activations_bytes"])
    assert found[1] > found[0]
