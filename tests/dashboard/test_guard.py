"""Who is let in: the page itself and nobody else."""

from __future__ import annotations

import hmac
import socket

import pytest

from dashboard.talking import request
from mumoe.dashboard import guard


def test_the_page_opens_with_its_token_and_sets_a_cookie_that_scripts_cannot_read(running):
    closed = {"Cookie": None, "Origin": None, "X-Mumoe-Page": None, "Sec-Fetch-Site": "none"}
    status, headers, content = request(running, "GET", f"/?token={running.keys.token}", headers=closed)
    assert status == 200
    assert b"/main.js" in content
    cookie = headers["set-cookie"]
    assert cookie == f"mumoe_{running.port}={running.keys.token}; Path=/; HttpOnly; SameSite=Strict"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "access-control-allow-origin" not in headers
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/main.js", "/api/state", "/api/picture?image=0", "/nothing"])
@pytest.mark.parametrize("cookie", [None, "mumoe_1=x", "{name}=wrong", "{name}=", "{name}={half}", "=;;"])
def test_no_token_no_answer(running, path, cookie):
    name, half = f"mumoe_{running.port}", running.keys.token[:-1]
    sent = cookie.format(name=name, half=half) if cookie else None
    status, headers, content = request(running, "GET", path, headers={"Cookie": sent})
    assert status == 401
    assert running.keys.page.encode() not in content
    assert "set-cookie" not in headers


@pytest.mark.parametrize("query", ["token=", "token=wrong", "token={half}", "Token={token}", "token={token}x"])
def test_a_wrong_token_in_the_address_opens_nothing(running, query):
    keys = running.keys
    text = query.format(half=keys.token[:-1], token=keys.token)
    assert request(running, "GET", f"/?{text}", headers={"Cookie": None})[0] == 401


def test_the_token_in_the_address_opens_the_page_alone(running):
    for path in ("/api/state", "/main.js"):
        assert request(running, "GET", f"{path}?token={running.keys.token}", headers={"Cookie": None})[0] == 401


def test_secrets_are_compared_in_constant_time(running, monkeypatch):
    compared = []
    plain = hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: (compared.append(b.decode()), plain(a, b))[1])
    request(running, "GET", "/?token=wrong", headers={"Cookie": f"mumoe_{running.port}=wrong"})
    assert compared == [running.keys.token] * 2


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "evil.example#127.0.0.1:{port}",
     "localhost.evil.example", "127.0.0.1@evil.example", "127.0.0.2:{port}", "0.0.0.0:{port}", "[::1]:{port}",
     "127.0.0.1:{port}x", "localhost:", "", None],
)  # fmt: skip
def test_other_hosts_are_refused_so_that_rebinding_a_name_does_not_help(running, host):
    sent = host.format(port=running.port) if host else None
    status, _, content = request(running, "GET", "/api/state", headers={"Host": sent, "Origin": None})
    assert status in (400, 421)  # without any Host it is no HTTP/1.1
    assert running.keys.page.encode() not in content


def test_localhost_is_this_machine_too(running):
    host = f"localhost:{running.port}"
    assert request(running, "GET", "/api/state", headers={"Host": host, "Origin": f"http://{host}"})[0] == 200


def test_a_tunnel_to_another_local_port_leads_to_the_whole_page(running):
    """Through ``ssh -L 9999:127.0.0.1:PORT`` the browser names port 9999 and knows nothing but the token."""
    host, arrived = "localhost:9999", {"X-Mumoe-Page": None, "Sec-Fetch-Site": "none", "Origin": None}
    opening = {**arrived, "Host": host, "Cookie": None}
    status, headers, _ = request(running, "GET", f"/?token={running.keys.token}", headers=opening)
    assert status == 200
    cookie = headers["set-cookie"].partition(";")[0]
    page = {"Host": host, "Origin": f"http://{host}", "Cookie": cookie}
    assert request(running, "GET", "/api/state", headers={**page, "Origin": None})[0] == 200
    status, _, content = request(running, "POST", "/api/compare", b'{"edits": []}', headers=page)
    assert status == 200, content
    without = {**page, "Cookie": None}
    assert request(running, "GET", "/api/state", headers={**without, "Origin": None})[0] == 401
    other = {**page, "Origin": f"http://127.0.0.1:{running.port}"}
    assert request(running, "POST", "/api/compare", b'{"edits": []}', headers=other)[0] == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://127.0.0.1:1", "http://localhost:{port}", "https://127.0.0.1:{port}", "null", ""],
)
def test_other_origins_are_refused(running, origin):
    headers = {"Origin": origin.format(port=running.port)}
    assert request(running, "GET", "/api/state", headers=headers)[0] == 403
    assert request(running, "POST", "/api/compare", b"{}", headers=headers)[0] == 403
    answer = request(running, "OPTIONS", "/api/compare", headers=headers)
    assert not [name for name in answer[1] if name.startswith("access-control")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_elsewhere_cannot_load_anything_with_the_cookie(running, site):
    headers = {"Origin": None, "Sec-Fetch-Site": site}
    assert request(running, "GET", "/api/picture?image=0", headers=headers)[0] == 403
    assert request(running, "GET", "/main.js", headers=headers)[0] == 403
    opened = {**headers, "Cookie": None}
    assert request(running, "GET", f"/?token={running.keys.token}", headers=opened)[0] == 200  # a link that was clicked


@pytest.mark.parametrize("secret", [None, "", "wrong"])
def test_changes_need_the_secret_that_only_the_page_knows(running, secret):
    for path in ("/api/save", "/api/compare", "/api/upload", "/api/rewrite"):
        assert request(running, "POST", path, b"{}", headers={"X-Mumoe-Page": secret})[0] == 403


@pytest.mark.parametrize("path", ["/api/save", "/api/load", "/api/rewrite", "/api/split", "/api/upload"])
def test_nothing_is_changed_by_get(running, path):
    assert request(running, "GET", f"{path}?name=x")[0] == 405
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert request(running, method, path)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/../run.json",
        "/..%2frun.json",
        "/static/../../app.py",
        "/vendor/../app.py",
        "/vendor/%2e%2e/%2e%2e/app.py",
        "//etc/passwd",
        "/index.html",
        "/main.js/",
        "/api/picture?image=../run.json",
        "/api/picture?image=-1",
        "/api/picture?image=99999999",
        "/api/picture?image=0&size=5000",
    ],
)
def test_no_path_leads_anywhere(running, path):
    status, _, content = request(running, "GET", path)
    assert status == 404 or (status == 400 and b"expected" in content)
    assert b"root:" not in content


@pytest.mark.parametrize(
    ("head", "body"),
    [("Content-Length: 100000", b"{"), ("Transfer-Encoding: chunked", b"zz\r\n")],
    ids=["broken off", "no chunks"],
)
def test_a_connection_that_breaks_leaves_no_traceback_in_the_log(running, caplog, head, body):
    own = {"Host": f"127.0.0.1:{running.port}", "Cookie": f"mumoe_{running.port}={running.keys.token}"}
    lines = ["POST /api/compare HTTP/1.1", *(f"{name}: {value}" for name, value in own.items())]
    lines += [f"X-Mumoe-Page: {running.keys.page}", head] if b"{" in body else [head]
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    for _ in range(3):  # answered after the other connection was looked at
        assert request(running, "GET", "/api/state")[0] == 200
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_it_listens_on_this_machine_alone(running):
    assert running.socket.getsockname()[0] == "127.0.0.1"
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        if not address.startswith("127."):
            with pytest.raises(OSError), socket.create_connection((address, running.port), timeout=0.5):
                pass


def test_a_page_of_an_earlier_session_is_told_so(running):
    status, _, content = request(running, "POST", "/api/compare", b"{}", headers={"X-Mumoe-Page": "old"})
    assert (status, content) == (403, b"This page is of an earlier session. Load it again.")
