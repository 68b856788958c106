"""The HTTP/1.1 protocol of one client connection: request boundaries, limits, deadlines and admission.

This subclass of uvicorn's protocol (httptools) adds five rules, in one state machine:

- The head, the chunk framing and the trailers of a request have size limits. The unread part of a body has one too.
- Trailers are ignored. Only fields of the head are headers (RFC 9110, 6.5.1, 2022).
- `Upgrade` is ignored (RFC 9110, 7.8), so the body is still parsed as a body. CONNECT is rejected.
- A client has a deadline for the whole request. All connections together hold a limited number of unfinished bytes.
- Under overload, a request is rejected before its body is read and before a task exists, so a rejection is cheap.

It overrides private names of uvicorn: pyproject.toml pins the minor version, and a test checks that the names exist.
"""

import asyncio
from typing import Any, Final

import httptools
from starlette.responses import Response
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
from service.http.middleware import DisconnectAware
from service.problems import problem_response

MAX_UNFINISHED_BYTES: Final = 8 * 2**20  # of all unfinished requests of a worker together
MAX_FRAMING_BYTES: Final = 16_384  # chunk sizes, extensions and trailers; a quarter of the body is allowed on top
_BODY_BYTES_PER_FRAMING_BYTE: Final = 4
MAX_UNREAD_BYTES: Final = 2**20  # of the body of a request that is already answered
_PIECE: Final = 8192  # bytes to parse at a time; a request may begin anywhere in a piece, so limits are this exact
_PIECES_AT_ONCE: Final = 4  # then other connections get their turn
_WITH_BODY: Final = ("POST", "PUT")  # methods whose routes read a body

# Operators need these under overload. They are always accepted and never counted.
_ALWAYS_ADMITTED: Final = (b"/health/", b"/metrics", b"/releases", b"/operations", b"/ops", b"/web/ops")

# What the next byte belongs to. Plain integers, because each request compares them about 20 times.
_BETWEEN: Final = 0  # no request
_HEAD: Final = 1
_UPGRADE: Final = 2  # a head with `Upgrade`: httptools has stopped, see _ignore_upgrade
_BODY: Final = 3
_REJECTED: Final = 4  # the body of a rejected request
_ENDED: Final = 5  # no more input is read


class Connection(HttpToolsProtocol):
    """One client connection. The lifespan state holds the `admission_control`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admission_control: AdmissionControl = self.app_state["admission_control"]
        self._state = _BETWEEN
        self._unparsed = b""  # waits until earlier requests are answered
        self._framing = 0  # bytes of the request outside its body
        self._body = 0  # bytes of its body
        self._hosts = 0  # its Host headers
        self._coding = b""  # its Transfer-Encoding
        self._piece_bytes = 0  # size of the piece being parsed
        self._has_begun = self._has_completed = False  # whether a request has, since the timers were set
        self._next_parse: asyncio.Handle | None = None  # parses the rest of `_unparsed`
        self._is_eof = False
        self._current: RequestResponseCycle | None = None  # the request being answered, or the last one
        self._last_response: PrebuiltResponse | None = None  # sent after the responses to earlier requests
        self._deadline: asyncio.TimerHandle | None = None  # for the client to send
        self._abort_timer: asyncio.TimerHandle | None = None  # for the client to read

    # Events of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline, or reject the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._admission_control.max_connections:
            self._admission_control.on_rejection()
            self._reject_and_close(OVERLOADED_RESPONSE)
        else:
            self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything the connection holds."""
        self._state = _ENDED
        self._unparsed = b""
        self._admission_control.hold(self, 0)
        for handle in (self._deadline, self._abort_timer, self._next_parse):
            if handle is not None:
                handle.cancel()
        if self._current is not None and self._is_answering():
            self._current.disconnected = True  # uvicorn notifies only the newest request, which may not have started
            self._current.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client has finished sending. Answer complete requests, but end a stream that has started."""
        waits = self._current is not None and not self._current.response_started
        if not waits or not (self._unparsed or self._state == _BETWEEN):
            return None  # the transport closes
        self._is_eof = True
        self._abort_later()
        return True

    def data_received(self, data: bytes) -> None:
        """Buffer and parse."""
        self._unparsed = self._unparsed + data if self._unparsed else data
        if self._next_parse is None:
            self._parse()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._abort_timer is not None and not self._is_eof and not self.transport.is_closing():
            self._abort_timer.cancel()
            self._abort_timer = None

    # Events of the parser and of the response

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
        """Keep a header. Ignore a trailer."""
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
        """The head is complete: accept or reject the request."""
        if self._state != _HEAD:
            return
        if self.parser.should_upgrade():
            self._state = _UPGRADE
            return
        version = self.parser.get_http_version()
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1
        rejection = check_head(version, self.url, self.headers, self._framing, self._hosts, self._coding)
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
        """Part of the body, as far as it is parsed."""
        self._framing -= len(body)
        self._body += len(body)
        if self._state == _BODY:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete. If it has a body it counts only now, so slow clients use up no capacity."""
        if self._state == _BODY:
            super().on_message_complete()
            if self.cycle is self._current and not self.cycle.response_complete:
                self._admission_control.enter(self.cycle.scope)
        if self._state in (_BODY, _REJECTED):
            self._state = _BETWEEN
            self._framing = 0
            self._has_completed = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        if not cycle.more_body or cycle.scope["method"] not in _WITH_BODY:
            self._admission_control.enter(cycle.scope)
        super()._start_asgi_task(cycle, DisconnectAware(app, cycle))  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        """Continue with the next request."""
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
        """Close an idle connection, even if its client does not read."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def shutdown(self) -> None:
        """The service shuts down."""
        self._admission_control.closing.set()
        super().shutdown()

    # Parsing and limits

    def _parse(self) -> None:
        """Parse a limited number of pieces. Stop if a pipelined request waits for its turn."""
        self._next_parse = None
        for _ in range(_PIECES_AT_ONCE):
            if not self._unparsed or self.pipeline or self._state == _ENDED:
                break
            piece, self._unparsed = self._unparsed[:_PIECE], self._unparsed[_PIECE:]
            self._feed(piece)
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
        """Ensure that a timer runs whenever the connection waits for the client."""
        is_between = self._state == _BETWEEN
        if self._has_completed or (self._has_begun and not is_between):
            self._stop_deadline()
        if self._deadline is None:
            if not is_between:
                self._start_deadline()
            elif self.timeout_keep_alive_task is None and not self._is_answering():
                handler = self.timeout_keep_alive_handler
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, handler)
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
                self._reject_invalid(400, "the request is not valid HTTP/1.1")
        if self._state == _BETWEEN:
            self._admission_control.hold(self, 0)
            if self._framing > MAX_HEAD_BYTES and not self._has_completed:
                self._reject_invalid(400, "a request begins with its method, not with empty lines")
        elif self._state != _ENDED:
            self._check_size()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the head again without `Upgrade`, with a new parser, and then the rest."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._reject_invalid(405, "this service is not a proxy: use another method than CONNECT")
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._feed(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _check_size(self) -> None:
        """Reject an unfinished request that is too large, or the oldest ones if all together are."""
        self._framing = max(self._framing, 0)  # negative if the piece with the end of the head had body bytes
        if self._state == _HEAD and self._framing > MAX_HEAD_BYTES + _PIECE:
            self._reject_invalid(431, f"the head of the request has more than {MAX_HEAD_BYTES:,} bytes")
        elif self._state != _HEAD and self._framing > MAX_FRAMING_BYTES + self._body // _BODY_BYTES_PER_FRAMING_BYTE:
            self._reject_invalid(431, f"chunk framing has more than {MAX_FRAMING_BYTES:,} bytes: send larger chunks")
        elif self._state == _REJECTED or (self._state == _BODY and self.cycle.response_complete):
            self._admission_control.hold(self, 0)
            if self._body > MAX_UNREAD_BYTES:
                self._state = _ENDED
                self._close()
        else:
            self._admission_control.hold(self, self._framing + self._body)
            while self._admission_control.unfinished_bytes > MAX_UNFINISHED_BYTES:
                oldest: Connection = next(iter(self._admission_control.unfinished))  # requests sent in time end soon
                self._admission_control.on_rejection()
                oldest._reject_and_close(OVERLOADED_RESPONSE)

    def _answer_with(self, app: Any) -> None:
        """Answer this request with another app."""
        self._admission_control.exempt(self.scope)
        service, self.app = self.app, app
        try:
            super().on_headers_complete()
        finally:
            self.app = service

    def _is_answering(self) -> bool:
        """Whether a response is not complete yet."""
        return self._current is not None and not self._current.response_complete

    def _reject_now(self) -> None:
        """Write the 503. Keep the connection open if the end of the request can be found."""
        self._state = _REJECTED
        self.server_state.total_requests += 1
        if self.flow.write_paused:  # the client keeps sending without reading
            self._state = _ENDED
            self.transport.abort()
            return
        # A client that waits for `100 Continue` may omit the body, so the next byte is ambiguous.
        keep_alive = self.parser.should_keep_alive() and not self.expect_100_continue
        answer = OVERLOADED_KEEP_ALIVE if keep_alive else OVERLOADED_CLOSE
        self.transport.write(answer.with_headers(self.server_state.default_headers))
        if not keep_alive:
            self._state = _ENDED
            self._close()

    def _reject_invalid(self, status: int, detail: str) -> None:
        self._admission_control.on_invalid(status)
        self._reject_and_close(problem_response(status, detail))

    def _reject_and_close(self, response: Response) -> None:
        """Stop reading. Close after the responses to earlier requests and then this one."""
        is_answered = False
        if self._state == _BODY:
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()  # it has not started, and its body will never be complete
            elif self.cycle is self._current:
                is_answered = self.cycle.response_started
                self._current = None
        self._state = _ENDED
        self._admission_control.hold(self, 0)
        self._stop_deadline()
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
        """Close once the client has read everything, or after the timeout."""
        self.transport.close()
        self._abort_later()

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self._admission_control.read_timeout_s, self._on_deadline)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        """The client has not sent its request in time."""
        self._deadline = None
        if self._is_answering() and not (self._state == _BODY and self.cycle is self._current):
            if self._state != _BETWEEN:
                self._start_deadline()  # reading may have waited for an earlier response
        elif self._state in (_BETWEEN, _REJECTED):
            self._close()
        else:
            seconds = self._admission_control.read_timeout_s
            self._reject_invalid(408, f"the request was not complete within {seconds:g} s: send it faster")

    def _abort_later(self) -> None:
        """Give the client a limited time to read the response."""
        if self._abort_timer is None:
            self._abort_timer = self.loop.call_later(self._admission_control.read_timeout_s, self.transport.abort)
