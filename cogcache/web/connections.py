"""Limits the number of connections, and how long each may keep the server waiting.

uvicorn itself waits forever for the first byte of a request, and accepts connections until no file
can be opened any more. It does not protect against many valid requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any, Final

from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S: Final = 10.0
"""Seconds for a request to arrive after the connection was opened or the last answer was sent."""
BODY_S: Final = 20.0
"""Seconds for a request's body to arrive after its headers."""
STALLED_S: Final = 120.0
"""Seconds until an answer that nobody reads is cut off. A browser then requests the rest."""
CHECKED_EVERY_S: Final = 1.0
BACKLOG: Final = 64
"""Connections that may wait to be accepted; asyncio accepts this many at once."""
MAX_CONNECTIONS: Final = 256
MAX_HEADER_BYTES: Final = 16_384
_REPEATED_S: Final = 60.0
_MIN_CONNECTIONS: Final = 8
_OWN_FILES: Final = 64
"""Files that the server itself has open: the cache's, and what is being sent."""


def most_connections() -> int:
    """Return how many may be connected, given how many files this process may open."""
    try:
        import resource
    except ImportError:  # Windows, which has no such bound
        return MAX_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    # A connection takes one file, one more while a video is sent, and some wait to be closed.
    return max(_MIN_CONNECTIONS, min(MAX_CONNECTIONS, (files - _OWN_FILES - BACKLOG) // 3))


class BoundedProtocol(H11Protocol):
    """One connection; closed if it keeps the server waiting or if another one needs its slot."""

    most: int = MAX_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; if there are too many, close the one that was idle longest."""
        super().connection_made(transport)
        self._since_s = time.monotonic()
        self._stalled_since_s: float | None = None
        self._check_task = self.loop.call_later(CHECKED_EVERY_S, self._check)
        connections: list[Any] = [*self.connections]
        open_ones = [each for each in connections if not each.transport.is_closing()]
        if len(open_ones) > self.most:
            idle = [each for each in open_ones if each is not self and _is_idle(each)]
            victim = min(idle, key=lambda each: each._since_s, default=self)
            victim.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._check_task.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse an invalid request; if only its body is invalid, cut off the answer.

        uvicorn would go on with both, on one connection, and log a traceback.
        """
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        # Where a body was refused when the answer was out already, or the request was a HEAD, h11
        # lets no text follow: what was sent is all that there is to say.
        with suppress(LocalProtocolError):
            super().send_400_response(msg)
        self.transport.close()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._since_s = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Note since when an answer is not taken."""
        self._stalled_since_s = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it is taken again."""
        self._stalled_since_s = None
        super().resume_writing()

    def _check(self) -> None:
        now_s = time.monotonic()
        if self._is_late(now_s):
            self.transport.abort()
        else:
            self._check_task = self.loop.call_later(CHECKED_EVERY_S, self._check)

    def _is_late(self, now_s: float) -> bool:
        if self._stalled_since_s is not None:
            return now_s - self._stalled_since_s > STALLED_S
        if _is_idle(self):
            return now_s - self._since_s > HEADERS_S
        return bool(self.cycle.more_body) and now_s - self._since_s > HEADERS_S + BODY_S


def _is_idle(connection: Any) -> bool:
    """Return whether the connection is idle; an incomplete request counts as idle."""
    return connection.cycle is None or bool(connection.cycle.response_complete)


def bounded_protocol() -> type[BoundedProtocol]:
    """Return the class of connections, with this process' bound on how many there may be."""
    return type("Connection", (BoundedProtocol,), {"most": most_connections()})


class NoRepeats(logging.Filter):
    """Logs each kind of message once a minute, so that requests cannot fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._shown_s: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a message is logged."""
        error = record.exc_info[0] if record.exc_info else None
        # Of the message as it is written in the program: what is filled in differs each time.
        kind = (str(record.msg).partition("\n")[0][:80], error.__name__ if error else "")
        now_s = time.monotonic()
        if now_s - self._shown_s.get(kind, -_REPEATED_S) < _REPEATED_S:
            return False
        if len(self._shown_s) > 1000:
            self._shown_s.clear()
        self._shown_s[kind] = now_s
        return True


def repeat_nothing() -> None:
    """Stop the logs of uvicorn and asyncio from repeating messages."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(each, NoRepeats) for each in logger.filters):
            logger.addFilter(NoRepeats())
