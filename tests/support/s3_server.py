"""An S3 server on loopback, with faults at will, and a count of what it was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
_ERROR = "<?xml version='1.0'?><Error><Code>{0}</Code><Message>{0}</Message></Error>"
SECRET = "a-secret-that-nobody-may-see"


@dataclass
class Fault:
    """What happens to requests of one method whose path has a text in it, so many times."""

    method: str
    text: str
    times: int
    status: str = ""
    """Such as ``503 SlowDown``; none: the connection is lost in the middle."""

    after: int = 0
    """Requests that pass before it."""

    def fits(self, method: str, path: str) -> bool:
        if not self.times or method != self.method or self.text not in path:
            return False
        self.after -= 1
        return self.after < 0


@dataclass
class Server:
    """The server, as a WSGI application around moto's."""

    app: Any = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))
    asked: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        fault = next((each for each in self.faults if each.fits(method, path)), None)
        if fault is None:
            return self.app(environ, start)
        fault.times -= 1
        if fault.status:
            start(fault.status, [("Content-Type", "application/xml")])
            return [_ERROR.format(fault.status.partition(" ")[2]).encode()]
        body = b"".join(self.app(environ, start))
        return self._half(body)

    @staticmethod
    def _half(body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        raise ConnectionAbortedError

    def count(self, method: str, text: str) -> int:
        return sum(1 for each, path in self.asked if each == method and text in path)

    @property
    def client(self) -> Any:
        return boto3.client("s3")

    def put(self, name: str, content: bytes) -> str:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content)
        return f"s3://{BUCKET}/{name}"

    def names(self) -> list[str]:
        return [
            each["Key"] for each in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        ]


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """Serve while a `with` block runs; what is started within finds the server by itself."""
    server = Server()
    http = make_server("127.0.0.1", 0, server, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        # It would try for seconds by itself, before what is tested does.
        patch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        try:
            server.client.create_bucket(Bucket=BUCKET)
            yield server
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            http.shutdown()
            thread.join()
            http.server_close()
