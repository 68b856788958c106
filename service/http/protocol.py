"""One client connection: where a request begins and ends, what it may send, and whether it is admitted.

uvicorn's HTTP/1.1 protocol (httptools) leaves five things open that this subclass decides, in one state machine:

- All of a request that is not its body has a bound: head, chunk framing, trailers. So has a body that nobody reads.
- Trailers are ignored. Only fields of the head are headers (RFC 9110, 6.5.1, 2022).
- An offer of another protocol is ignored (RFC 9110, 7.8), so that the body stays a body. CONNECT is refused.
- A client has a deadline for a whole request. What unfinished requests hold is bounded over all connections.
- A full service refuses a request before its body is read and before a task exists. Most requests of an overloaded
  service end here, so that a rejection must cost little.

The overridden names are private to uvicorn: pyproject.toml pins its minor version, and a test looks for the names.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

import httptools
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http.admission_control import (
    MAX_HEAD_BYTES,
    OVERLOADED_CLOSE,
    OVERLOADED_KEEP_ALIVE,
    OVERLOADED_RESPONSE,
    AdmissionControl,
    PrebuiltResponse,
    check_head,
)
from service.problems import problem_response

MAX_UNFINISHED_BYTES: Final = 8 * 2**20  # of all unfinished requests of a worker together
MAX_FRAMING_BYTES: Final = 16_384  # chunk sizes, extensions and trailers, besides a quarter of the body
_BODY_BYTES_PER_FRAMING_BYTE: Final = 4
MAX_UNREAD_BYTES: Final = 2**20  # of a body whose request has been answered before it came
# Bytes that are parsed at a time. Where in them a request begins is unknown, so bounds are exact to this many bytes.
_PIECE: Final = 8192
_PIECES_AT_ONCE: Final = 4  # then the other connections have their turn

_TOO_MUCH_FRAMING: Final = (
    f"chunk sizes, chunk extensions and trailers have more than {MAX_FRAMING_BYTES:,} bytes: send larger chunks"
)
_WITH_BODY: Final = ("POST", "PUT")  # methods whose calls wait for a body

# An operator needs these most when the service is full. They are always admitted and never counted.
_ALWAYS_ADMITTED: Final = (b"/health/", b"/metrics", b"/releases", b"/operations", b"/ops", b"/web/ops")


# What the next byte belongs to. Plain numbers, as they are compared some twenty times for each request.
_BETWEEN: Final = 0  # no request
_HEAD: Final = 1
_UPGRADE: Final = 2  # a head that offers another protocol: httptools has stopped, see _ignore_upgrade
_BODY: Final = 3
_REJECTED: Final = 4  # the body of a request that has been refused
_ENDED: Final = 5  # nothing: whatever comes is ignored


class _DisconnectAware:
    """An app that hears of it when its client has gone, instead of failing to write."""

    __slots__ = ("_app", "_cycle")

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (see below)
        try:
            await self._app(scope, receive, self._send)
        except ClientDisconnect:
            self._cycle.disconnected = True  # nobody is left to answer, and uvicorn does not complain

    def _send(self, message: Message) -> Awaitable[None]:
        cycle = self._cycle
        if cycle.disconnected or cycle.transport.is_closing():
            cycle.disconnected = True
            raise ClientDisconnect
        return cycle.send(message)  # type: ignore[arg-type]


class Connection(HttpToolsProtocol):
    """See the module. The lifespan's state holds the `door`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admission_control: AdmissionControl = self.app_state["admission_control"]
        self._state = _BETWEEN
        self._unparsed = b""  # waits for the answers to earlier requests
        self._framing = 0  # bytes of the request that are not of its body
        self._body = 0  # bytes of its body
        self._hosts = 0  # Host headers of the request
        self._coding = b""  # its Transfer-Encoding
        self._piece_bytes = 0  # bytes of the piece that is being parsed
        self._has_begun = self._has_completed = False  # whether a request has, in what is being parsed
        self._next_parse: asyncio.Handle | None = None  # parses the rest of what has come
        self._is_eof = False
        self._current: RequestResponseCycle | None = None  # the request that is being answered, or was last
        self._last_response: PrebuiltResponse | None = None  # to be sent after the answers to earlier requests
        self._deadline: asyncio.TimerHandle | None = None  # for what the client sends
        self._abort_timer: asyncio.TimerHandle | None = None  # for what it does not read

    # What the transport says

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there. It has to say something in time."""
        super().connection_made(transport)
        if len(self.connections) > self._admission_control.max_connections:
            self._admission_control.on_rejection()
            self._reject_and_close(OVERLOADED_RESPONSE)
        else:
            self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._state = _ENDED
        self._unparsed = b""
        self._admission_control.hold(self, 0)
        self._stop_deadline()
        for handle in (self._abort_timer, self._next_parse):
            if handle is not None:
                handle.cancel()
        running = self._current
        if running is not None and not running.response_complete:
            running.disconnected = True  # uvicorn tells the request that came last, which may still wait for its turn
            running.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. Requests that came whole are answered; a stream without an end is not."""
        waits = self._current is not None and not self._current.response_started
        if not waits or not (self._unparsed or self._state == _BETWEEN):
            return None  # the transport closes
        self._is_eof = True
        self._abort_later()
        return True

    def data_received(self, data: bytes) -> None:
        """Some bytes, whatever they are."""
        self._unparsed = self._unparsed + data if self._unparsed else data
        if self._next_parse is None:
            self._parse()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._abort_timer is not None and not self._is_eof and not self.transport.is_closing():
            self._abort_timer.cancel()
            self._abort_timer = None

    # What the parser says

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._state == _ENDED:
            return
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._state = _HEAD
        self._has_begun = True
        self._framing = self._piece_bytes
        self._body = self._hosts = 0
        self._coding = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is ignored."""
        if self._state == _HEAD:
            name = name.lower()
            if name == b"host":
                self._hosts += 1
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            elif name == b"transfer-encoding":
                self._coding = self._coding + b", " + value if self._coding else value
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there: admit the request, or refuse it."""
        if self._state != _HEAD:
            return
        if self.parser.should_upgrade():
            self._state = _UPGRADE
            return
        version = self.parser.get_http_version()
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1: such a client cannot mean it
        rejection = check_head(
            self.url, self.headers, version, read=self._framing, hosts=self._hosts, coding=self._coding
        )
        is_counted = not self.url.startswith(_ALWAYS_ADMITTED)
        if not is_counted:
            self._admission_control.exempt(self.scope)
        if rejection is not None:
            self._answer_with(rejection)
        elif is_counted and self._admission_control.is_full():
            self._admission_control.on_rejection()
            if self._is_answering() or self.parser.get_method() == b"HEAD":
                self._answer_with(OVERLOADED_RESPONSE)
            else:
                self._reject_now()
        else:
            super().on_headers_complete()
        if self._state == _HEAD:
            self._state = _BODY
            self._framing = 0

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._framing -= len(body)
        self._body += len(body)
        if self._state == _BODY:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole. Only now one that waits for its body counts: slow clients take nobody's place."""
        if self._state == _BODY:
            super().on_message_complete()
            if self.cycle is self._current and not self.cycle.response_complete:
                self._admission_control.enter(self.cycle.scope)
        if self._state in (_BODY, _REJECTED):
            self._state = _BETWEEN
            self._framing = 0
            self._has_completed = True

    # What uvicorn does with a request

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        if not cycle.more_body or cycle.scope["method"] not in _WITH_BODY:
            self._admission_control.enter(cycle.scope)
        super()._start_asgi_task(cycle, _DisconnectAware(app, cycle))  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        """A request has been answered: go on with what came after it."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
            return
        if self.pipeline:
            self.flow.pause_reading()
        elif self._unparsed and self._next_parse is None:
            self._parse()
        if self._is_answering():
            return
        if self._last_response is not None:
            self._write_last(self._last_response)
        elif self._is_eof and not self._unparsed:
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for a while: close, also on a client that does not read."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def shutdown(self) -> None:
        """The service is about to end."""
        self._admission_control.closing.set()
        super().shutdown()

    # The parts

    def _parse(self) -> None:
        """Parse what has come: not beyond a request that has to wait for its turn, and not all of much at once."""
        self._next_parse = None
        for _ in range(_PIECES_AT_ONCE):
            if not self._unparsed or self.pipeline or self._state == _ENDED:
                break
            unparsed = self._unparsed
            self._unparsed = unparsed[_PIECE:]
            self._feed(unparsed[:_PIECE])
        if self._state == _ENDED:
            self._unparsed = b""
            return
        if self.pipeline:
            self.flow.pause_reading()
        elif self._unparsed:
            self.flow.pause_reading()
            self._next_parse = self.loop.call_soon(self._parse)
        elif self.flow.read_paused and (self.cycle is None or len(self.cycle.body) <= HIGH_WATER_LIMIT):
            self.flow.resume_reading()
        self._set_timers()

    def _set_timers(self) -> None:
        """See that a timer runs for whatever the client is waited for."""
        if self._state != _BETWEEN:
            if self._has_begun or self._has_completed:
                self._stop_deadline()
            if self._deadline is None:
                self._start_deadline()
        else:
            if self._has_completed:
                self._stop_deadline()
            if self._deadline is None and self.timeout_keep_alive_task is None and not self._is_answering():
                self._start_keep_alive()
        self._has_begun = self._has_completed = False

    def _feed(self, piece: bytes) -> None:
        self._piece_bytes = len(piece)
        self._framing += self._piece_bytes
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as stopped:
            self._ignore_upgrade(piece[stopped.args[0] :])
        except httptools.HttpParserError:
            if self._state != _ENDED:
                self._reject_and_close(problem_response(400, "the request is not valid HTTP/1.1"))
        if self._state == _BETWEEN:
            self._admission_control.hold(self, 0)
            if self._framing > MAX_HEAD_BYTES and not self._has_completed:
                self._reject_and_close(problem_response(400, "a request begins with its method, not with empty lines"))
        elif self._state != _ENDED:
            self._check_size()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Have a new parser read the head without its offer of another protocol, and then the rest."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._reject_and_close(
                problem_response(405, "CONNECT is for proxies, and this is none: use another method")
            )
            return
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._feed(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _check_size(self) -> None:
        """Bound what an unfinished request has sent."""
        self._framing = max(self._framing, 0)  # less than none where body came in the piece that the head ended in
        if self._state == _HEAD:
            if self._framing > MAX_HEAD_BYTES + _PIECE:
                self._reject_and_close(
                    problem_response(431, f"the head of the request has more than {MAX_HEAD_BYTES:,} bytes")
                )
                return
        elif self._framing > MAX_FRAMING_BYTES + self._body // _BODY_BYTES_PER_FRAMING_BYTE:
            self._reject_and_close(problem_response(431, _TOO_MUCH_FRAMING))
            return
        if self._state == _REJECTED or (self._state == _BODY and self.cycle.response_complete):
            self._admission_control.hold(self, 0)
            if self._body > MAX_UNREAD_BYTES:  # nobody reads it
                self._state = _ENDED
                self._close()
            return
        self._admission_control.hold(self, self._framing + self._body)
        while self._admission_control.unfinished_bytes > MAX_UNFINISHED_BYTES:
            oldest: Connection = next(iter(self._admission_control.unfinished))  # those who send in time are soon done
            self._admission_control.on_rejection()
            oldest._reject_and_close(OVERLOADED_RESPONSE)

    def _answer_with(self, app: Any) -> None:
        """Have another app than the service answer this request."""
        self._admission_control.exempt(self.scope)
        usual, self.app = self.app, app
        try:
            super().on_headers_complete()
        finally:
            self.app = usual

    def _is_answering(self) -> bool:
        """Whether a request is being answered, or waits for its turn."""
        return self._current is not None and not self._current.response_complete

    def _reject_now(self) -> None:
        """Answer that the service is full; the connection stays where the end of the request can be told."""
        self._state = _REJECTED
        self.server_state.total_requests += 1
        if self.flow.write_paused:  # the client asks on without reading
            self._state = _ENDED
            self.transport.abort()
            return
        # Whoever waits for `100 Continue` may keep its body to itself, so what comes next could not be told.
        stays = self.parser.should_keep_alive() and not self.expect_100_continue
        answer = OVERLOADED_KEEP_ALIVE if stays else OVERLOADED_CLOSE
        self.transport.write(answer.with_headers(self.server_state.default_headers))
        if not stays:
            self._state = _ENDED
            self._close()

    def _reject_and_close(self, response: Response) -> None:
        """Read no more, and close once earlier requests and then this one have been answered."""
        is_answered = False
        if self._state == _BODY:
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()  # it has not begun, and would wait for its body for ever
            elif self.cycle is self._current:
                is_answered = self.cycle.response_started
                self._current = None
        self._state = _ENDED
        self._admission_control.hold(self, 0)
        self._stop_deadline()
        if response is not OVERLOADED_RESPONSE:
            self._admission_control.on_invalid(response.status_code)
        if is_answered:
            self._close()
        elif self._is_answering():
            self._last_response = PrebuiltResponse(response, closing=True)
            self.flow.pause_reading()
        else:
            self._write_last(PrebuiltResponse(response, closing=True))

    def _write_last(self, answer: PrebuiltResponse) -> None:
        self.transport.write(answer.with_headers(self.server_state.default_headers))
        self._close()

    def _close(self) -> None:
        """Close once what has been written is read, or after a while."""
        self.transport.close()
        self._abort_later()

    def _start_keep_alive(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self._admission_control.read_timeout_s, self._on_deadline)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        """The client has sent too little in time."""
        self._deadline = None
        own = self._state == _BODY and self.cycle is self._current
        if self._is_answering() and not own:
            if self._state != _BETWEEN:
                self._start_deadline()  # an earlier request is being answered: reading may have had to wait for it
        elif self._state in (_BETWEEN, _REJECTED):
            self._close()
        else:
            seconds = self._admission_control.read_timeout_s
            self._reject_and_close(
                problem_response(408, f"the request did not come whole within {seconds:g} s: send it faster")
            )

    def _abort_later(self) -> None:
        """Give the client a bounded time to read what it is answered."""
        if self._abort_timer is None:
            self._abort_timer = self.loop.call_later(self._admission_control.read_timeout_s, self.transport.abort)
