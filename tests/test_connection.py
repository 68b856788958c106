"""One connection: where requests begin and end, what they may send, and what follows them."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.server import ServerState

from service.http.admission_control import MAX_HEAD_BYTES, MAX_HEADERS, AdmissionControl
from service.http.protocol import MAX_UNFINISHED_BYTES, Connection
from tests.memory_connection import MemoryConnection, Recorder, exchange

HOST = b"Host: localhost\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\n%b\r\n" % HOST
GET = b"GET /first HTTP/1.1\r\n%b\r\n" % HOST


def post(*headers: bytes, body: bytes = b"", path: bytes = b"/sessions/s/events") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST %b HTTP/1.1\r\n%b%b\r\n%b" % (path, HOST, lines, body)


def chunked(*trailers: bytes, body: bytes = b"{}") -> bytes:
    lines = b"".join(trailer + b"\r\n" for trailer in trailers)
    return post(b"Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, lines))


def offers() -> Iterator[bytes]:
    """Requests that offer another protocol, whose body is the text of a request."""
    length = b"Content-Length: %d" % len(HIDDEN)
    for name in (b"Upgrade", b"upgrade", b"UPGRADE", b"uPGrade", b"UPgrade"):
        for value in (b"h2c", b"websocket", b"TLS/1.0", b"foo, h2c"):
            yield post(b"Connection: Upgrade", name + b": " + value, length, body=HIDDEN)
            yield post(b"Connection: keep-alive, uPgRaDe", length, name + b":" + value, body=HIDDEN)
    yield post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"Upgrade: websocket", length, body=HIDDEN)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    yield post(b"Connection: Upgrade", b"Upgrade: h2c", b"Transfer-Encoding: chunked", body=body)


@pytest.mark.parametrize("request_bytes", list(offers()), ids=range(len(list(offers()))))
def test_the_body_of_a_request_that_offers_another_protocol_stays_its_body(request_bytes: bytes) -> None:
    everything = request_bytes + GET
    cuts = [(everything,), tuple(everything[i : i + 1] for i in range(len(everything)))]
    cuts += [(everything[:at], everything[at:]) for at in range(1, len(everything))]
    for pieces in cuts:
        app, connection = exchange(pieces)
        assert [(method, path, body) for method, path, _, body in app.asked] == [
            ("POST", "/sessions/s/events", HIDDEN),
            ("GET", "/first", b""),
        ], pieces
        assert connection.statuses == [200, 200]
        assert all(name != b"upgrade" for _, _, headers, _ in app.asked for name, _ in headers)


def test_an_offer_without_a_body_is_answered_as_without_the_offer() -> None:
    app, connection = exchange([b"GET /a HTTP/1.1\r\n%bConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" % HOST, GET])
    assert [path for _, path, _, _ in app.asked] == ["/a", "/first"]
    assert connection.statuses == [200, 200]


@pytest.mark.parametrize("target", [b"/health/live", b"example.org:443", b"localhost:80"])
def test_connect_is_refused_and_what_follows_is_ignored(target: bytes) -> None:
    whole = b"CONNECT %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (target, HOST, len(HIDDEN)) + HIDDEN
    for at in range(1, len(whole)):
        app, connection = exchange([whole[:at], whole[at:]])
        assert connection.statuses in ([405], [400])
        assert connection.transport.closed
        assert not app.asked


@pytest.mark.parametrize(
    "name", ["Authorization", "hOST", "Content-Type", "X-Request-ID", "Expect", "Accept", "traceparent"]
)
def test_trailers_are_no_headers(name: str) -> None:
    trailer = f"{name}: from-the-trailer".encode()
    whole = chunked(trailer) + GET
    plain, _ = exchange([chunked() + GET])
    for at in range(1, len(whole)):
        app, connection = exchange([whole[:at], whole[at:]])
        assert app.asked == plain.asked
        assert connection.statuses == [200, 200]


@pytest.mark.parametrize(
    "trailers", [(b"Connection: Upgrade", b"Upgrade: h2c"), (b"Connection: close",), (b"Host: elsewhere",)]
)
def test_trailers_change_nothing_of_what_follows(trailers: tuple[bytes, ...]) -> None:
    app, connection = exchange([chunked(*trailers), GET])
    assert [path for _, path, _, _ in app.asked] in (["/sessions/s/events", "/first"], ["/sessions/s/events"])
    assert set(connection.statuses) == {200}
    assert len(connection.statuses) == len(app.asked)


@pytest.mark.parametrize(
    ("before", "endless", "after"),
    [
        (b"GET /", b"a", b""),
        (b"GET / HTTP/1.1\r\nX: ", b"a", b""),
        (b"GET / HTTP/1.1\r\n", b"X: y\r\n", b""),
        (post(b"Transfer-Encoding: chunked") + b"0\r\n", b"X: y\r\n", b""),
        (post(b"Transfer-Encoding: chunked") + b"0\r\nX: ", b"y", b""),
        (post(b"Transfer-Encoding: chunked") + b"1;", b"a=b;", b""),
        (post(b"Transfer-Encoding: chunked"), b"0", b""),
        (b"", b"\r\n", b""),
    ],
    ids=["target", "header", "headers", "trailers", "trailer", "extension", "zeros", "empty lines"],
)
@pytest.mark.parametrize("size", [9, 1000, 60_000])
def test_nothing_but_a_body_may_be_without_end(before: bytes, endless: bytes, after: bytes, size: int) -> None:
    piece = endless * max(1, size // len(endless))
    most = 4 * MAX_HEAD_BYTES

    async def run() -> None:
        app = Recorder()
        connection = MemoryConnection(app)
        await connection.send(before)
        sent = 0
        while not connection.transport.closed and sent < most:
            await connection.send(piece)
            sent += len(piece)
        assert connection.transport.closed
        assert sent < 1.5 * MAX_HEAD_BYTES + len(piece)
        assert connection.statuses in ([431], [400])
        assert not app.asked
        assert connection.admission_control.unfinished_bytes == 0
        await connection.end()

    asyncio.run(run())


@pytest.mark.parametrize(("size", "number", "status"), [(1, 2_000, 200), (40, 5_000, 200), (1, 5_000, 431)])
def test_chunks_may_be_small_but_not_many_of_them_tiny(size: int, number: int, status: int) -> None:
    """Each costs more than its bytes."""
    pieces = b"%x\r\n%b\r\n" % (size, b"x" * size) * number
    app, connection = exchange([post(b"Transfer-Encoding: chunked"), pieces, b"0\r\n\r\n", GET])
    assert connection.statuses == ([200, 200] if status == 200 else [431])
    assert [len(body) for _, _, _, body in app.asked] == ([size * number, 0] if status == 200 else [])


def test_much_that_comes_at_once_is_parsed_in_several_turns() -> None:
    """So that the other connections have theirs."""

    async def run() -> None:
        connection = MemoryConnection(Recorder())
        connection.protocol.data_received(post(b"Content-Length: 200000", body=b"x" * 200_000))
        assert connection.protocol._body < 100_000
        reads_on = [connection.transport.is_read]
        await connection.settle()
        reads_on.append(connection.transport.is_read)
        assert connection.statuses == [200]
        assert reads_on == [False, True]
        await connection.end()

    asyncio.run(run())


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without reading the body."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
    scope["state"]["admission_control"].leave(scope, learn=False)


def test_a_body_that_nobody_reads_is_not_read_for_ever() -> None:
    async def run() -> None:
        connection = MemoryConnection(refuse)
        await connection.send(post(b"Content-Length: 9000000"))
        for _ in range(60):
            await connection.send(b"x" * 30_000)
        assert connection.transport.closed
        assert connection.statuses == [401]

    asyncio.run(run())


@pytest.mark.parametrize("late", [b"xyz", b"xyz\r\n", b"xyz" + GET])
def test_every_idle_connection_has_a_timer(late: bytes) -> None:
    """Also where the answer came before the body."""

    async def run() -> None:
        connection = MemoryConnection(refuse)
        await connection.send(post(b"Content-Length: 3"), late)
        assert connection.statuses[0] == 401
        assert connection.protocol.timeout_keep_alive_task is not None
        assert not connection.protocol.timeout_keep_alive_task.cancelled()
        await connection.end()

    asyncio.run(run())


def test_a_refused_request_whose_body_comes_late_leaves_a_timer() -> None:
    class Full(AdmissionControl):
        def is_full(self) -> bool:
            return True

    async def run() -> None:
        connection = MemoryConnection(refuse, Full())
        await connection.send(post(b"Content-Length: 3"), b"xyz")
        assert connection.statuses == [503]
        assert connection.protocol.timeout_keep_alive_task is not None
        await connection.end()

    asyncio.run(run())


@pytest.mark.parametrize("request_bytes", [GET, GET.replace(b"1.1", b"1.0"), b"hello\r\n\r\n"])
def test_a_connection_that_is_closed_is_cut_off_where_its_client_does_not_read(request_bytes: bytes) -> None:
    async def run() -> None:
        connection = MemoryConnection(Recorder())
        await connection.send(request_bytes.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert connection.transport.closed
        assert connection.protocol._abort_timer is not None
        await connection.end()

    asyncio.run(run())


def test_a_request_that_works_before_its_body_came_takes_a_place() -> None:
    """Whoever holds a byte of a body back that nobody needs would be served past the limit."""

    async def run() -> None:
        connection = MemoryConnection(Recorder())
        await connection.send(b"GET / HTTP/1.1\r\n%bContent-Length: 1\r\n\r\n" % HOST)
        assert connection.admission_control.in_flight == 1
        slow = MemoryConnection(Recorder(), connection.admission_control)
        await slow.send(post(b"Content-Length: 1"))
        assert connection.admission_control.in_flight == 1
        await slow.send(b"x")
        assert connection.admission_control.in_flight == 2

    asyncio.run(run())


def test_more_headers_than_anybody_needs_are_refused() -> None:
    for number, status in ((MAX_HEADERS - 1, 200), (MAX_HEADERS, 431)):
        _, connection = exchange([b"GET / HTTP/1.1\r\n%b%b\r\n" % (HOST, b"X: y\r\n" * number)])
        assert connection.statuses == [status]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhOST: a\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 200),
    ],
)
def test_a_request_names_its_host_once(head: bytes, status: int) -> None:
    _, connection = exchange([head])
    assert connection.statuses == [status]
    assert (b"the Host header is" in connection.transport.written) == (status == 400)


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        ((b"chunked",), 200),
        ((b"CHUNKED",), 200),
        ((b"gzip, chunked",), 501),
        ((b"gzip", b"chunked"), 501),
        ((b"identity, chunked",), 501),
        ((b"gzip",), 400),
    ],
)
def test_no_transfer_coding_is_known_but_chunked(coding: tuple[bytes, ...], status: int) -> None:
    """RFC 9112, 6.1 (2022): what cannot be decoded is not taken for the body."""
    headers = [b"tRansfer-Encoding: " + value for value in coding]
    app, connection = exchange([post(*headers, body=b"2\r\n{}\r\n0\r\n\r\n") + GET])
    assert connection.statuses == ([status, 200] if status != 400 else [400])
    assert len(app.asked) == connection.statuses.count(200)


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"3.0", b"1.2", b"9.9"])
def test_a_version_of_http_that_is_not_spoken_is_refused(version: bytes) -> None:
    app, connection = exchange([GET.replace(b"1.1", version)])
    assert connection.statuses in ([505], [400])
    assert b"problem+json" in connection.transport.written
    assert not app.asked


@pytest.mark.parametrize(("version", "is_asked"), [(b"1.0", False), (b"1.1", True)])
def test_only_a_client_of_http_1_1_is_asked_to_go_on(version: bytes, is_asked: bool) -> None:
    begun = post(b"Expect: 100-continue", b"Content-Length: 2").replace(b"1.1", version)
    app, connection = exchange([begun, b"{}"])
    assert (b"100 Continue" in connection.transport.written) == is_asked
    assert [body for *_, body in app.asked] == [b"{}"]


def test_a_head_counts_its_own_bytes_alone() -> None:
    long = post(b"Content-Length: 100000", body=b"x" * 100_000)
    small = b"GET /small HTTP/1.1\r\n%bX: %b\r\n\r\n" % (HOST, b"a" * 200)
    for before, number in ((long, 1), (small * 300, 300)):
        app, connection = exchange([before + small[:20], small[20:]])
        assert connection.statuses == [200] * (number + 1)
        assert len(app.asked) == number + 1


def test_a_pipeline_is_parsed_no_faster_than_it_is_answered() -> None:
    async def run() -> None:
        app = Recorder(wait_s=0.001)
        connection = MemoryConnection(app)
        connection.protocol.data_received(GET * 5000)
        assert len(connection.protocol.pipeline) < 500
        assert not connection.transport.is_read
        await connection.settle()
        connection.protocol.connection_lost(None)

    asyncio.run(run())


class TestClientThatSendsNoMore:
    """A client may shut down its sending side after its request (RFC 9112, 9.6)."""

    def test_gets_its_answers(self) -> None:
        async def run() -> None:
            app = Recorder(wait_s=0.01)
            connection = MemoryConnection(app)
            connection.protocol.data_received(GET + GET + GET * 300)
            assert connection.protocol.eof_received() is True
            for _ in range(400):
                await connection.answered()
                await connection.settle()
                if connection.transport.closed:
                    break
            assert connection.statuses == [200] * 302
            assert connection.transport.closed
            await connection.end()

        asyncio.run(run())

    @pytest.mark.parametrize("sent", [b"", b"GET / HT", post(b"Content-Length: 10", body=b"123"), GET])
    def test_is_let_go_where_nothing_is_left_to_answer(self, sent: bytes) -> None:
        async def run() -> None:
            app = Recorder()
            connection = MemoryConnection(app)
            await connection.send(sent)
            assert connection.protocol.eof_received() is None  # asyncio closes the transport
            await connection.end()
            assert app.left == (b"POST" in sent)

        asyncio.run(run())

    def test_a_stream_ends(self) -> None:
        async def stream(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(10)

        async def run() -> None:
            connection = MemoryConnection(stream)
            await connection.send(GET)
            assert connection.protocol.eof_received() is None
            for task in connection.state.tasks:
                task.cancel()

        asyncio.run(run())


def test_a_request_hears_that_its_client_has_gone_though_others_wait_behind_it() -> None:
    async def listen(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            await send({"type": "http.response.start", "status": 200, "headers": []})

    async def run() -> None:
        connection = MemoryConnection(listen)
        await connection.send(GET + GET)
        assert len(connection.state.tasks) == 1
        connection.lose()
        await connection.answered()
        assert not connection.state.tasks

    asyncio.run(run())


def test_a_client_that_has_gone_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """The transport is closed a turn before the protocol hears of it, and then refuses to be written to."""

    async def run() -> None:
        connection = MemoryConnection(Recorder(wait_s=0.01))
        await connection.send(GET)
        connection.transport.closed = True
        await connection.answered()
        assert connection.statuses == []
        await connection.end()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class TestWhatIsNotHttp:
    @pytest.mark.parametrize(
        "sent",
        [
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1\r\n%bX : y\r\n\r\n" % HOST,
            b"POST / HTTP/1.1\r\n%bContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd" % HOST,
            b"POST / HTTP/1.1\r\n%bContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % HOST,
            b"GET /\xff HTTP/1.1\r\n%b\r\n" % HOST,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
    )
    def test_gets_a_problem_document_and_no_line_in_the_log(
        self, sent: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        invalid: list[int] = []
        with caplog.at_level(logging.INFO):
            _, connection = exchange([sent], AdmissionControl(on_invalid=invalid.append))
        head, _, body = connection.transport.written.partition(b"\r\n\r\n")
        assert connection.statuses == [400]
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == 400
        assert connection.transport.closed
        assert invalid == [400]
        assert not caplog.records

    def test_is_answered_after_the_requests_before_it(self) -> None:
        async def run() -> None:
            app = Recorder(wait_s=0.01)
            connection = MemoryConnection(app)
            connection.protocol.data_received(GET + GET + b"hello\r\n\r\n" + GET)
            for _ in range(10):
                await connection.answered()
                await connection.settle()
            assert connection.statuses == [200, 200, 400]
            assert connection.transport.closed
            await connection.end()
            assert len(app.asked) == 2

        asyncio.run(run())


class TestUnfinishedRequests:
    """What they hold is bounded over all connections, as each may be just within its own bounds."""

    def test_are_refused_where_they_hold_too_much_together(self) -> None:
        body = b"x" * 200_000

        async def run() -> None:
            admission_control, state = AdmissionControl(), ServerState()
            app = Recorder()
            connections = [MemoryConnection(app, admission_control, state) for _ in range(150)]
            for connection in connections:
                await connection.send(post(b"Content-Length: 200001", body=body))
            closed = [connection.transport.closed for connection in connections]
            number = closed.count(True)
            assert 0 < number < len(connections)
            assert all(closed[:number])  # those that have taken longest, and nobody who has just come
            assert all(connection.statuses == [503] for connection in connections[:number])
            assert admission_control.unfinished_bytes <= MAX_UNFINISHED_BYTES
            small = MemoryConnection(app, admission_control, state)
            await small.send(GET)
            assert small.statuses == [200]
            late = MemoryConnection(app, admission_control, state)
            await late.send(post(b"Content-Length: 30000", body=b"x" * 20_000), b"x" * 10_000)
            assert late.statuses == [200]
            for connection in connections:
                connection.lose()
            assert admission_control.unfinished_bytes == 0
            await small.end()

        asyncio.run(run())

    @pytest.mark.parametrize("body", [b"x" * 30_000, b"x" * 29_999 + b"y" + GET])
    def test_hold_nothing_once_they_are_whole(self, body: bytes) -> None:
        async def run() -> None:
            connection = MemoryConnection(Recorder())
            await connection.send(post(b"Content-Length: 30000", body=body[:20_000]))
            assert connection.admission_control.unfinished_bytes >= 20_000
            await connection.send(body[20_000:])
            assert connection.admission_control.unfinished_bytes == 0
            assert set(connection.statuses) == {200}
            await connection.end()

        asyncio.run(run())


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when the test moves it, so that a slow machine changes no result."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    async def passes(self, seconds: float) -> None:
        """Let time pass, and run what is due then."""
        self._now += seconds
        for _ in range(3):
            await asyncio.sleep(0)


def run_with_clock(test: Callable[[Clock], Coroutine[Any, Any, None]]) -> None:
    """Run a test in a loop with such a clock."""
    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(test(clock))


class TestDeadline:
    """A client has `read_timeout_s` for a request, however many bytes it sends."""

    @pytest.mark.parametrize(
        ("sent", "statuses"),
        [
            (b"", []),
            (b"\r\n", []),
            (b"GET / HT", [408]),
            (post(b"Content-Length: 3", body=b"a"), [408]),
            (GET + b"GET", [200, 408]),
        ],
    )
    def test_ends_the_connection(self, sent: bytes, statuses: list[int]) -> None:
        async def run(clock: Clock) -> None:
            connection = MemoryConnection(Recorder(), AdmissionControl(read_timeout_s=2))
            for start in range(0, len(sent), 9):
                await connection.send(sent[start : start + 9])
            await clock.passes(1.9)
            is_early = connection.transport.closed
            await clock.passes(0.2)
            assert (is_early, connection.transport.closed) == (False, True)
            assert connection.statuses == statuses
            await connection.end()

        run_with_clock(run)

    @pytest.mark.parametrize("stray", [b"\r\n", b"\n", b"\r", b"\r\n\r\n"])
    def test_counts_no_empty_line_before_a_request(self, stray: bytes) -> None:
        """Old clients send one after a body (RFC 9112, 2.2, 2022)."""

        async def run(clock: Clock) -> None:
            connection = MemoryConnection(Recorder(), AdmissionControl(read_timeout_s=0.4))
            await connection.send(GET, stray)
            await clock.passes(0.3)
            await connection.send(GET[:10])
            await clock.passes(0.3)
            await connection.send(GET[10:])
            assert connection.statuses == [200, 200]
            assert not connection.transport.closed
            await connection.end()

        run_with_clock(run)

    def test_is_none_of_an_idle_connection(self) -> None:
        async def run(clock: Clock) -> None:
            connection = MemoryConnection(Recorder(), AdmissionControl(read_timeout_s=0.2))
            await connection.send(GET)
            await clock.passes(connection.protocol.timeout_keep_alive - 1)
            await connection.send(GET)
            assert connection.statuses == [200, 200]
            assert not connection.transport.closed
            await connection.end()

        run_with_clock(run)

    def test_begins_anew_with_each_request(self) -> None:
        """A client that always has one under way when another is complete is not slow."""

        async def run(clock: Clock) -> None:
            connection = MemoryConnection(Recorder(), AdmissionControl(read_timeout_s=0.2))
            await connection.send(GET[:10])
            for _ in range(30):
                await clock.passes(0.15)
                await connection.send(GET[10:] + GET[:10])
            assert not connection.transport.closed
            await connection.send(GET[10:])
            assert connection.statuses == [200] * 31
            await connection.end()

        run_with_clock(run)


def test_the_names_of_uvicorn_that_are_overridden_exist() -> None:
    """They are private: a version that renames one would leave a rule of ours without effect."""
    parent = httptools_impl.HttpToolsProtocol
    own = [name for name, value in vars(Connection).items() if callable(value) and hasattr(parent, name)]
    overridden = {
        "connection_made",
        "connection_lost",
        "eof_received",
        "data_received",
        "pause_writing",
        "resume_writing",
        "on_message_begin",
        "on_header",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "_start_asgi_task",
        "on_response_complete",
        "timeout_keep_alive_handler",
        "shutdown",
        "__init__",
    }
    assert overridden <= set(own)
    for name in ("_unset_keepalive_if_required", "send_400_response"):
        assert hasattr(parent, name)
    cycle = vars(httptools_impl.RequestResponseCycle)
    assert {"send", "receive", "run_asgi"} <= set(cycle)
    assert hasattr(flow_control.FlowControl, "pause_reading")

    async def attributes() -> None:
        connection = MemoryConnection(Recorder(wait_s=0.01))
        connection.protocol.data_received(GET)
        for name in ("pipeline", "cycle", "flow", "parser", "headers", "url", "scope", "timeout_keep_alive_task"):
            assert hasattr(connection.protocol, name), name
        for name in ("response_started", "response_complete", "disconnected", "more_body", "scope", "transport"):
            assert hasattr(connection.protocol.cycle, name), name
        for name in ("app", "app_state", "connections", "expect_100_continue", "loop", "timeout_keep_alive"):
            assert hasattr(connection.protocol, name), name
        assert {"body", "message_event"} <= set(vars(connection.protocol.cycle))
        assert {"default_headers", "total_requests"} <= set(vars(connection.protocol.server_state))
        for name in ("write_paused", "read_paused", "resume_reading"):
            assert hasattr(connection.protocol.flow, name), name
        await connection.answered()
        await connection.end()

    asyncio.run(attributes())
