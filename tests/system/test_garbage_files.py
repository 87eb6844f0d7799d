"""Whatever lies in the small files of JSON that a cache and a training run keep is no traceback."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from cogcache.cli import main
from cogcache.errors import TrainingError
from cogcache.models import RECORD
from cogcache.training.checkpoints import STATE, _state
from cogcache.training.results import begin
from tests.support.caches import make_cache

GARBAGE = {
    "nothing": b"",
    "zeros": bytes(100),
    "no text": b"\xff\xfe{",
    "null": b"null",
    "list": b"[]",
    "nested too deep": b"[" * 100_000,
}
NAMES = ("working/vm.1.ab.json", "working/vm.1.ab.note", "claims/ab.1", "catalog.sqlite-state")
COMMANDS = (["ls"], ["ls", "runs"], ["status"], ["verify", "--fix"], ["gc", "--yes"], ["rebuild"])


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_no_command_ends_with_a_traceback_at_garbage_in_a_cache(tmp_path, content):
    make_cache(tmp_path)
    for name in NAMES:
        path = tmp_path / "cache" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    for command in COMMANDS:
        done = CliRunner().invoke(main, [*command, "--cache", str(tmp_path / "cache")])
        assert done.exit_code == 0, (command, done.output)


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_the_folder_of_a_training_run_is_told(tmp_path, content):
    for name in (RECORD, STATE):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=STATE):
        _state(tmp_path)
    with pytest.raises(TrainingError, match=RECORD):
        begin(tmp_path, Mock(), {})
