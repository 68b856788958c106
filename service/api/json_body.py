"""The one way to read a JSON body: what its headers say, how large it may be, and what is in it.

Both ways to a route read bodies here (service/api/quick_path.py and service/api/state.py), so that the same request
gets the same answer on each.

A body is validated once, on the event loop, so a body that is wrong in a hundred thousand places must not cost more
than a valid one. Two rules bound it. A body with more values than the largest valid request has is refused before it is
parsed. Of many errors only their number is reported.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from segue.errors import SegueError
from service.api.bodies import MAX_EVENTS, MAX_SUPPOSED, MAX_TRACKS, EventsRequest, SwapRequest, WhatIfRequest
from service.problems import MAX_COUNTED_ERRORS, MOST_ERRORS

Body = TypeVar("Body", bound=BaseModel)

_JSON: Final = b"application/json"
_ABOUT_THE_BODY: Final = frozenset({b"content-type", b"content-length", b"content-encoding", b"content-range"})
_LONGEST_SHOWN: Final = 80
_LONGEST_INVALID: Final = 400  # of a text that is no JSON; of it, 80 characters are shown
_SWAP_BYTES: Final = 4096
_UNCOUNTED_BYTES: Final = 16_384  # a body of this size is validated within a few milliseconds, whatever it holds
# An event has up to five members; a comma, `[` or `{` stands before each value. The rest is for the outer object.
_EVENT_VALUES: Final = 6
_OUTER_VALUES: Final = 20
MAX_VALUES: Final[dict[type[BaseModel], int]] = {
    EventsRequest: MAX_EVENTS * _EVENT_VALUES + _OUTER_VALUES,
    WhatIfRequest: MAX_SUPPOSED * _EVENT_VALUES + MAX_TRACKS + _OUTER_VALUES,
    SwapRequest: _OUTER_VALUES,
}
_REMEDY: Final[dict[type[BaseModel], str]] = {
    EventsRequest: f"send at most {MAX_EVENTS} events at a time",
    WhatIfRequest: f"send at most {MAX_SUPPOSED} events, and {MAX_TRACKS} tracks in exclude",
    SwapRequest: "send the name of a release",
}


class BodyTooLarge(SegueError):
    """The request's body is larger than the service takes."""

    http_status: ClassVar[int] = 413
    title: ClassVar[str] = "Body too large"


class WrongMediaType(SegueError):
    """The request's body is not plain JSON in UTF-8, or does not say so."""

    http_status: ClassVar[int] = 415
    title: ClassVar[str] = "Unsupported media type"


def max_body_bytes(events_bytes: int) -> dict[type[BaseModel], int]:
    """The largest body of each kind.

    `events_bytes` is SEGUE_MAX_REQUEST_BYTES, for MAX_EVENTS events. With the default of 256 KiB every request that
    the models allow fits if it is sent as UTF-8: an event has two ids of 256 characters, of four bytes each, and
    about 130 bytes besides.
    """
    return {
        EventsRequest: events_bytes,
        WhatIfRequest: events_bytes * MAX_SUPPOSED // MAX_EVENTS,
        SwapRequest: min(events_bytes, _SWAP_BYTES),
    }


async def read_json(
    model: type[Body], headers: Sequence[tuple[bytes, bytes]], receive: Receive, max_bytes: int
) -> Body:
    """The body as `model`, validated once. Numbers must be numbers and text must be text: nothing is converted.

    Raises WrongMediaType, BodyTooLarge for more than `max_bytes` bytes, RequestValidationError, and ClientDisconnect
    where the client has gone before the body was whole.
    """
    _check_headers(model, headers, max_bytes)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(model, max_bytes)
        more = message.get("more_body", False)
    return validated(model, body)


def validated(model: type[Body], body: bytes | bytearray) -> Body:
    """The body as `model`, strictly: nothing is converted. Raises RequestValidationError with at most 100 errors."""
    if len(body) > _UNCOUNTED_BYTES and _values(body, MAX_VALUES[model]) > MAX_VALUES[model]:
        raise _too_much(
            "too_many_values",
            f"{len(body):,} bytes of JSON",
            f"At most {MAX_VALUES[model]:,} JSON values: {_REMEDY[model]}",
        )
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        count = error.error_count()
        if count > MAX_COUNTED_ERRORS:
            raise _too_much(
                "too_many_errors",
                f"wrong in {count:,} places",
                f"A body as openapi.json describes it: {_REMEDY[model]}",
            ) from None
        found = error.errors(include_url=False)[:MOST_ERRORS]
        errors = [{**one, "loc": ("body", *one["loc"])} for one in found]
        if found and found[0]["type"] == "json_invalid":
            errors[0]["input"] = body[:_LONGEST_INVALID].decode("utf-8", "replace")  # not as Python writes bytes
        raise RequestValidationError(errors) from error


def _check_headers(model: type[BaseModel], headers: Sequence[tuple[bytes, bytes]], max_bytes: int) -> None:
    """Refuse what these headers say of the body, as far as they can tell.

    Whatever a browser sends for a page of another site without asking first says that it is something else than JSON,
    or nothing (https://fetch.spec.whatwg.org/#cors-safelisted-request-header, 2026).
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _ABOUT_THE_BODY:
            if name in found:
                raise WrongMediaType(f"{name.decode().title()} is there twice: send it once")
            found[name] = value
    kind = found.get(b"content-type")
    if kind != _JSON and (kind is None or not _is_json(kind)):
        shown = "missing" if kind is None else _shown(kind)
        raise WrongMediaType(f"Content-Type is {shown}: send JSON in UTF-8, and say so by application/json")
    coding = found.get(b"content-encoding", b"identity")
    if coding.lower() != b"identity":
        raise WrongMediaType(f"Content-Encoding is {_shown(coding)}: send the body as it is, without a content coding")
    if b"content-range" in found:
        raise WrongMediaType("Content-Range is there: send the whole body, not a part of it")
    length = found.get(b"content-length", b"0")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(model, max_bytes)


def _is_json(kind: bytes) -> bool:
    """Whether a Content-Type is JSON in UTF-8, the only charset that JSON has (RFC 8259, 8.1, 2017)."""
    media_type, *parameters = (part.strip().lower() for part in kind.split(b";"))
    charsets = [
        value.strip(b'"') for name, _, value in (one.partition(b"=") for one in parameters) if name == b"charset"
    ]
    return media_type == _JSON and all(charset in (b"utf-8", b"utf8") for charset in charsets)


def _shown(value: bytes) -> str:
    return ascii(value[:_LONGEST_SHOWN].decode("latin-1"))


def _too_large(model: type[BaseModel], max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes:,} bytes: {_REMEDY[model]}")


def _too_much(kind: str, found: str, expected: str) -> RequestValidationError:
    summary: dict[str, Any] = {"type": kind, "loc": ("body",), "msg": expected, "found": found}
    return RequestValidationError([summary])


def _values(body: bytes | bytearray, most: int) -> int:
    """About how many values a JSON text has, exact where it has at most `most`; commas in strings do not count.

    Two passes and a split by quotes: a small part of what it takes to parse the text.
    """
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = bare.count(b'"')
    if quotes > 4 * most:  # two for each name and two for each text
        return quotes
    outside = b"".join(bare.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{")
