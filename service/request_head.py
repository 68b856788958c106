"""A bound on what comes before a request's body: the request line, the headers, the parameters of the query.

uvicorn's parser has none, so a client could fill the memory with one endless header.
"""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import problem_response

MAX_HEAD_BYTES: Final = 65_536
MAX_TARGET_BYTES: Final = 32_768  # path and query: a hundred excluded tracks of 256 letters fit
MAX_PARAMETERS: Final = 200
_TOO_LARGE: Final = f"the request line and headers are larger than {MAX_HEAD_BYTES:,} bytes: send fewer or shorter ones"
_TOO_LONG: Final = f"path and query are longer than {MAX_TARGET_BYTES:,} bytes: exclude fewer tracks"
_TOO_MANY: Final = f"the query has more than {MAX_PARAMETERS} parameters: send fewer"


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol, refusing heads that are too large with 431 and queries that no call takes with 422."""

    _in_head = False
    _received = 0  # bytes that may belong to the head that is being read
    _latest = 0

    def data_received(self, data: bytes) -> None:
        """Some bytes, whatever they are."""
        self._latest = len(data)
        self._received += self._latest
        super().data_received(data)
        if self._in_head and self._received > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._end(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins, somewhere in the latest bytes."""
        super().on_message_begin()
        self._in_head = True
        self._received = self._latest

    def on_headers_complete(self) -> None:
        """The head is there. Its size is counted only where so much has come that it may be too large."""
        self._in_head = False
        if self._received > MAX_HEAD_BYTES and self._size() > MAX_HEAD_BYTES:
            self._refuse(431, _TOO_LARGE)
        elif len(self.url) > MAX_TARGET_BYTES:
            self._refuse(422, _TOO_LONG)
        elif self.url.count(b"&") >= MAX_PARAMETERS:
            self._refuse(422, _TOO_MANY)
        else:
            super().on_headers_complete()

    def _size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse(self, status: int, detail: str) -> None:
        """Have another app than the service answer this request."""
        app, self.app = self.app, problem_response(status, detail)
        try:
            super().on_headers_complete()
        finally:
            self.app = app

    def _end(self, detail: str) -> None:
        """Answer a head that has no end, and close."""
        answer = problem_response(431, detail)
        head = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % line for line in head)
        self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\n%b\r\n%b" % (lines, bytes(answer.body)))
        self.transport.close()
