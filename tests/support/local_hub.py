"""A hub of models on this machine, and processes that know no other."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMITS = ("a" * 40, "b" * 40)


class Hub(ThreadingHTTPServer):
    """Serves one model as the hub does, and notes which files were asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.folder = folder
        self.commit = COMMITS[0]
        self.moves_on = False
        """Whether `main` is another commit from the second look on."""
        self.downloads: list[str] = []
        self.parts: dict[str, int] = {}
        """Bytes sent of files of which only a part was asked for."""
        self.commits: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/some/model/revision/"):
            self.answer({"id": "some/model", "sha": self.server.commit, "siblings": []})
            if self.server.moves_on:
                self.server.commit = COMMITS[1]
        elif path.startswith("/api/models/some/model/tree/"):
            self.answer([self.entry(file) for file in sorted(self.server.folder.iterdir())])
        elif path.startswith("/some/model/resolve/"):
            commit, _, name = path.removeprefix("/some/model/resolve/").partition("/")
            self.send_file(commit, self.server.folder / name)
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def entry(self, file: Path) -> dict[str, object]:
        entry = {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": etag(file)}
        if file.suffix == ".safetensors":
            lfs = {"oid": sha256(file), "size": file.stat().st_size, "pointerSize": 134}
            return {**entry, "lfs": lfs}
        return entry

    def send_file(self, commit: str, file: Path) -> None:
        if not file.is_file():
            self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{etag(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        content, status = file.read_bytes(), 200
        if span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            content, status = content[int(span[1]) : int(span[2]) + 1], 206
            self.server.parts[file.name] = self.server.parts.get(file.name, 0) + len(content)
        elif self.command == "GET":
            self.server.downloads.append(file.name)
            self.server.commits.append(commit)
        self.answer(content, status, headers)

    def answer(
        self, content: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def etag(file: Path) -> str:
    digest = sha256(file)
    return digest if file.suffix == ".safetensors" else digest[:40]


def with_hub(address: str, home: Path, code: str) -> str:
    """Return what `code` prints in a process for which the hub is at `address`."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    program = f"from cogcache.models.checkpoints.checkpoint import Checkpoint\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
