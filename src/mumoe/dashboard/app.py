"""Addresses and answers. Every answer is JSON, a thumbnail, or a file of the front end."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mumoe.dashboard import WHO, audit_panel, edit_panel, expert_panel, image_panel, note_panel
from mumoe.dashboard.background import Report, Tasks, one_line
from mumoe.dashboard.guard import Guard, Secrets
from mumoe.dashboard.session import Session, Split
from mumoe.dashboard.steering import asked
from mumoe.dashboard.token_view import TokenSession
from mumoe.errors import JobError, UserError

__all__ = ["Dashboard", "make_app"]

MOST_JSON = 4 * 2**20
"""Bytes of a request in JSON."""

KEPT = "private, max-age=3600"
"""How long a browser may keep thumbnails, which do not change."""

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


class Dashboard:
    """What the addresses work on: the session, once it is open.

    Args:
        keys: The secrets.
    """

    def __init__(self, keys: Secrets) -> None:
        self.keys, self.tasks = keys, Tasks()
        self.opening: int | None = None
        self._thumbnails: image_panel.Thumbnails | None = None

    def start(self, work: Callable[[Any], Session | TokenSession]) -> None:
        """Begin to open a session."""
        self.opening = self.tasks.start("opening", work)

    @property
    def session(self) -> Session:
        """The session of a run on images.

        Raises:
            UserError: If it is not open yet, could not be opened, or is of text.
        """
        found = self._opened()
        if not isinstance(found, Session):
            raise UserError(f"{WHO}: expected a run on images, got a language model. It has the token view alone.")
        return found

    @property
    def tokens(self) -> TokenSession:
        """The token view.

        Raises:
            UserError: If it is not open yet, could not be opened, or is of images.
        """
        found = self._opened()
        if not isinstance(found, TokenSession):
            raise UserError(f"{WHO}: expected a language model, got a run on images. It has no tokens.")
        return found

    def _opened(self) -> Session | TokenSession:
        job = self.tasks[self.opening or 0]
        if job.state != "done":
            raise UserError(f"{WHO}: expected an open run, got one that is {job.state}. {job.error}".rstrip())
        found: Session | TokenSession = job.result
        return found

    def split(self, given: Mapping[str, Any]) -> Split:
        """The split that a request names."""
        return self.session.split(str(given.get("split") or self.session.default_split()))

    @property
    def thumbnails(self) -> image_panel.Thumbnails:
        """Small pictures."""
        if self._thumbnails is None:
            self._thumbnails = image_panel.Thumbnails(self.session)
        return self._thumbnails

    # What is asked with GET

    def state(self, _: Mapping[str, str]) -> dict[str, Any]:
        """Progress of the opening; once it is done, everything that does not change."""
        job = self.tasks[self.opening or 0].public()
        opening = {key: job[key] for key in ("state", "note", "done", "total", "error")}
        found: dict[str, Any] = {"opening": opening, "page": self.keys.page}
        if job["state"] != "done":
            return found
        opened = self._opened()
        return found | {"run": opened.describe() if isinstance(opened, TokenSession) else describe(opened)}

    def experts(self, given: Mapping[str, str]) -> Any:
        split, level = self.split(given), _number(given, "level")
        return expert_panel.expert_columns(self.session, split, level, _filter(given), given.get("gap", ""))

    def expert(self, given: Mapping[str, str]) -> Any:
        level, expert = _number(given, "level"), _number(given, "expert")
        return expert_panel.expert_detail(self.session, self.split(given), level, expert)

    def combinations(self, given: Mapping[str, str]) -> Any:
        return expert_panel.combinations(self.session, self.split(given))

    def audit(self, given: Mapping[str, str]) -> Any:
        return audit_panel.audit_split(self.session, self.split(given).name, given.get("target", ""))

    def job(self, given: Mapping[str, str]) -> Any:
        job = self.tasks[_number(given, "number")].public()
        return {key: value for key, value in job.items() if key != "result" or job["kind"] != "opening"}

    def text_layer(self, given: Mapping[str, str]) -> Any:
        return self.tokens.columns(_number(given, "layer"))

    def text_expert(self, given: Mapping[str, str]) -> Any:
        return self.tokens.expert(_number(given, "layer"), _number(given, "expert"))

    def text_excerpt(self, given: Mapping[str, str]) -> Any:
        return self.tokens.excerpt(_number(given, "number"))

    def notes(self, _: Mapping[str, str]) -> Any:
        return note_panel.all_notes(self._opened())

    def card(self, given: Mapping[str, str]) -> bytes:
        """One expert as a picture."""
        level, expert = _number(given, "level"), _number(given, "expert")
        return expert_panel.expert_card(self.session, self.split(given), level, expert)

    def picture(self, given: Mapping[str, str]) -> bytes:
        """A thumbnail."""
        return self.thumbnails.get(_number(given, "image"), _number(given, "size", 96))

    def edit_files(self, _: Mapping[str, str]) -> Any:
        return edit_panel.list_edits(self.session)

    # What is asked with POST

    def images(self, given: Mapping[str, Any]) -> Any:
        """One page of a list of images."""
        session, split, kind = self.session, self.split(given), str(given.get("kind", "all"))
        entries = _entries(given)
        changed = edit_panel.outcome(session, split, entries) if kind in ("mended", "broken") else None
        expert = (_number(given, "level"), _number(given, "expert")) if "expert" in given else None
        rows, values = image_panel.image_rows(session, split, _filter(given), kind=kind, expert=expert, changed=changed)
        offset, limit = _number(given, "offset"), _number(given, "limit", 60)
        return image_panel.list_images(session, split, rows, values, offset, limit)

    def image(self, given: Mapping[str, Any]) -> Any:
        """One image of the data, or one uploaded before, taken apart."""
        labels = _labels(given)
        operations = self._operations(given)
        if "upload" in given:
            upload = _number(given, "upload")
            return image_panel.explain_upload(self.session, upload, labels=labels, operations=operations)
        return image_panel.explain_image(self.session, _number(given, "image"), labels=labels, operations=operations)

    def compare(self, given: Mapping[str, Any]) -> Any:
        """Before and after edits."""
        resamples = min(max(_number(given, "resamples"), 0), 2000)
        return edit_panel.compare(
            self.session, self.split(given), _entries(given), _subgroup(given), resamples=resamples
        ) | {"edits": self._described(given)}

    def rewrite(self, given: Mapping[str, Any]) -> Any:
        """Begin to make a rewriting."""
        subgroup, entries, strength = _subgroup(given), _entries(given), str(given.get("strength", "paper"))
        work = self.tasks.start(
            "rewriting", lambda report: edit_panel.rewrite(self.session, subgroup, entries, strength, report)
        )
        return {"job": work}

    def open_split(self, given: Mapping[str, Any]) -> Any:
        """Begin to open a split."""
        name = str(given.get("split", ""))

        def work(report: Any) -> str:
            return self.session.split(name, report).name

        return {"job": self.tasks.start("split", work)}

    def save(self, given: Mapping[str, Any]) -> Any:
        """Write an edit file."""
        split, entries, name = self.split(given), _entries(given), str(given.get("name", ""))
        replace = str(given.get("replace") or "")
        return edit_panel.save(self.session, split, entries, name, _subgroup(given), replace=replace)

    def load(self, given: Mapping[str, Any]) -> Any:
        """Read an edit file."""
        version, entries = edit_panel.load(self.session, str(given.get("name", "")))
        return {"version": version, "entries": entries}

    def generate(self, given: Mapping[str, Any]) -> Any:
        """Begin to write texts with and without an expert scaled."""
        steering, (prompt, tokens, expert, factor, level) = self.tokens.write(), asked(given)

        def write(report: Report) -> Any:
            return steering.write(prompt, tokens, expert, factor, report, level=level)

        return {"job": self.tasks.start("writing", write)}

    def note(self, given: Mapping[str, Any]) -> Any:
        """Save the name and note of one expert."""
        level, expert = str(given.get("level", "0")), _number(given, "expert")
        before, after = note_panel.note_of(given, "before"), note_panel.note_of(given)
        return note_panel.set_note(self._opened(), level, expert, after, before)

    def parse(self, given: Mapping[str, Any]) -> Any:
        """The entry of an edit given as text."""
        return {"entry": edit_panel.parse(self.session, str(given.get("text", "")))}

    def _described(self, given: Mapping[str, Any]) -> list[str]:
        entries = _entries(given)
        if not entries:
            return []
        stack = edit_panel.make_stack(self.session, entries)
        return [edit.describe() for edit in stack.edits.values()]

    def _operations(self, given: Mapping[str, Any]) -> Any:
        entries = _entries(given)
        return edit_panel.make_stack(self.session, entries).operations() if entries else ()


def describe(session: Session) -> dict[str, Any]:
    """Facts about a run that a page needs before its first request."""
    data, facts = session.run.data, session.stored.facts
    attributes = {name: list(column.values) for name, column in data.attributes.items()}
    return {
        "kind": "images",
        "path": str(session.folder),
        "name": "/".join(session.folder.resolve().parts[-2:]),
        "head": facts.get("head", ""),
        "data": data.name,
        "classes": list(data.classes),
        "multi_label": data.multi_label,
        "num_experts": list(session.num_experts),
        "attributes": attributes,
        "sensitive": list(data.column_names),
        "splits": session.available(),
        "split": next(iter(session.splits), session.default_split()),
        "editable": session.run.layer is not None,
        "additive": session.run.head.classifier is None,
        "combinations": session.analyzed.occurrence is not None,
        "analyzed": session.analyzed.split,
        "missing": [vars(item) for item in session.analyzed.missing if item.part == "analysis"],
        "pictures": not data.name.startswith("features:"),
        "uploads": facts.get("backbone") is not None,
        "credits": list(data.credits),
        "threshold": expert_panel.THRESHOLD,
        "start": expert_panel.first_experts(session),
        "most_bytes": image_panel.MOST_BYTES,
    }


def make_app(dashboard: Dashboard, port: int | None = None) -> Guard:
    """The application behind its guard; set `port` of the guard once it is known."""
    get: dict[str, Callable[[Mapping[str, str]], Any]] = {
        "/api/state": dashboard.state,
        "/api/experts": dashboard.experts,
        "/api/expert": dashboard.expert,
        "/api/combinations": dashboard.combinations,
        "/api/audit": dashboard.audit,
        "/api/job": dashboard.job,
        "/api/edits": dashboard.edit_files,
        "/api/notes": dashboard.notes,
        "/api/text/layer": dashboard.text_layer,
        "/api/text/expert": dashboard.text_expert,
        "/api/text/excerpt": dashboard.text_excerpt,
    }
    post: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "/api/images": dashboard.images,
        "/api/image": dashboard.image,
        "/api/compare": dashboard.compare,
        "/api/parse": dashboard.parse,
        "/api/rewrite": dashboard.rewrite,
        "/api/split": dashboard.open_split,
        "/api/save": dashboard.save,
        "/api/load": dashboard.load,
        "/api/note": dashboard.note,
        "/api/text/generate": dashboard.generate,
    }
    routes = [Route(path, _get(answer), methods=["GET"]) for path, answer in get.items()]
    routes += [Route(path, _post(answer), methods=["POST"]) for path, answer in post.items()]
    routes.append(Route("/api/upload", _upload(dashboard), methods=["POST"]))
    routes.append(Route("/api/picture", _bytes(dashboard.picture, "image/webp", KEPT), methods=["GET"]))
    routes.append(Route("/api/card", _bytes(dashboard.card, "image/png", "no-store"), methods=["GET"]))
    routes += [Route(path, _file(name), methods=["GET"]) for path, name in static_files().items()]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # an address with a slash too many leads nowhere
    return Guard(app, dashboard.keys, port)


def static_files() -> dict[str, str]:
    """Address -> file of the front end: these files and no others."""
    root = resources.files("mumoe.dashboard") / "static"
    found = {"/": "index.html"}
    for folder in (root, root / "vendor"):
        prefix = "" if folder is root else "vendor/"
        for entry in folder.iterdir():
            if entry.name.rpartition(".")[2] in TYPES and entry.name != "index.html":
                found[f"/{prefix}{entry.name}"] = prefix + entry.name
    return found


# From requests to calls -----------------------------------------------------------------------------------

Answer = Callable[[Request], Awaitable[Response]]


def _get(answer: Callable[[Mapping[str, str]], Any]) -> Answer:
    async def handle(request: Request) -> Response:
        return await _answered(answer, dict(request.query_params))

    return handle


def _post(answer: Callable[[Mapping[str, Any]], Any]) -> Answer:
    async def handle(request: Request) -> Response:
        content = await _body(request, MOST_JSON)
        if content is None:
            return _problem(f"{WHO}: expected a request of at most {MOST_JSON >> 20} MB.", 413)
        try:
            given = json.loads(content, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return _problem(f"{WHO}: expected JSON, got {error}.", 400)
        if not isinstance(given, dict):
            return _problem(f"{WHO}: expected a JSON object, got a {type(given).__name__}.", 400)
        return await _answered(answer, given)

    return handle


def _upload(dashboard: Dashboard) -> Answer:
    """A picture as the body itself."""

    async def handle(request: Request) -> Response:
        content = await _body(request, image_panel.MOST_BYTES)
        if content is None:
            return _problem(
                f"{WHO}: expected a picture of at most {image_panel.MOST_BYTES >> 20} MB. Use a smaller one.", 413
            )

        def explain(_: Any) -> Any:
            return image_panel.add_upload(dashboard.session, content)

        return await _answered(explain, None)

    return handle


def _bytes(draw: Callable[[Mapping[str, str]], bytes], kind: str, cached: str) -> Answer:
    """A picture, or the reason in one line why it cannot be shown."""

    async def handle(request: Request) -> Response:
        try:
            content = await run_in_threadpool(draw, dict(request.query_params))
        except (UserError, JobError) as error:
            return _problem(one_line(error), 404)
        except Exception as error:
            return _problem(f"{WHO}: {one_line(error)}", 500)
        return Response(content, media_type=kind, headers={"cache-control": cached})

    return handle


def _file(name: str) -> Answer:
    content = (resources.files("mumoe.dashboard") / "static").joinpath(*name.split("/")).read_bytes()
    kind = TYPES[name.rpartition(".")[2]]

    async def handle(_: Request) -> Response:
        return Response(content, headers={"content-type": kind, "cache-control": "no-cache"})

    return handle


async def _answered(answer: Callable[[Any], Any], given: Any) -> Response:
    """The answer, or the error in one line."""
    try:
        found = await run_in_threadpool(answer, given)
    except UserError as error:
        return _problem(one_line(error), 400)
    except JobError as error:
        return _problem(one_line(error), 500)
    except Exception as error:
        return _problem(f"{WHO}: {one_line(error)}", 500)
    return JSONResponse(found, headers={"cache-control": "no-store"})


def _problem(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status, headers={"cache-control": "no-store"})


async def _body(request: Request, most: int) -> bytes | None:
    """The request's content, or None as soon as it exceeds the limit."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)


def _refuse(name: str) -> Any:
    raise ValueError(f"the number {name}")


def _number(given: Mapping[str, Any], name: str, default: int = 0) -> int:
    value = given.get(name, default)
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{WHO}: expected a whole number for {name}, got {value!r}.") from None
    if isinstance(value, float) and not math.isclose(value, number):
        raise UserError(f"{WHO}: expected a whole number for {name}, got {value!r}.")
    return number


def _entries(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = given.get("edits", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{WHO}: expected a list of edits, got {type(entries).__name__}. Load the page again.")
    return entries


def _labels(given: Mapping[str, Any]) -> tuple[str, ...]:
    labels = given.get("labels", [])
    if not isinstance(labels, list):
        raise UserError(f"{WHO}: expected a list of labels, got {type(labels).__name__}. Load the page again.")
    return tuple(map(str, labels[:20]))


def _filter(given: Mapping[str, Any]) -> expert_panel.Filter:
    names = (field.name for field in fields(expert_panel.Filter))
    return expert_panel.Filter(**{name: str(given.get(name) or "") for name in names})


def _subgroup(given: Mapping[str, Any]) -> edit_panel.Subgroup:
    found = given.get("subgroup") or {}
    if not isinstance(found, dict):
        raise UserError(f"{WHO}: expected a subgroup as an object, got {type(found).__name__}. Load the page again.")
    label = _number(found, "label", 1)
    head, sensitive, value = (str(found.get(name) or "") for name in ("head", "sensitive", "value"))
    return edit_panel.Subgroup(head, sensitive, value, label)
