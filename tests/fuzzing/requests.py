"""Requests to the whole app in this process, with a real Redis: bodies, queries, paths and headers that are damaged."""

import asyncio
import contextlib
import json
import random
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from service.app import create_app
from service.http import auth as access
from service.http.middleware import HotRoutes
from service.settings import Settings
from service.telemetry import configure_logging
from tests.fuzzing.mutations import damaged, damaged_json, json_bytes, text

RELEASE: Final = Path(__file__).parents[1] / "releases" / "v1"
_ID_LETTERS: Final = "abcXYZ019._~-"
_ANY_LETTERS: Final = _ID_LETTERS + "/%?&=#+ \t\0éß\u2028\U0001f3b5\ud800'\"<>\\{}"
_TRACKS: Final = [f"t{number:07}" for number in range(0, 1000, 37)]
_JSON: Final = (b"content-type", b"application/json")
_MOST_BYTES: Final = 65_536


class Asked(NamedTuple):
    """A request as uvicorn hands it over."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    chunks: list[bytes]
    leaves: bool = False  # whether the client is gone before its body is


class Answered(NamedTuple):
    """What came back; status 0 where the client had gone."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class App:
    """The app, opened, on a loop of its own; checks every answer."""

    def __init__(self, folder: Path) -> None:
        configure_logging("error", "0" * 16)
        settings = Settings(
            release=RELEASE, data_dir=folder / "data", max_request_bytes=_MOST_BYTES, attribution_sample_rate=1
        )
        self._app = create_app(settings)
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()

    def __enter__(self) -> Self:
        lifespan = self._app.router.lifespan_context(self._app)
        self._runner.run(self._stack.enter_async_context(lifespan))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def ask(self, asked: Asked) -> Answered:
        """The answer, which is one that a client can read, and no failure of the service."""
        answered = self._runner.run(self._ask(asked))
        assert answered.status < 500, (asked, answered)
        if answered.status == 0:
            assert asked.leaves, asked
            return answered
        length = answered.headers.get(b"content-length")
        empty = asked.method == "HEAD" or answered.status in (204, 304)
        assert empty or length is None or int(length) == len(answered.body), (asked, answered)
        kind = answered.headers.get(b"content-type", b"").partition(b";")[0]
        if answered.status >= 400 and asked.method != "HEAD":
            assert kind == b"application/problem+json", (asked, answered)
            assert json.loads(answered.body)["status"] == answered.status, (asked, answered)
        elif kind == b"application/json" and answered.body:
            json.loads(answered.body)
        return answered

    async def _ask(self, asked: Asked) -> Answered:
        messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in asked.chunks]
        if not asked.leaves:
            messages = messages or [{"type": "http.request", "body": b"", "more_body": False}]
            messages[-1]["more_body"] = False
        waiting = iter(messages)
        sent: list[Any] = []

        async def receive() -> Any:
            if (message := next(waiting, None)) is not None:
                return message
            if not asked.leaves:
                await asyncio.Event().wait()  # the client stays on the line
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": asked.method,
            "scheme": "http",
            "path": asked.path,
            "raw_path": asked.path.encode("utf-8", "surrogatepass"),
            "query_string": asked.query,
            "root_path": "",
            "headers": asked.headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        await self._app(scope, receive, send)
        if not sent:
            return Answered(0, {}, b"")
        body = b"".join(message.get("body", b"") for message in sent[1:])
        assert not sent[-1].get("more_body"), asked
        return Answered(sent[0]["status"], dict(sent[0]["headers"]), body)


def _split(content: bytes, rng: random.Random) -> list[bytes]:
    """The content in one to four pieces, some of them empty."""
    cuts = sorted(rng.randint(0, len(content)) for _ in range(rng.choice((0, 0, 0, 1, 3))))
    return [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def _host(rng: random.Random) -> tuple[bytes, bytes]:
    return b"host", b"localhost" if rng.random() < 0.98 else damaged(b"localhost:8000", rng)


def _event(rng: random.Random) -> dict[str, Any]:
    event: dict[str, Any] = {"type": rng.choice(("play", "skip")), "track_id": rng.choice(_TRACKS)}
    if rng.random() < 0.3:
        event["event_id"] = f"e{rng.randrange(50)}"
    if rng.random() < 0.3:
        event["at"] = rng.choice(("2026-01-01T00:00:00Z", "1969-12-31T23:59:59.5+01:00", "0001-01-01T00:00:00Z"))
    if rng.random() < 0.3:
        event["ms_played"] = rng.choice((0, 1000.0, 30_000))
    return event


def _many(rng: random.Random) -> dict[str, Any]:
    """A body of POST /rank or of a batch, before it is damaged."""
    sessions = [
        {"session_id": f"body-{rng.randrange(9)}"} if rng.random() < 0.5 else {"events": [_event(rng)]}
        for _ in range(3)
    ]
    options = {"repeat": rng.choice(("allow", "never", "after:2"))} if rng.random() < 0.5 else {}
    if rng.random() < 0.5:
        return {"sessions": sessions, **options}
    return {**sessions[0], "candidates": rng.sample([*_TRACKS, "nobody"], rng.choice((1, 3, 20))), **options}


def _events_body(rng: random.Random) -> bytes:
    value: Any = {"events": [_event(rng) for _ in range(rng.choice((1, 1, 2, 5, 100)))]}
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        value = damaged_json(value, rng)
    content = json_bytes(value, rng)
    return damaged(content, rng) if rng.random() < 0.25 else content


class Bodies(App):
    """The body reader: events, swaps, rankings and batches. The hot routes answer as FastAPI's own routes do."""

    @contextlib.contextmanager
    def _fastapi_alone(self) -> Iterator[None]:
        """Without the layer that answers hot routes."""
        layer: Any = self._app.middleware_stack
        while not isinstance(layer, HotRoutes):
            layer = getattr(layer, "_app", None) or layer.app
        hot, layer._routes = layer._routes, []
        try:
            yield
        finally:
            layer._routes = hot

    def case(self, rng: random.Random) -> str:
        """See Target."""
        content = _events_body(rng)[: _MOST_BYTES + 10]
        if rng.random() < 0.1:
            swap = damaged_json({"name": "sasrec-1"}, rng)
            return self._word(self.ask(self._request("PUT", "/releases/current", b"", json_bytes(swap, rng), rng)))
        if rng.random() < 0.2:
            many = _many(rng)
            path = "/rank" if "candidates" in many else "/recommendations/batch"
            content = json_bytes(damaged_json(many, rng) if rng.random() < 0.8 else many, rng)
            return self._word(self.ask(self._request("POST", path, b"", content, rng)))
        number = rng.randrange(1000)
        recommend = rng.choice((b"", b"", b"recommend=1", b"recommend=20", b"recommend=100", b"recommend=101"))
        path = f"/sessions/body-{number}/events"
        quick = self._request("POST", path, recommend, content, rng)
        if rng.random() < 0.02:
            return self._word(self.ask(quick._replace(leaves=True, chunks=quick.chunks[:-1])))
        first = self.ask(quick)
        with self._fastapi_alone():  # the same again for another session
            second = self.ask(quick._replace(path=f"/sessions/long-{number}/events"))
        assert first.status == second.status, (quick, first, second)
        if first.status >= 400:
            assert first.body == second.body, (quick, first, second)
        return self._word(first)

    def _request(self, method: str, path: str, query: bytes, content: bytes, rng: random.Random) -> Asked:
        headers = [_host(rng), _JSON]
        if rng.random() < 0.8:
            headers.append((b"content-length", b"%d" % len(content)))
        return Asked(method, path, query, headers, _split(content, rng))

    def _word(self, answered: Answered) -> str:
        return str(answered.status)


class Calls(App):
    """Everything before the body: methods, paths, queries and headers."""

    def case(self, rng: random.Random) -> str:
        """See Target."""
        method, template = rng.choice(list(access.CALLS))
        path = self._path(template, rng)
        if rng.random() < 0.2:
            method = rng.choice(("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "CONNECT", "FUZZ", "get"))
        headers = [_host(rng), *self._headers(rng)]
        body = [_events_body(rng)[:1000]] if method in ("POST", "PUT") and rng.random() < 0.5 else []
        answered = self.ask(Asked(method, path, self._query(rng), headers, body))
        assert access.call_of(method, path, b"").name  # the table of scopes reads the same path
        return str(answered.status)

    def _path(self, template: str, rng: random.Random) -> str:
        session_id = text(rng, rng.choice((_ID_LETTERS, _ANY_LETTERS)), 140) or "s"
        track = rng.choice((rng.choice(_TRACKS), text(rng, _ANY_LETTERS, 300), "x" * 257))
        file = rng.choice(
            ("player.js", "index.html", "player.css", "../app.py", "..", "", "/etc/passwd", "a\0b", "." * 300)
        )
        path = (
            template.replace("{session_id}", session_id)
            .replace("{listener_id}", session_id)
            .replace("{track_id:path}", track)
            .replace("{path:path}", file)
        )
        if rng.random() < 0.3:
            content = damaged(path.encode("utf-8", "surrogatepass"), rng)
            path = urllib.parse.unquote(content.decode("latin-1"))  # as uvicorn does
        return path if path.startswith("/") else f"/{path}"

    def _query(self, rng: random.Random) -> bytes:
        pairs: list[tuple[str, str]] = []
        for name, values in (
            ("session_id", ("s", "body-1", "", "a b", text(rng, _ANY_LETTERS, 140), "x" * 129)),
            ("k", ("1", "20", "100", "101", "0", "-1", "1e2", "+5", "٣", "1_0", "", "9" * 30)),
            ("recommend", ("1", "100", "0", "")),
            ("limit", ("1", "100", "0", "x")),
            ("repeat", ("allow", "never", "after:1", "after:1000", "after:0", "", "perhaps")),
            ("caution", ("0", "1.5", "-1", "11", "nan", "1e400", "")),
            ("exclude", (rng.choice(_TRACKS), "", "\0", "x" * 300, text(rng, _ANY_LETTERS, 300))),
            ("query", ("a", "the (", ".*", "[", "\\", "", text(rng, _ANY_LETTERS, 210), "é" * 100)),
            (text(rng, _ANY_LETTERS, 20), ("",)),
        ):
            pairs += [(name, rng.choice(values)) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
        if rng.random() < 0.05:
            pairs += [("exclude", str(number)) for number in range(101)]
        rng.shuffle(pairs)
        if rng.random() < 0.5:
            pairs = [pair for pair in pairs if pair[0] in ("session_id", "k", "query")]
        encoded = urllib.parse.urlencode(pairs, errors="surrogatepass", safe=rng.choice(("", "%&=+;"))).encode(
            "utf-8", "replace"
        )
        return damaged(encoded, rng) if rng.random() < 0.2 else encoded

    def _headers(self, rng: random.Random) -> Iterable[tuple[bytes, bytes]]:
        for name, value in (
            (b"content-type", b"application/json"),
            (b"content-length", b"17"),
            (b"range", b"bytes=0-99,200-"),
            (b"if-range", b'"abc"'),
            (b"if-modified-since", b"Wed, 21 Oct 2015 07:28:00 GMT"),
            (b"if-none-match", b'W/"abc", "def"'),
            (b"authorization", b"Bearer segue_abc"),
            (b"accept-encoding", b"gzip;q=1.0, *;q=0"),
            (b"x-forwarded-for", b"1.2.3.4"),
            (b"cookie", b"a=b"),
            (b"expect", b"100-continue"),
        ):
            if rng.random() < 0.2:
                yield name, value if rng.random() < 0.3 else damaged(value, rng)[:1000]


TARGETS: Final[dict[str, Any]] = {"bodies": Bodies, "calls": Calls}
