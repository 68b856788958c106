"""A bound on what comes before a request's body: the request line, the headers, the parameters of the query.

uvicorn's parser has none, so a client could fill the memory with one endless header.
"""

import re
from typing import Any, Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.problems import problem_response

MAX_HEAD_BYTES: Final = 65_536
MAX_TARGET_BYTES: Final = 32_768  # path and query: a hundred excluded tracks of 256 letters fit
MAX_PARAMETERS: Final = 200
_TOO_LARGE: Final = f"the request line and headers are larger than {MAX_HEAD_BYTES:,} bytes: send fewer or shorter ones"
_TOO_LONG: Final = f"path and query are longer than {MAX_TARGET_BYTES:,} bytes: exclude fewer tracks"
# What no call takes, made the name of a header that nobody reads. In a body it is no JSON, and its length stays.
_OFFER: Final = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_NO_OFFER: Final = b"\r\nx-offer:"
_TOO_MANY: Final = f"the query has more than {MAX_PARAMETERS} parameters: send fewer"


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol, refusing heads that are too large with 431 and queries that no call takes with 422.

    It does not hear of another protocol that a client offers to go on by (`Upgrade: h2c`), as a server may (RFC 9110,
    7.8, 2022): httptools would take the body for bytes of that protocol.
    """

    _in_head = False
    _received = 0  # bytes that may belong to the head that is being read
    _latest = 0

    def data_received(self, data: bytes) -> None:
        """Some bytes, whatever they are."""
        self._latest = len(data)
        self._received += self._latest
        if b"pgrade:" in data or b"PGRADE:" in data:
            data = _OFFER.sub(_NO_OFFER, data)
        super().data_received(data)
        if self._in_head and self._received > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._end(problem_response(431, _TOO_LARGE))

    def on_message_begin(self) -> None:
        """A request begins, somewhere in the latest bytes."""
        super().on_message_begin()
        self._in_head = True
        self._received = self._latest

    def on_headers_complete(self) -> None:
        """The head is there. Its size is counted only where so much has come that it may be too large."""
        self._in_head = False
        if self._received > MAX_HEAD_BYTES and self._size() > MAX_HEAD_BYTES:
            self._hand_to(problem_response(431, _TOO_LARGE))
        elif len(self.url) > MAX_TARGET_BYTES:
            self._hand_to(problem_response(422, _TOO_LONG))
        elif self.url.count(b"&") >= MAX_PARAMETERS:
            self._hand_to(problem_response(422, _TOO_MANY))
        else:
            super().on_headers_complete()

    def _size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _hand_to(self, app: Any) -> None:
        """Have another app than the service answer this request."""
        usual, self.app = self.app, app
        try:
            super().on_headers_complete()
        finally:
            self.app = usual

    def _end(self, answer: Response) -> None:
        """Answer what has no end, and close."""
        self.transport.write(ReadyAnswer(answer, closing=True).after(self.server_state.default_headers))
        self.transport.close()


class ReadyAnswer:
    """An answer as bytes, for where uvicorn has no part in it."""

    def __init__(self, response: Response, *, closing: bool = False) -> None:
        """`closing` says that the connection ends with it."""
        self._status = STATUS_LINE[response.status_code]
        self._headers = [*response.raw_headers, (b"connection", b"close")] if closing else list(response.raw_headers)
        self._body = bytes(response.body)
        self._before: list[tuple[bytes, bytes]] | None = None
        self._bytes = b""

    def after(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The answer with these headers first. uvicorn makes a new list of its own once a second, for the date."""
        if headers is not self._before:
            lines = b"".join(b"%b: %b\r\n" % line for line in [*headers, *self._headers])
            self._bytes = b"%b%b\r\n%b" % (self._status, lines, self._body)
            self._before = headers
        return self._bytes
