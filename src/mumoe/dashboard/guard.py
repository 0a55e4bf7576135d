"""Authentication of the dashboard: only the page that was opened with the token, on this machine, gets answers.

Other programs of the machine, other pages in the same browser and, by DNS rebinding, pages of other hosts can all
reach a port of 127.0.0.1. So every request must

- name this machine in ``Host``: 127.0.0.1 or localhost (a page of another host names its own, also after its name was
  rebound to this address). Any port is accepted, so that ``ssh -L 9999:127.0.0.1:PORT`` works from port 9999;
- come from this page, if the browser names the origin (``Origin`` equal to ``Host``, ``Sec-Fetch-Site``);
- know the token: in the address when the page is opened, then in a cookie that scripts cannot read and that is not
  sent along with requests of other sites;
- and, if it changes anything, be a POST with a second secret in a header, which only this page received.

There is no CORS header, and the content security policy lets the page load nothing from elsewhere.
"""

from __future__ import annotations

import contextlib
import hmac
import re
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from h11 import LocalProtocolError
from starlette.requests import ClientDisconnect

__all__ = ["HEADERS", "Guard", "Secrets"]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Sent with every answer."""

_LOCAL = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
"""What a browser on this machine, or on one end of a tunnel, calls the server."""

_GONE = (ClientDisconnect, LocalProtocolError)
"""The client broke the connection off, or the server did, since what followed was not HTTP; no answer would be read."""

CHANGES = "x-mumoe-page"
"""Header of the second secret."""


class Secrets:
    """Secrets that give a page access.

    Attributes:
        token: In the address, then in the cookie.
        page: In the header of requests that change something.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self.page = secrets.token_urlsafe(32)


class Guard:
    """ASGI middleware that accepts only the page's own requests.

    Args:
        app: The application.
        keys: The secrets.
        port: Port of the server; None until it is known (no request is accepted before).
    """

    def __init__(self, app: Any, keys: Secrets, port: int | None = None) -> None:
        self.app, self.keys, self.port = app, keys, port

    @property
    def cookie(self) -> str:
        """Name of the cookie: each port has its own, since browsers share cookies between the ports of a host."""
        return f"mumoe_{self.port}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        with contextlib.suppress(*_GONE):
            await self._guarded(scope, receive, send)

    async def _guarded(self, scope: Any, receive: Any, send: Any) -> None:
        opened = self._opened_by_token(scope)
        refusal = self._refusal(scope, opened)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        extra = [(b"set-cookie", self._set_cookie().encode())] if opened else []
        await self.app(scope, receive, _with_headers(send, extra))

    def _refusal(self, scope: Any, opened: bool) -> tuple[int, str] | None:
        """Status and reason, or None for a request that is accepted."""
        headers = _headers(scope)
        host = headers.get("host", "")
        if self.port is None or not _LOCAL.fullmatch(host):
            return 421, "This server answers to 127.0.0.1 and localhost alone."
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return 403, "Requests of other pages are refused."
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not opened:
            return 403, "Requests of other pages are refused."
        if not opened and not self._has_cookie(headers):
            return 401, "Open the address that mumoe dashboard printed: it holds a token."
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "Only GET and POST are answered."
        if scope["method"] == "POST" and not _same(headers.get(CHANGES, ""), self.keys.page):
            return 403, "This page is of an earlier session. Load it again."
        return None

    def _opened_by_token(self, scope: Any) -> bool:
        """Whether this is the page itself, opened with the token in the address."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        try:
            query = parse_qs(scope.get("query_string", b"").decode("ascii"), max_num_fields=8)
        except ValueError:
            return False
        return _same(query.get("token", [""])[0], self.keys.token)

    def _has_cookie(self, headers: Mapping[str, str]) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and _same(found.value, self.keys.token)

    def _set_cookie(self) -> str:
        return f"{self.cookie}={self.keys.token}; Path=/; HttpOnly; SameSite=Strict"


def _same(given: str, expected: str) -> bool:
    """Whether two secrets are equal, compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _headers(scope: Any) -> dict[str, str]:
    """Headers by name; one that is sent twice is ignored."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        found[key] = "" if key in found else value.decode("latin-1")
    return found


def _with_headers(send: Any, extra: list[tuple[bytes, bytes]]) -> Any:
    plain = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *plain, *extra]}
        await send(message)

    return sending


async def _answer(send: Any, status: int, text: str) -> None:
    sending = _with_headers(send, [])
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await sending({"type": "http.response.start", "status": status, "headers": headers})
    await sending({"type": "http.response.body", "body": text.encode()})
