"""Decides whose requests are answered, and limits what a browser does with the answers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cogcache.errors import ConfigError
from cogcache.web.rendering import render

MIN_TOKEN: Final = 16
COOKIE: Final = "cogcache"
_MAX_FORM: Final = 4096
_HEADERS: Final = {
    # Only our own files, no inline script or style; nothing may frame a page or be sent from it.
    "content-security-policy": "default-src 'none'; img-src 'self'; media-src 'self';"
    " style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_address(host: str, token: str | None) -> None:
    """Refuse to serve other machines without a token.

    Raises:
        ConfigError: the address is not of this machine alone and there is no token, or the token
            is too short.
    """
    make = 'make one: python3 -c "import secrets; print(secrets.token_urlsafe())"'
    if token is None and not is_loopback(host):
        raise ConfigError(f"others can reach {host}: it needs --token", make)
    if token is not None and len(token) < MIN_TOKEN:
        raise ConfigError(f"the token has fewer than {MIN_TOKEN} characters", make)


@dataclass(frozen=True, slots=True)
class Guard:
    """Middleware: lets in who may, and sends every answer with the headers that protect it.

    Without a token only requests that name this machine pass: a page elsewhere could have its own
    name point here and read the answers as its own.
    """

    app: ASGIApp
    token: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        with suppress(ClientDisconnect):  # before all of the request was there
            app = await self._refusal(Request(scope, receive)) or self.app
            await app(scope, receive, send_guarded)

    async def _refusal(self, request: Request) -> Response | None:
        if self.token is None:
            return None if is_loopback(_host(request.headers)) else _wrong_host(request)
        if request.url.path.startswith("/static/") or self._admits(request):
            return None
        if request.method == "POST" and request.url.path == "/token":
            return self._enter(request, await _posted_token(request))
        if given := request.query_params.get("token"):
            return self._enter(request, given)
        return _ask(request, "")

    def _admits(self, request: Request) -> bool:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._right(given):
            return True
        return _same(_cookie(request.headers), self._pass())

    def _right(self, given: str) -> bool:
        return self.token is not None and _same(given, self.token)

    def _pass(self) -> str:
        # Not the token itself: what a browser keeps opens these pages and nothing else.
        return hmac.digest((self.token or "").encode(), b"cogcache pages", "sha256").hex()

    def _enter(self, request: Request, given: str) -> Response:
        if not self._right(given):
            return _ask(request, "This is not the token.")
        rest = [pair for pair in parse_qsl(request.url.query) if pair[0] != "token"]
        path = "/" if request.method == "POST" else "/" + request.url.path.lstrip("/")
        response = RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, 303)
        response.set_cookie(COOKIE, self._pass(), httponly=True, samesite="lax", path="/")
        return response


def _same(given: str, expected: str) -> bool:
    """Compare two texts in a time that does not depend on where they differ."""
    digests = (hashlib.sha256(text.encode(errors="replace")).digest() for text in (given, expected))
    return hmac.compare_digest(*digests)


def _cookie(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _host(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


async def _posted_token(request: Request) -> str:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM:
            return ""
    return parse_qs(body.decode(errors="replace")).get("token", [""])[0]


def _ask(request: Request, problem: str) -> Response:
    response = render(request, "token.html", {"problem": problem}, status=401)
    response.headers["www-authenticate"] = "Bearer"
    return response


def _wrong_host(request: Request) -> Response:
    problem = "These pages answer only to the names of this machine."
    hint = "Use http://127.0.0.1, or start `cogcache serve` with --token."
    return render(request, "error.html", {"problem": problem, "hint": hint}, status=421)
