"""Sends damaged requests to `cogcache serve`: expects no 5xx, hang, traceback or foreign file."""

from __future__ import annotations

import random
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = "ab" * 32
SILENCE_S = 20.0
"""A connection must be answered or dropped so long after the last byte that was sent."""
SERVE = """
import resource, sys
pages = int(open("/proc/self/statm").read().split()[0])
import cogcache.web.connections as connections
connections.HEADERS_S = connections.BODY_S = 2.0
most = 2**32
resource.setrlimit(resource.RLIMIT_AS, (most, most))
from cogcache.cli import main
sys.argv[0] = "cogcache"
main()
"""
METHODS = (
    "GET", "GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT",
    "get", "G" * 9000, "PRI", "\x00", "GET\t", "",
)  # fmt: skip
PATHS = (
    "/", "/clip/{key}", "/video/{digest}", "/thumbnail/{key}", "/runs", "/runs/1", "/failures",
    "/differences", "/figures", "/static/style.css", "/token", "/static/../../../etc/passwd",
    "/static/%2e%2e/%2e%2e/secret", "/static/..%2f..%2fsecret", "/static//etc/passwd", "/static/",
    "/video/../secret", "/video/%00", "/clip/%ff%fe", "//", "/%2e%2e/secret", "/../secret",
    "/static/..\\..\\secret", "/runs/" + "9" * 400, "http://127.0.0.1/", "*", "/review", "/./",
)  # fmt: skip
NAMES = ("page", "q", "prompt", "model", "flag", "reason", "a", "b", "after", "part", "token", "x")
VALUES = (
    "1", "-1", "9" * 30, "0", "ball", '"', "*", "a AND", "NEAR(", "%00", "%ff", "<script>",
    "a" * 2000, "' OR 1=1 --", "%", "+", "-", "^", "nan", "1e9", "caption:a", "(((((", "a*b*c*",
)  # fmt: skip
HEADERS = (
    "Range: bytes=0-9", "Range: bytes=9-0", "Range: bytes=-5", "Range: bytes=0-" + "9" * 20,
    "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(900)), "Range: lines=1-2",
    "Range: bytes=a-b", "If-Range: x", "If-Modified-Since: yesterday", "If-None-Match: *",
    "Range: bytes=", "Cookie: cogcache=" + "a" * 3000, "Cookie: =;=;=",
    "Cookie: cogcache=\xff", "Authorization: Bearer",
    "Authorization: Basic AAAA", "Host: evil.example",
    "Host: 127.0.0.1, evil", "Host:", "Host: [::1",
    "Content-Length: 5", "Content-Length: -5", "Content-Length: 99999999999999999999",
    "Content-Length: 5, 6", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: xchunked", "Expect: 100-continue", "Upgrade: websocket", "Upgrade: h2c",
    "Connection: close", "Connection: keep-alive, Upgrade", "X: " + "y" * 20_000, "Accept: */*",
    "Accept-Encoding: gzip;q=x", "X-Forwarded-For: ::1", ": empty", " folded", "no colon",
    "A\0b: c",
    "Origin: null", "Content-Type: multipart/form-data", "Forwarded: for=x", "TE: trailers",
)  # fmt: skip
BODIES = (
    b"", b"", b"", b"token=x", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n", b"-1\r\n",
    b"0\r\n\r\nGET /runs HTTP/1.1\r\nHost: evil\r\n\r\n", b"a" * 70_000, b"5;" + b"x" * 20_000,
)  # fmt: skip


def requests(folder: Path, chance: random.Random, changes: int) -> int:
    """Ask a server of its own; return how many requests were sent."""
    secret = secrets.token_hex(16)
    (folder / "secret").write_text(secret)
    digest = make_cache(folder)
    with served(folder / "cache", folder / "log") as port:
        for _ in range(changes):
            request = request_of(chance, digest)
            answer = asked(port, request)
            status = answer[9:10] if answer.startswith(b"HTTP/1.1 ") else b""
            assert status != b"5", (request[:2000], answer[:2000])
            assert secret.encode() not in answer, request
            assert b"root:x:" not in answer, request
        sound = asked(port, b"GET /runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert sound.startswith(b"HTTP/1.1 200"), sound[:2000]
    log = (folder / "log").read_text(errors="replace")
    assert "Traceback" not in log, log[-5000:]
    return changes


def make_cache(folder: Path) -> str:
    """Make a cache of one clip with captions; return the digest of its video."""
    import torch

    from cogcache.catalog import Catalog
    from cogcache.store import FeatureStore
    from cogcache.video import file_digest

    film = folder / "film.mp4"
    film.write_bytes(random.Random(0).randbytes(50_000))
    store = FeatureStore.create_or_open(folder / "cache")
    store.write(KEY, {"x": torch.zeros(3)}, {"family": "tiny"}, b"jpeg")
    digest = file_digest(film)
    clip = {"feature_key": KEY, "video": str(film), "start_s": 0.0, "end_s": None, "model": "m"}
    with Catalog(folder / "cache" / "catalog.sqlite") as catalog:
        catalog.files.remember_digest(film, film.stat(), digest)
        empty = dict.fromkeys(("duration_s", "fps", "width", "height", "total_num_frames", "codec"))
        video = {
            **empty,
            "digest": digest,
            "path": str(film),
            "size_bytes": 50_000,
            "offset_s": 0.0,
        }
        catalog.files.add_videos([video])  # type: ignore[list-item]
        more = {"family": "tiny", "num_frames": 1, "size_bytes": 1, "decoder": "pyav"}
        catalog.clips.add([{**clip, **more, "video_digest": digest, "settings": {}}])  # type: ignore[list-item]
        said = {"prompt_name": "p", "prompt": "?", "quantization": "none", "flags": ["empty"]}
        said |= {"num_tokens": 3, "seconds": 0.1, "settings": {}}
        catalog.captions.add(
            {**clip, **said, "caption_key": f"{n}", "caption": f"a ball {n}"}  # type: ignore[misc]
            for n in range(60)
        )
        catalog.runs.start("extract", "tiny", {})
    return digest


@contextmanager
def served(cache: Path, log: Path) -> Iterator[int]:
    """Serve the pages in a process of bounded memory; yield the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", f"--cache={cache}", f"--port={port}"]
    with log.open("wb") as written:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, *words], stdout=written, stderr=written
        )
        try:
            wait_for(port, server)
            yield port
            assert server.poll() is None, "the server has ended"
        finally:
            server.terminate()
            server.wait(30)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server takes connections."""
    ends_s = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < ends_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server does not begin")


def request_of(chance: random.Random, digest: str) -> bytes:
    """Return a request that is odd in some places."""
    path = chance.choice(PATHS).format(key=KEY, digest=digest)
    if chance.random() < 0.6:
        pairs = range(chance.choice((1, 1, 2, 9, 200)))
        path += "?" + "&".join(f"{chance.choice(NAMES)}={chance.choice(VALUES)}" for _ in pairs)
    lines = [f"{chance.choice(METHODS)} {path} {chance.choice(VERSIONS)}"]
    lines += ["Host: 127.0.0.1"] if chance.random() < 0.9 else []
    lines += chance.sample(HEADERS, chance.choice((0, 1, 1, 2, 5)))
    lines += ["Connection: close"] if chance.random() < 0.8 else []
    request = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + chance.choice(BODIES)
    if chance.random() < 0.3:
        at = chance.randrange(len(request))
        request = request[:at] + chance.randbytes(chance.choice((1, 1, 8))) + request[at + 1 :]
    return request


VERSIONS = ("HTTP/1.1",) * 9 + ("HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "")


def asked(port: int, request: bytes) -> bytes:
    """Return the begin of what a server answers, if anything, before it closes the connection.

    Raises:
        AssertionError: it neither answers nor closes the connection.
    """
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SILENCE_S) as sock:
        try:
            sock.sendall(request)
            while len(answer) < 200_000:
                part = sock.recv(65536)
                if not part:
                    break
                answer += part
                sock.settimeout(1.0)  # of one that is kept open no more comes
        except TimeoutError:
            assert answer, ("neither an answer nor an end", request[:2000])
        except ConnectionError:
            pass
    return answer
