"""A Ray cluster that cogcache starts itself can be reached from this machine alone."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys

LISTENING = """
import json, psutil
from cogcache.stages.distributed.ray_workers import RayEngine
engine = RayEngine(None)

@engine.ray.remote(num_cpus=1)
class Worker:
    def answer(self):
        return 7

worker = Worker.remote()
assert engine.ray.get(worker.answer.remote()) == 7
here = psutil.Process()
found = [
    (process.name(), connection.laddr.ip)
    for process in [here, *here.children(recursive=True)]
    for connection in process.net_connections(kind="inet")
    if connection.status == psutil.CONN_LISTEN
]
engine.close()
print("LISTENING", json.dumps(found))
"""


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (mapped or parsed).is_loopback


def test_all_that_listens_while_a_local_cluster_runs_is_on_loopback(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
    # Where no cluster of another test is found; short, as sockets must have short names.
    folder = tmp_path / "r"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        env=environment | {"RAY_TMPDIR": str(folder)} if len(str(folder)) < 40 else environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("LISTENING ")]
    assert lines, done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("LISTENING "))
    assert {name for name, _ in found} >= {"gcs_server", "raylet"}
    assert [each for each in found if not is_loopback(each[1])] == []
