"""Requests to a running dashboard, as its page makes them or as somebody else would."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlencode

from mumoe.dashboard.server import Running


def request(
    running: Running,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    headers: dict[str, str | None] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content; headers of the page are added unless they are given as None."""
    own: dict[str, str | None] = {
        "Host": f"127.0.0.1:{running.port}",
        "Origin": f"http://127.0.0.1:{running.port}",
        "Cookie": f"mumoe_{running.port}={running.keys.token}",
        "X-Mumoe-Page": running.keys.page,
        "Sec-Fetch-Site": "same-origin",
        **(headers or {}),
    }
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in own.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None and "Content-Length" not in own:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def get(running: Running, path: str, **query: Any) -> Any:
    """The JSON of an address."""
    status, _, content = request(running, "GET", f"{path}?{urlencode(query)}")
    assert status == 200, content
    return json.loads(content)


def post(running: Running, path: str, **given: Any) -> Any:
    """The JSON that a change answers with."""
    status, _, content = request(running, "POST", path, json.dumps(given).encode())
    assert status == 200, content
    return json.loads(content)


def refused(running: Running, path: str, **given: Any) -> str:
    """What is said against a change."""
    status, _, content = request(running, "POST", path, json.dumps(given).encode())
    assert status == 400, content
    return str(json.loads(content)["error"])
