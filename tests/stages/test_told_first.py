"""What is told before the answers: system prompts and conversations, and warnings, once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scenes import catalog_of, settings, write_scene
from zoo import QWEN2_VL

from cogcache.cli import main
from cogcache.stages.distributed.launch import quiet_but_for_first
from cogcache.stages.distributed.stage_worker import WorkerEnvironment
from cogcache.stages.encoding.preparation import start_worker
from cogcache.stages.encoding.remote import DecodeSpec, EncodeSpec
from cogcache.stages.extract import extract
from cogcache.system import CONTEXT

CONVERSATION = [
    {"role": "system", "content": [{"type": "text", "text": "Be terse."}]},
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A cache of one clip by a small random checkpoint with a chat template."""
    root = tmp_path_factory.mktemp("told")
    model = QWEN2_VL.write(root / "model")
    write_scene(root / "a.mp4", num_frames=8)
    extract(root / "a.mp4", root / "cache", settings(model=str(model), max_frames=2))
    return root


def asked(made: Path, *words: str) -> Result:
    how = [f"--model={made / 'model'}", "--quantization=none", "--max-new-tokens=4", "--no-retry"]
    return CliRunner().invoke(main, ["caption", f"--cache={made / 'cache'}", *how, *words])


def test_a_system_prompt_a_conversation_of_an_option_and_one_of_a_file_are_asked_alike(made):
    """Braces of JSON are not doubled; the keys are equal, so that one caption serves all three."""
    plain = asked(made, "--prompt=what=What happens?")
    assert "1 caption made" in plain.output, plain.output
    told = asked(made, "--prompt=what=What happens?", "--system=Be terse.")
    assert "1 caption made, 0 there already" in told.output, told.output
    option = asked(made, f"--prompt=what={json.dumps(CONVERSATION)}")
    assert "0 captions made, 1 there already" in option.output, option.output
    file = made / "asked.toml"
    file.write_text(f"[prompts]\nwhat = '''{json.dumps(CONVERSATION)}'''\n")
    of_file = asked(made, f"--prompts={file}")
    assert "0 captions made, 1 there already" in of_file.output, of_file.output
    with catalog_of(made / "cache") as catalog:
        prompts = [row["prompt"] for row in catalog.captions.rows()]
    assert sorted(prompts) == sorted(["What happens?", json.dumps(CONVERSATION)])


def test_two_system_prompts_are_refused(made):
    twice = asked(made, f"--prompt=what={json.dumps(CONVERSATION)}", "--system=Be kind.")
    assert twice.exit_code == 2
    assert "has a system message of its own" in twice.output


def test_what_transformers_warns_of_is_shown_by_one_decode_worker_alone(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "")  # so that it is put back afterwards
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    first = CONTEXT.Semaphore(1)
    start_worker("tiny", None, "bfloat16", first=first)
    assert "TRANSFORMERS_VERBOSITY" not in os.environ
    start_worker("tiny", None, "bfloat16", first=first)
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"


@pytest.mark.parametrize("kind", [DecodeSpec, EncodeSpec])
def test_of_several_workers_the_first_of_a_phase_alone_shows_warnings(kind, monkeypatch, tmp_path):
    from transformers.utils import logging

    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "")  # so that it is put back afterwards
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    spec = kind(settings(model="tiny"), WorkerEnvironment("tiny", tmp_path))
    try:
        for number, is_quiet in ((0, False), (1, True), (2, True)):
            environment = quiet_but_for_first(number, spec).environment
            environment.take("cpu")
            assert ("TRANSFORMERS_VERBOSITY" in os.environ) is is_quiet
            assert (logging.get_verbosity() == logging.ERROR) is is_quiet
    finally:
        logging.set_verbosity(before)
