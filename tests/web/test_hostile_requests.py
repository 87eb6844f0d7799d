"""Requests that are made to harm: numbers without bounds, connections that say nothing."""

from __future__ import annotations

import logging
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from collection import Collection, make_collection
from starlette.testclient import TestClient

from cogcache.web.app import create_app
from cogcache.web.connections import NoRepeats, most_connections

NUMBERS = ("9" * 23, str(2**63), str(2**63 - 1), "9" * 5000, "-1", "1e9", "0x10", "²", "1.5", "nan")
FILES = 256
"""How many files the server may open in these tests."""
SERVE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))
import cogcache.web.connections as connections
connections.HEADERS_S = connections.BODY_S = connections.STALLED_S = {patience}
connections.CHECKED_EVERY_S = 0.05
from cogcache.cli import main
sys.argv[0] = "cogcache"
main()
"""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def client(collection):
    with TestClient(create_app(collection.cache), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "path", ["/runs/{}", "/clip/{}", "/video/{}", "/thumbnail/{}", "/runs/{}/", "/static/{}"]
)
def test_a_number_without_bounds_in_a_path_is_not_there(client, path, number):
    assert client.get(path.format(quote(number))).status_code == 404


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_without_bounds_in_a_query_is_no_fault_of_the_server(client, number):
    names = ("page", "after", "q", "prompt", "model", "flag", "reason", "a", "b")
    for path in ("/", "/failures", "/runs", "/differences", "/figures"):
        answer = client.get(path, params=dict.fromkeys(names, number))
        assert answer.status_code in (200, 400)


@contextmanager
def served(collection: Collection, log: Path, patience_s: float) -> Iterator[int]:
    """Serve the pages with few files and little patience; yield the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = SERVE.format(files=FILES, patience=patience_s)
    arguments = ["serve", f"--cache={collection.cache}", f"--port={port}"]
    with log.open("wb") as written:
        server = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=written, stderr=written
        )
        try:
            wait_for_answer(port)
            yield port
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def wait_for_answer(port: int) -> None:
    ends_s = time.monotonic() + 60
    while time.monotonic() < ends_s:
        try:
            if b"200 OK" in asked(port):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


def asked(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return sock.recv(65536)


def test_connections_that_say_nothing_keep_nobody_out(collection, tmp_path):
    log = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    with served(collection, log, 600.0) as port, ExitStack() as stack:
        for _ in range(3 * FILES):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        # Asked while others still pour in, a browser may be dropped with them, and asks again.
        wait_for_answer(port)
    assert log.stat().st_size < 20_000


def dropped(sock: socket.socket, within_s: float) -> bool:
    """Say whether the other side closes a connection in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        ends_s = time.monotonic() + within_s
        while time.monotonic() < ends_s:
            if selector.select(ends_s - time.monotonic()):
                try:
                    if not sock.recv(65536):
                        return True
                except ConnectionError:
                    return True
    return False


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /runs HTT",
        b"GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\nto",
        b"GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\nto",
    ],
)
def test_a_connection_that_keeps_the_server_waiting_is_dropped(patient, begun):
    with socket.create_connection(("127.0.0.1", patient), timeout=10) as sock:
        sock.sendall(begun)
        assert dropped(sock, 30)


@pytest.fixture(scope="module")
def patient(collection, tmp_path_factory):
    with served(collection, tmp_path_factory.mktemp("log") / "log", 0.5) as port:
        yield port


def test_headers_that_come_letter_by_letter_are_dropped(patient):
    with socket.create_connection(("127.0.0.1", patient), timeout=10) as sock:
        sock.sendall(b"GET /runs HTTP/1.1\r\n")
        ends_s, closed = time.monotonic() + 30, False
        while not closed and time.monotonic() < ends_s:
            try:
                sock.sendall(b"X")
            except OSError:
                closed = True
            closed = closed or dropped(sock, 0.1)
        assert closed


def test_headers_without_end_are_refused(patient):
    with socket.create_connection(("127.0.0.1", patient), timeout=10) as sock:
        try:
            sock.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 50_000)
        except OSError:
            return
        assert dropped(sock, 30)


def test_the_bound_leaves_room_for_what_the_server_opens():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert 8 <= most_connections() <= 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_log_repeats_nothing():
    shown = NoRepeats()
    records = [
        logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, message, (os.urandom(4),), None)
        for message in ("bad request %s", "bad request %s", "another %s", "bad request %s")
    ]
    assert [shown.filter(record) for record in records] == [True, False, True, False]


CHUNKED = b"POST /token HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
BROKEN = {
    "chunk_without_size": CHUNKED + b"\r\nzzz\r\n",
    "chunk_of_boundless_size": CHUNKED + b"\r\nffffffffffffffffff\r\n",
    "chunks_without_end": CHUNKED + b"\r\n" + b"1\r\na\r\n" * 9000,
    "chunk_that_is_all_extension_of_a_head": CHUNKED.replace(b"POST /token", b"HEAD /runs")
    + b"\r\n5;"
    + b"x" * 20_000,
    "two_lengths": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\nGET /runs HTTP/1.1\r\n\r\n",
    "second_request_in_the_body": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n"
    b"\r\nGET /runs HTTP/1.1\r\nHost: evil\r\n\r\n",
    "what_follows_is_no_request": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\0\0\0\r\n\r\n",
    "broken_off": b"POST /token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n",
    "header_line_of_a_megabyte": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 2**20,
    "address_of_a_megabyte": b"GET /" + b"x" * 2**20,
    "connect": b"CONNECT evil:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nabc",
    "upgrade": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: h2c\r\n\r\nabc",
    "no_letters": bytes(range(256)),
}


def test_requests_that_are_broken_inside_leave_no_traceback(collection, tmp_path):
    log = tmp_path / "log"
    with served(collection, log, 1.0) as port:
        for request in BROKEN.values():
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                with suppress(OSError):
                    sock.sendall(request)
                    sock.shutdown(socket.SHUT_WR)
                assert dropped(sock, 20)
        assert b"200 OK" in asked(port)
    assert "Traceback" not in log.read_text(errors="replace")
