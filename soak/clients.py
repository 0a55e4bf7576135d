"""Twenty clients of one dashboard: how long they wait, what they keep of each other's edits, and what strangers get."""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image

import mumoe
from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.editing.edit_files import read_edit_file
from soak.exporting import TARGETS, pictures, settings, weights
from soak.large_run import make_run
from soak.part import Found, Given, Part

CLIENTS = 20

CLASSES = 40

SHARED_FILES, SHARED_EXPERTS = ("shared-a", "shared-b", "shared-c"), (2, 3, 4, 5)
"""What all clients change at once."""

MOST_EDITS = 12
"""Edits of a shared file from which its clients rather undo."""

PAUSE = 0.5
"""Seconds that a client waits between two requests, on average: a person does more with a page than ask."""

GROWTH = 64 * 2**20
"""Bytes that the server may hold more at the end than after the warm-up."""

WARM_UP = 0.25
"""Share of the time after which memory is compared."""


# A running dashboard --------------------------------------------------------------------------------------


@dataclass
class Server:
    """A dashboard in a process of its own.

    Attributes:
        port, token, page: Where it is, and its secrets.
        process: The process.
        log: File of what it says.
        run: What it answers about its run.
    """

    port: int
    token: str
    process: subprocess.Popen[str]
    log: Path
    page: str = ""
    run: dict[str, Any] = field(default_factory=dict)

    def headers(self) -> dict[str, str | None]:
        """Those that the page sends."""
        return {
            "Host": f"127.0.0.1:{self.port}",
            "Origin": f"http://127.0.0.1:{self.port}",
            "Cookie": f"mumoe_{self.port}={self.token}",
            "X-Mumoe-Page": self.page,
        }

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str | None] | None = None
    ) -> tuple[int, str, bytes]:
        """Status, type and content of an answer; headers given as None are left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sent = {**self.headers(), **(headers or {})}
            if body is not None and "Content-Length" not in sent:
                sent["Content-Length"] = str(len(body))
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheader("content-type", ""), answer.read()
        finally:
            connection.close()

    def memory(self) -> int | None:
        """Resident bytes of the process, where the system reports them."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), None)


@contextlib.contextmanager
def started(run: Path, log: Path) -> Iterator[Server]:
    """A dashboard as a user starts it, with its run open."""
    command = [sys.executable, "-m", "mumoe.cli", "dashboard", str(run), "--no-browser"]
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if "token=" not in url:
            raise RuntimeError(f"the dashboard did not start: {log.read_text()[-300:]}")
        server = Server(int(url.split(":")[2].partition("/")[0]), url.partition("token=")[2], process, log)
        while True:
            state = json.loads(server.ask("GET", "/api/state")[2])
            server.page = state["page"]
            if "run" in state:
                break
            if state["opening"]["state"] == "failed":
                raise RuntimeError(state["opening"]["error"])
            time.sleep(0.05)
        server.run = state["run"]
        yield server
    finally:
        process.terminate()
        process.wait(30)


# Clients --------------------------------------------------------------------------------------------------


@dataclass
class Change:
    """One accepted change: what it was made from, what came of it, and when.

    Attributes:
        before, after: Versions.
        added, removed: Name of an edit.
    """

    before: str
    after: str
    sent: float
    answered: float
    added: str = ""
    removed: str = ""


class Client:
    """One page: it looks around, edits, undoes and names experts, as the others do.

    Attributes:
        seconds: Time of every request, by kind.
        accepted: Changes of shared files, by name; of notes, by expert.
        refused: Changes that were refused since somebody else was faster.
        wrong: One line for each answer that should not have come.
    """

    def __init__(self, server: Server, number: int, seed: int) -> None:
        self.server, self.number = server, number
        self.random = random.Random(f"{seed} {number}")
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.accepted: dict[str, list[Change]] = defaultdict(list)
        self.refused = 0
        self.wrong: list[str] = []
        self.made = 0
        self.kinds: list[tuple[str, Callable[[], None]]] = [
            ("list of experts", self.experts),
            ("one expert", self.expert),
            ("list of images", self.images),
            ("one image taken apart", self.image),
            ("compare edits", self.compare),
            ("compare edits", self.compare),
            ("audit", self.audit),
            ("notes", self.notes),
            ("edit a shared file", self.edit),
            ("edit a shared file", self.edit),
            ("name a shared expert", self.name),
        ]

    def work(self, until: float) -> None:
        """Make requests until a time."""
        while time.monotonic() < until:
            _, act = self.random.choice(self.kinds)
            try:
                act()
            except Exception as error:  # counted, so that one failure does not end the client
                self.wrong.append(f"client {self.number}: {type(error).__name__}: {error}"[:300])
            time.sleep(self.random.uniform(0, 2 * PAUSE))

    def json(self, kind: str, method: str, path: str, given: Any = None, refusal: str = "") -> Any:
        """The JSON of an answer; None if it was refused with these words."""
        body = None if given is None else json.dumps(given).encode()
        begun = time.monotonic()
        status, _, content = self.server.ask(method, path, body)
        self.seconds[kind].append(time.monotonic() - begun)
        found = json.loads(content)
        if status == 200:
            return found
        if refusal and status == 400 and refusal in found["error"]:
            self.refused += 1
            return None
        raise RuntimeError(f"{kind}: {status} {found.get('error')}")

    # Looking

    def experts(self) -> None:
        query = {"level": 0, "gap": self._sensitive(), "label": self.random.choice(["", *self.server.run["classes"]])}
        found = self.json("list of experts", "GET", "/api/experts?" + urlencode(query))
        if len(found["load"]) != self._experts():
            raise RuntimeError("a list without some experts")

    def expert(self) -> None:
        self.json("one expert", "GET", f"/api/expert?level=0&expert={self._any()}")

    def images(self) -> None:
        given = {"split": "val", "offset": self.random.randrange(1000), "limit": 100}
        given |= {"level": 0, "expert": self._any()} if self.random.random() < 0.5 else {"kind": "wrong"}
        self.json("list of images", "POST", "/api/images", given)

    def image(self) -> None:
        total = sum(self.server.run["splits"].values())
        self.json("one image taken apart", "POST", "/api/image", {"image": self.random.randrange(total)})

    def compare(self) -> None:
        edits = [self._edit(f"e{n}") for n in range(self.random.randint(0, 20))]
        subgroup = {"head": self.server.run["classes"][0], "sensitive": self._sensitive(), "value": self._value()}
        given = {"split": "val", "edits": edits, "subgroup": subgroup}
        found = self.json("compare edits", "POST", "/api/compare", given)
        if len(found["edits"]) != len(edits):
            raise RuntimeError("a comparison of other edits")

    def audit(self) -> None:
        target = self.random.choice(self.server.run["classes"][:4])
        self.json("audit", "GET", "/api/audit?" + urlencode({"target": target}))

    def notes(self) -> None:
        self.json("notes", "GET", "/api/notes")

    # Changing what the others change too

    def edit(self) -> None:
        """Add an edit to a shared file, or undo the last one, from the version that was just loaded."""
        name, kind = self.random.choice(SHARED_FILES), "edit a shared file"
        version, entries = "", []
        if any(file["name"] == name for file in self.json(kind, "GET", "/api/edits")):
            found = self.json(kind, "POST", "/api/load", {"name": name})
            version, entries = found["version"], found["entries"]
        self.made += 1
        new = f"c{self.number}-{self.made}"
        undo = len(entries) > 1 and (len(entries) >= MOST_EDITS or self.random.random() < 0.3)
        changed = entries[:-1] if undo else [*entries, self._edit(new)]
        given = {"name": name, "split": "val", "edits": changed, "replace": version}
        begun = time.monotonic()
        answer = self.json(kind, "POST", "/api/save", given, "elsewhere" if version else "which exists")
        if answer is not None:
            added, removed = ("", entries[-1]["name"]) if undo else (new, "")
            change = Change(version, answer["version"], begun, time.monotonic(), added, removed)
            self.accepted[name].append(change)

    def name(self) -> None:
        """Name a shared expert, from what was just shown."""
        kind, expert = "name a shared expert", self.random.choice(SHARED_EXPERTS)
        levels = self.json(kind, "GET", "/api/notes")["levels"]
        before = levels.get("0", {}).get(str(expert), {"name": "", "note": ""})
        self.made += 1
        after = f"c{self.number}-{self.made}"
        given = {"level": "0", "expert": expert, "name": after, "note": "", "before": before}
        begun = time.monotonic()
        if self.json(kind, "POST", "/api/note", given, "changed elsewhere") is not None:
            self.accepted[str(expert)].append(Change(before["name"], after, begun, time.monotonic(), after))

    def _edit(self, name: str) -> dict[str, Any]:
        factor = self.random.choice([-1.0, 0.0, 0.5])
        return {"name": name, "kind": "scale", "expert": self._any(), "level": 0, "factor": factor, "strength": 1.0}

    def _any(self) -> int:
        return self.random.randrange(self._experts())

    def _experts(self) -> int:
        return int(self.server.run["num_experts"][0])

    def _value(self) -> str:
        return str(self.server.run["attributes"][self._sensitive()][-1])

    def _sensitive(self) -> str:
        return next(name for name in self.server.run["sensitive"] if name not in self.server.run["classes"])


# Whether nothing was lost ---------------------------------------------------------------------------------


def lost(what: str, changes: Sequence[Change], last: str) -> list[str]:
    """One line if accepted changes are not one chain from nothing to what is stored, each made from the one before.

    A version may occur twice, where an edit was made and undone; so the changes are edges of a graph, and there has to
    be a walk that takes each of them once.
    """
    out, into = Counter(change.before for change in changes), Counter(change.after for change in changes)
    starts = [version for version in out.keys() | into.keys() if out[version] - into[version] > 0]
    ends = [version for version in out.keys() | into.keys() if out[version] - into[version] < 0]
    uneven = [version for version in out.keys() | into.keys() if abs(out[version] - into[version]) > 1]
    if not changes:
        return [] if not last else [f"{what}: stored, and no client changed it"]
    if uneven or starts != [""] or ends != [last]:
        shown = f"{len(changes)} accepted changes start at {starts[:3]} and end at {ends[:3]}, stored is {last!r}"
        return [f"{what}: {shown}: one was lost or counted twice"]
    reached, edges = {""}, defaultdict(set)
    for change in changes:
        edges[change.before].add(change.after)
    queue = [""]
    while queue:
        for version in edges[queue.pop()] - reached:
            reached.add(version)
            queue.append(version)
    apart = [change for change in changes if change.before not in reached]
    return [f"{what}: {len(apart)} accepted changes follow from no other"] if apart else []


def misplaced(what: str, changes: Sequence[Change], stored: Sequence[str]) -> list[str]:
    """One line for each edit that was accepted and is not stored exactly once and in the order of acceptance."""
    kept = Counter(change.added for change in changes if change.added)
    kept.subtract(change.removed for change in changes if change.removed)
    expected, found = {name for name, count in kept.items() if count > 0}, Counter(stored)
    lines = [f"{what}: {name} was accepted and is not stored" for name in sorted(expected - found.keys())]
    lines += [f"{what}: {name} is stored {count} times" for name, count in found.items() if count > 1]
    lines += [f"{what}: {name} is stored and was not accepted" for name in sorted(found.keys() - expected)]
    when = {change.added: change for change in changes if change.added}
    known = [when[name] for name in stored if name in when]
    for first, second in itertools.pairwise(known):
        if first.sent > second.answered:
            lines.append(f"{what}: {second.added} was accepted before {first.added} and is stored after it")
    return lines


def check_stored(run: Path, clients: Sequence[Client], found: Found) -> None:
    """Compare the files of a run with what clients were told."""
    from mumoe.files import digest_file

    for name in SHARED_FILES:
        changes = [change for client in clients for change in client.accepted[name]]
        path = run / "edits" / f"{name}.json"
        stored = list(read_edit_file(path).edits) if path.is_file() else []
        found.count("accepted edits of shared files, undone ones included", len(changes))
        found.count("of them undone", sum(bool(change.removed) for change in changes))
        found.faults += lost(name, changes, digest_file(path)[:16] if path.is_file() else "")
        found.faults += misplaced(name, changes, stored)
    notes = ExpertNotes.of_run(run)
    for expert in SHARED_EXPERTS:
        changes = [change for client in clients for change in client.accepted[str(expert)]]
        found.count("accepted names of shared experts", len(changes))
        found.faults += lost(f"expert {expert}", changes, notes.name(expert))
    found.count("changes refused because another client was faster", sum(client.refused for client in clients))


def use(server: Server, run: Path, given: Given, found: Found) -> None:
    """Let the clients work, and measure."""
    seconds = given.many(600, 3)
    clients = [Client(server, number, given.seed) for number in range(CLIENTS)]
    begun = time.monotonic()
    threads = [threading.Thread(target=client.work, args=(begun + seconds,)) for client in clients]
    for thread in threads:
        thread.start()
    memory: list[tuple[float, int]] = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.5)
        if (size := server.memory()) is not None:
            memory.append((time.monotonic() - begun, size))
    found.count("clients", CLIENTS)
    report_times(clients, found)
    report_memory(memory, seconds, found)
    found.faults += [line for client in clients for line in client.wrong]
    check_stored(run, clients, found)


def report_times(clients: Sequence[Client], found: Found) -> None:
    """Median, 95th and 99th percentile of each kind of request, in milliseconds."""
    kinds = sorted({kind for client in clients for kind in client.seconds})
    for kind in kinds:
        times = [1000 * second for client in clients for second in client.seconds[kind]]
        found.count("requests of clients", len(times))
        for name, value in zip(("median", "95th", "99th"), np.percentile(times, [50, 95, 99]), strict=True):
            found.measured[f"{kind}, {name} in ms"] = round(float(value), 1)


def report_memory(memory: Sequence[tuple[float, int]], seconds: float, found: Found) -> None:
    """Compare the medians of resident memory in the tenth after the warm-up and in the last tenth."""
    if not memory or seconds < 60:
        reason = "a short run says nothing about it" if memory else "the system does not report it"
        found.skipped.append(f"memory of the server: {reason}")
        return

    def median(start: float) -> float:
        part = [size for at, size in memory if start * seconds <= at <= (start + 0.1) * seconds]
        return statistics.median(part or [memory[-1][1]])

    early, late = median(WARM_UP), median(0.9)
    found.measured["server's memory after the warm-up in 10^6 bytes"] = round(early / 1e6, 1)
    found.measured["server's memory at the end in 10^6 bytes"] = round(late / 1e6, 1)
    found.measured["bound of its growth in 10^6 bytes"] = round(GROWTH / 1e6, 1)
    if late - early > GROWTH:
        found.faults.append(f"the server's memory grew by {(late - early) / 1e6:.0f} million bytes")


# Strangers ------------------------------------------------------------------------------------------------


def strangers(server: Server, given: Given, found: Found) -> None:
    """Send what no page sends; each has to be answered with a status of 400 to 499 and one line."""
    page, port = server.headers(), server.port
    for label, method, path, body, headers in requests_of_strangers(server):
        _judged(server, found, label, method, path, body, headers)
    for label, data in raw_requests(server):
        _raw(server, found, label, data)
    generator = random.Random(given.seed)
    for number in range(given.many(2000, 60)):
        name = generator.choice(["Host", "Origin", "Cookie", "X-Mumoe-Page"])
        wrong = "".join(generator.choice("abc127.0:/-_=;,%\\ \t'\"") for _ in range(generator.randrange(1, 60))).strip()
        path = (
            generator.choice(["/api/state", "/api/notes", "/", "/main.js"]) if name != "X-Mumoe-Page" else "/api/note"
        )
        method = "POST" if name == "X-Mumoe-Page" else "GET"
        if wrong in (page[name], f"127.0.0.1:{port}") or (name == "Host" and _is_local(wrong)):
            continue
        body = b"{}" if method == "POST" else None
        headers = {name: wrong, **({"Origin": None} if name == "Host" else {})}
        _judged(server, found, f"drawn {name} {number}", method, path, body, headers)
    for _ in range(given.many(200, 20)):
        _hang_up(server, generator)
        found.count("connections that were broken off")


def _is_local(host: str) -> bool:
    return host.startswith(("127.0.0.1", "localhost"))


def requests_of_strangers(server: Server) -> Iterator[tuple[str, str, str, bytes | None, dict[str, str | None]]]:
    """Label, method, path, body and headers."""
    port, token = server.port, server.token
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.2", "0.0.0.0", "[::1]", "127.0.0.1@evil.example", ""):
        yield "Host", "GET", "/api/state", None, {"Host": host, "Origin": None}
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", "http://127.0.0.1:1", ""):
        yield "Origin", "POST", "/api/compare", b"{}", {"Origin": origin}
        yield "Origin", "GET", "/api/state", None, {"Origin": origin}
    for site in ("cross-site", "same-site"):
        yield "Sec-Fetch-Site", "GET", "/main.js", None, {"Origin": None, "Sec-Fetch-Site": site}
    cookies = (
        "",
        "x",
        f"mumoe_{port}=",
        f"mumoe_{port}={token[:-1]}",
        f"mumoe_1={token}",
        f"mumoe_{port}={token}x",
        ";=",
    )
    for cookie in (None, *cookies, "a=" * 3000):
        yield "token", "GET", "/api/state", None, {"Cookie": cookie}
        yield "token", "POST", "/api/note", b"{}", {"Cookie": cookie}
    for secret in (None, "", "wrong", token, "x" * 5000):
        yield "second secret", "POST", "/api/save", b"{}", {"X-Mumoe-Page": secret}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "FOO"):
        yield "method", method, "/api/state", None, {}
        yield "method", method, "/", None, {}
    for path in ("/api/save", "/api/upload", "/api/note", "/api/rewrite"):
        yield "method", "GET", path, None, {}
    for path in PATHS:
        yield "path", "GET", path, None, {}
    for name in ("../evil", "..", "/etc/passwd", "a/b", "a\\b", "a\0b", "x" * 300, ".hidden", "", "a.json"):
        saved = json.dumps({"name": name, "edits": [{"name": "a", "kind": "ablate", "expert": 0, "strength": 1}]})
        yield "name of a file", "POST", "/api/save", saved.encode(), {}
        yield "name of a file", "POST", "/api/load", json.dumps({"name": name}).encode(), {}
    for path, body in BODIES:
        yield "body", "POST", path, body, {}
    yield "large body", "POST", "/api/compare", b"[" + b"0," * (3 << 20) + b"0]", {}
    yield "length", "POST", "/api/compare", b"{}", {"Content-Length": "99999999999"}
    yield "length of an upload", "POST", "/api/upload", b"{}", {"Content-Length": "99999999999999999999"}
    for query in ("level=x&expert=0", "level=0&expert=-1", f"level=0&expert={'9' * 5000}", "level=99&expert=0"):
        yield "query", "GET", f"/api/expert?{query}", None, {}
    for query in ("split=x&level=0", "level=0&label=nothing", "level=1e9", "level=0&attribute=x&value=y", "level=%ff"):
        yield "query", "GET", f"/api/experts?{query}", None, {}
    for query in ("number=", "number=-1", "number=0x1", f"number={'1' * 400}"):
        yield "query", "GET", f"/api/job?{query}", None, {}


PATHS = (
    "/../run.json",
    "/..%2frun.json",
    "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/....//....//etc/passwd",
    "/..\\..\\run.json",
    "/static/../../app.py",
    "/vendor/../app.py",
    "/vendor/%2e%2e/%2e%2e/app.py",
    "/vendor/..%252f..%252fapp.py",
    "//etc/passwd",
    "/etc/passwd",
    "/run.json",
    "/config.toml",
    "/index.html",
    "/main.js/",
    "/main.js%00.css",
    "/%00",
    "/api",
    "/api/",
    "/api/../run.json",
    "/api/picture?image=../run.json",
    "/api/picture?image=-1",
    "/api/picture?image=99999999999",
    "/api/picture?image=0&size=5000",
    "/api/card?level=0&expert=-5",
    "/" + "a" * 8000,
)

_ABLATE = {"name": "a", "kind": "ablate", "expert": 0, "level": 0, "strength": 1}


def _sequence(*values: Any) -> tuple[Any, ...]:
    return values


BODIES: tuple[tuple[str, bytes], ...] = (
    *(("/api/compare", body) for body in (b"", b"[]", b"null", b"3", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000)),
    ("/api/compare", b'{"edits": NaN}'),
    ("/api/compare", b'{"edits": 1e999}'),
    *(
        ("/api/compare", json.dumps({"edits": edits}).encode())
        for edits in _sequence(
            3,
            [3],
            [{}],
            [{"name": "a"}],
            [{**_ABLATE, "kind": "open"}],
            [{**_ABLATE, "expert": 10**9}],
            [{**_ABLATE, "expert": "x"}],
            [{**_ABLATE, "expert": [0]}],
            [{**_ABLATE, "level": 7}],
            [{**_ABLATE, "strength": "many"}],
            [{**_ABLATE, "strength": None}],
            [{**_ABLATE, "path": "/etc/passwd"}],
            [_ABLATE, _ABLATE],
            [{**_ABLATE, "name": str(n)} for n in range(500)],
            [{"name": "r", "kind": "rewrite", "head": 0, "factors": [], "strength": 1}],
            [{"name": "r", "kind": "rewrite", "head": 0, "mean": "unknown", "strength": 1}],
            [{"name": "r", "kind": "rewrite", "head": 10**6, "factors": [[[1.0]]], "strength": 1}],
            [{"name": "c", "kind": "correct", "head": 0, "terms": "x", "strength": 1}],
            [{"name": "c", "kind": "correct", "head": 0, "terms": [[[10**9], 1.0]], "strength": 1}],
        )
    ),
    *(
        ("/api/compare", json.dumps({"edits": [], **more}).encode())
        for more in (
            {"split": "nothing"},
            {"split": 3},
            {"subgroup": "x"},
            {"subgroup": {"head": "x", "sensitive": "y"}},
            {"subgroup": {"label": "x"}},
            {"resamples": "x"},
        )
    ),
    *(
        ("/api/images", json.dumps(given).encode())
        for given in ({"kind": "x"}, {"offset": "x"}, {"expert": "x"}, {"expert": -1}, {"expert": 0, "level": 9})
    ),
    *(
        ("/api/image", json.dumps(given).encode())
        for given in ({"image": -1}, {"image": 10**12}, {"image": 0.5}, {"image": None}, {"upload": 77}, {"labels": 3})
    ),
    *(
        ("/api/note", json.dumps(given).encode())
        for given in (
            {},
            {"level": "0", "expert": 10**6, "name": "a", "note": "", "before": {"name": "", "note": ""}},
            {"level": "9", "expert": 0, "name": "a", "note": "", "before": {"name": "", "note": ""}},
            {"level": "0", "expert": 0, "name": "a" * 81, "note": "", "before": {"name": "", "note": ""}},
            {"level": "0", "expert": 0, "name": "a", "note": "b" * 5000, "before": {"name": "", "note": ""}},
            {"level": "0", "expert": 0, "name": ["a"], "note": "", "before": {"name": "", "note": ""}},
            {"level": "0", "expert": 0, "name": "a", "note": "", "before": 3},
        )
    ),
    *(
        ("/api/parse", json.dumps({"text": text}).encode())
        for text in ("", "x", "ablate:", "ablate:9999999", "swap:1", "é")
    ),
    ("/api/text/generate", b"{}"),
)
"""Path and body of requests that make no sense."""


def raw_requests(server: Server) -> Iterator[tuple[str, bytes]]:
    """Label and bytes of requests that are no HTTP, or too much of it."""
    host = f"Host: 127.0.0.1:{server.port}\r\nCookie: mumoe_{server.port}={server.token}\r\n".encode()
    yield "no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n"
    yield "no HTTP", b"hello\r\n\r\n"
    yield "no version", b"GET /\r\n\r\n"
    yield "no Host", b"GET /api/state HTTP/1.1\r\n\r\n"
    yield "two lengths", b"POST /api/note HTTP/1.1\r\n" + host + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
    yield "negative length", b"POST /api/note HTTP/1.1\r\n" + host + b"Content-Length: -1\r\n\r\n{}"
    yield "bad chunks", b"POST /api/note HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"
    yield "long header", b"GET /api/state HTTP/1.1\r\n" + host + b"X-Long: " + b"a" * (1 << 20) + b"\r\n\r\n"
    yield (
        "many headers",
        b"GET /nothing HTTP/1.1\r\n" + host + b"".join(b"X-%d: a\r\n" % n for n in range(5000)) + b"\r\n",
    )
    yield "long path", b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n" + host + b"\r\n"
    yield "two Hosts", b"GET /api/state HTTP/1.1\r\n" + host + b"Host: evil.example\r\n\r\n"


def _judged(
    server: Server,
    found: Found,
    label: str,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str | None],
) -> None:
    kind = label.partition(" ")[0] if label.startswith("drawn") else label
    found.count(f"wrong requests: {kind}")
    try:
        status, _, content = server.ask(method, path, body, headers)
    except (BrokenPipeError, ConnectionResetError):
        return  # refused before all of it was sent
    except (http.client.HTTPException, OSError) as error:
        found.faults.append(f"{label}: {method} {path[:60]}: {type(error).__name__}: {error}")
        return
    found.faults += _problems(f"{label}: {method} {path[:60]} {(body or b'')[:60]!r}", status, content)


def _raw(server: Server, found: Found, label: str, data: bytes) -> None:
    found.count(f"wrong requests: {label}")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except (BrokenPipeError, ConnectionResetError):
            return
        except OSError as error:
            found.faults.append(f"{label}: {type(error).__name__}: {error}")
            return
    if not answer:
        return  # closed without an answer
    if not answer.startswith(b"HTTP/"):
        found.faults.append(f"{label}: an answer that is no HTTP: {answer[:60]!r}")
        return
    read = http.client.HTTPResponse(_Answered(answer))  # type: ignore[arg-type]
    read.begin()
    found.faults += _problems(label, read.status, read.read())


@dataclass
class _Answered:
    """Bytes in the place of a socket."""

    content: bytes

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self.content)


def _problems(what: str, status: int, content: bytes) -> list[str]:
    """What is wrong with the answer to a wrong request."""
    if not 400 <= status < 500:
        return [f"{what}: status {status}: {content[:120]!r}"]
    text = content.decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        text = str(found.get("error", "")) if isinstance(found, dict) else text
    if "Traceback" in text or "\n" in text:
        return [f"{what}: status {status}, more than one line: {text[:120]!r}"]
    return [f"{what}: status {status} without a reason"] if not text and status != 405 else []


def _hang_up(server: Server, generator: random.Random) -> None:
    """Break a connection off in the middle of a body, or before the answer."""
    head = [f"POST {generator.choice(['/api/compare', '/api/upload'])} HTTP/1.1"]
    head += [f"{name}: {value}" for name, value in server.headers().items()]
    data = ("\r\n".join([*head, "Content-Length: 100000"]) + "\r\n\r\n").encode() + b"{" * generator.randrange(5000)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(data)


# Uploads --------------------------------------------------------------------------------------------------


def pictures_of(generator: np.random.Generator) -> list[bytes]:
    """One small picture in each common format."""
    image = Image.fromarray(generator.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    found = []
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        file = io.BytesIO()
        image.save(file, kind)
        found.append(file.getvalue())
    return found


def malformed(number: int, good: Sequence[bytes], generator: np.random.Generator) -> tuple[bytes, bool]:
    """A file that is no picture, or a picture cut short or with changed bytes; and whether it may still be one."""
    base = bytearray(good[number % len(good)])
    kind = number % 5
    if kind == 0:
        return generator.bytes(int(generator.integers(0, 3000))), False
    if kind == 1:
        return bytes(base[: int(generator.integers(0, len(base) // 2))]), True
    if kind == 2:
        return bytes(base[: int(generator.integers(1, 12))]) + generator.bytes(500), True
    for place in generator.integers(0, min(len(base), 64 if kind == 3 else len(base)), 12):
        base[int(place)] = int(generator.integers(0, 256))
    return bytes(base), True


def uploads(server: Server, given: Given, found: Found) -> None:
    """Upload what cannot be read; the server has to say so each time, and still answer."""
    generator = np.random.default_rng(given.seed)
    good = pictures_of(generator)
    for picture in good:
        status, _, content = server.ask("POST", "/api/upload", picture)
        if status != 200:
            found.faults.append(f"an intact picture was refused: {content[:120]!r}")
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(4)
    for number in range(given.many(10_000, 100)):
        content, maybe = malformed(number, good, generator) if number else (bomb, False)
        status, _, answer = server.ask("POST", "/api/upload", content)
        found.count("malformed uploads")
        if status == 200 and maybe:
            found.count("of them still pictures")
        else:
            found.faults += _problems(f"upload {number}", status, answer)


def small_run(folder: Path) -> Path:
    """A run on images, for uploads."""
    folder.mkdir()
    weights(folder / "weights.safetensors")
    options = [f"target_columns={','.join(TARGETS)}", "group_columns=studio"]
    data = f"csv:{pictures(folder / 'data', 60)}"
    return mumoe.train(data, "CPMuMoE-r4-e6", data_options=options, **settings(folder, "run")).runs[0].path


# All of it ------------------------------------------------------------------------------------------------


def check_log(server: Server, found: Found) -> None:
    """The log must not hold a traceback."""
    text = server.log.read_text(errors="replace")
    if "Traceback" in text:
        start = text.index("Traceback")
        last = next((line for line in text[start:].splitlines()[1:] if line and line[0] not in " |"), "")
        found.faults.append(f"a traceback in the log, {text.count('Traceback')} in all: {last[:200]}")


def run(given: Given) -> Found:
    """Use a large run with many clients, then send what nobody should."""
    found = Found()
    small = small_run(given.work / "small")
    if not given.quick:
        folder = given.work / "large"
        folder.mkdir()
        path = make_run(folder, CLASSES, True)
        with started(path, given.work / "large.log") as server:
            use(server, path, given, found)
            strangers(server, given, found)
            _finish(server, found)
    with started(small, given.work / "small.log") as server:
        if given.quick:
            use(server, small, given, found)
        strangers(server, given, found)
        uploads(server, given, found)
        _finish(server, found)
    return found


def _finish(server: Server, found: Found) -> None:
    """Whether the server still answers, and what it said meanwhile."""
    status, _, content = server.ask("GET", "/api/state")
    if status != 200 or b'"run"' not in content:
        found.faults.append(f"the server answers {status} after all of it: {content[:120]!r}")
    check_log(server, found)


PART = Part(
    f"A dashboard used by {CLIENTS} clients loses no edit, holds no more memory, and refuses the rest in one line.",
    run,
)
