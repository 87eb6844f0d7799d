"""The plan of a hub id: its config, its index and headers, and not a weight."""

from __future__ import annotations

import json
from collections.abc import Iterator
from threading import Thread

import pytest
from checkpoints import Sizes, write_checkpoint
from local_hub import Hub, with_hub

from cogcache.planning.plan import Job, make_plan
from cogcache.settings.settings import load_settings

PLAN = """
import json
from cogcache.settings import load_settings
from cogcache.planning import Job, make_plan
settings = load_settings(None, {"model": "some/model", "memory": "8GiB"})
print(json.dumps(make_plan(settings, Job(prompts=4, clips=10)).as_dict()))
"""
WIDE = Sizes(width=256, inner=512, vocabulary=4096, vision_width=128, vision_inner=512)
HEADER_BYTES = 100_000
"""What the hub's client asks of each shard, in the hope that the header is no longer."""


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    with Hub(write_checkpoint(tmp_path / "model", WIDE)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_only_headers_and_small_files_are_fetched_and_the_plan_is_that_of_the_folder(hub, tmp_path):
    found = json.loads(with_hub(hub.address, tmp_path / "home", PLAN))
    shards = sorted(hub.folder.glob("*.safetensors"))
    assert not [name for name in hub.downloads if name.endswith(".safetensors")]
    assert sorted(hub.parts) == [shard.name for shard in shards]
    assert max(hub.parts.values()) <= HEADER_BYTES + 1
    assert sum(hub.parts.values()) < sum(shard.stat().st_size for shard in shards) / 2
    wanted = make_plan(
        load_settings(None, {"model": str(hub.folder), "memory": "8GiB"}), Job(prompts=4, clips=10)
    )
    assert found == {**json.loads(json.dumps(wanted.as_dict())), "model": "some/model"}
