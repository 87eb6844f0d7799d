"""The web application: which function answers which address."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cogcache.errors import CogcacheError, ConfigError
from cogcache.web import media, pages
from cogcache.web.editing import Editing, routes
from cogcache.web.guard import Guard, check_address
from cogcache.web.odd_clips import odd_clips
from cogcache.web.rendering import HERE
from cogcache.web.site import open_site

if TYPE_CHECKING:
    import uvicorn

PATIENCE_S: Final = 5
"""Seconds after a signal until answers that are still being sent are cut off."""


def create_app(cache: Path, token: str | None = None, editing: Editing | None = None) -> Starlette:
    """Return the pages over a cache as an ASGI application.

    Args:
        cache: folder of the cache; opened when the application starts.
        token: the secret that visitors must send; None answers only requests that name this
            machine.
        editing: who may review captions; None for pages that only show.

    Raises:
        ConfigError: the token is too short, or captions may be reviewed and there is none.
    """
    check_address("localhost", token)
    if editing is not None and token is None:
        raise ConfigError("pages that change something need a token", "give --token")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with open_site(cache) as site:
            app.state.site, app.state.editing = site, editing
            yield

    return Starlette(
        routes=[
            Route("/", pages.clips),
            Route("/clip/{key}", pages.clip),
            Route("/differences", pages.differences),
            Route("/failures", pages.failures),
            Route("/runs", pages.runs),
            Route("/runs/{run}", pages.run),
            Route("/figures", pages.collection),
            Route("/odd", odd_clips),
            Route("/thumbnail/{key}", media.thumbnail),
            Route("/video/{digest}", media.video),
            *(routes() if editing is not None else ()),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={HTTPException: pages.refused, CogcacheError: pages.refused},
        lifespan=lifespan,
    )


def address(host: str, port: int) -> str:
    """Return the address to type into a browser."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(
    cache: Path,
    host: str = "127.0.0.1",
    port: int = 8484,
    token: str | None = None,
    announce: Callable[[], None] = lambda: None,
    editing: Editing | None = None,
) -> None:
    """Serve the pages over a cache until SIGINT or SIGTERM.

    Args:
        cache: folder of the cache.
        host: address to listen on.
        port: port to listen on.
        token: the secret that visitors must send.
        announce: called when the server listens; from then on, a signal stops it cleanly.
        editing: who may review captions; None for pages that only show.

    Raises:
        ConfigError: others can reach `host` and there is no token, or it is too short; or the
            address is taken.
        CogcacheError: the cache cannot be opened.
    """
    import uvicorn

    from cogcache.web.connections import BACKLOG, MAX_HEADER_BYTES, bounded_protocol, repeat_nothing

    check_address(host, token)
    with open_site(cache):  # an error of ours now, not one of the server's later
        pass
    app = create_app(cache, token, editing)
    # Addresses may bear the token: they are not logged.
    config = uvicorn.Config(
        app,
        http=bounded_protocol(),
        ws="none",
        access_log=False,
        log_level="warning",
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=PATIENCE_S,
    )
    repeat_nothing()
    server = uvicorn.Server(config)
    with _listening(host, port) as listener, _ended_in_order(server), suppress(KeyboardInterrupt):
        announce()
        server.run(sockets=[listener])


@contextmanager
def _ended_in_order(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop a server when its answers are sent; that is no failure.

    uvicorn raises the signal again after it has closed, which would kill the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        problem = f"cannot listen on {host}, port {port}: {error.strerror or error}"
        raise ConfigError(problem, "name another --port, or an address of this machine") from error
