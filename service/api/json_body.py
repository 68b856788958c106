"""Read a JSON body: check its headers and its size, then validate its content once.

Validation runs on the event loop, so an invalid body with a hundred thousand errors must not cost more than a valid
one. Two rules bound the work. A body with more values than the largest valid request is rejected before it is parsed.
If there are many errors, only their number is reported.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from segue.errors import SegueError
from service.problems import MAX_COUNTED_ERRORS, MAX_LISTED_ERRORS

_JSON: Final = b"application/json"
_BODY_HEADERS: Final = frozenset({b"content-type", b"content-length", b"content-encoding", b"content-range"})
_LONGEST_SHOWN: Final = 80
_LONGEST_INVALID: Final = 400  # of a text that is not JSON; 80 characters of it are shown
_ITEMS_IN_LIMIT: Final = 100  # SEGUE_MAX_REQUEST_BYTES is for a body of this many events
_UNCOUNTED_BYTES: Final = 16_384  # a body of this size is validated within a few milliseconds, whatever its content
# An event has up to five members. A comma, `[` or `{` precedes each value. The rest is for the outer object.
_VALUES_PER_ITEM: Final = 6
_OUTER_VALUES: Final = 20


class JsonBody(BaseModel):
    """A request body. Unknown members are errors; numbers must be numbers and text must be text.

    With the default of 256 KiB for SEGUE_MAX_REQUEST_BYTES every valid body fits if it is sent as UTF-8: an event has
    two ids of 256 characters, of four bytes each, and about 130 bytes besides.
    """

    model_config = ConfigDict(extra="forbid")

    max_items: ClassVar[int]  # events
    max_other_values: ClassVar[int] = 0  # of other lists
    max_bytes: ClassVar[int | None] = None  # if it does not depend on the number of events
    remedy: ClassVar[str]  # what to do about a body that is too large

    @classmethod
    def max_values(cls) -> int:
        """The number of JSON values in the largest valid body, roughly: never too small."""
        return cls.max_items * _VALUES_PER_ITEM + cls.max_other_values + _OUTER_VALUES

    @classmethod
    def bytes_limit(cls, max_request_bytes: int) -> int:
        """The largest body in bytes, given SEGUE_MAX_REQUEST_BYTES."""
        if cls.max_bytes is not None:
            return min(max_request_bytes, cls.max_bytes)
        return max_request_bytes * cls.max_items // _ITEMS_IN_LIMIT


Body = TypeVar("Body", bound=JsonBody)


class BodyTooLarge(SegueError):
    """The request's body is larger than the service accepts."""

    http_status: ClassVar[int] = 413
    title: ClassVar[str] = "Body too large"


class WrongMediaType(SegueError):
    """The request's body is not plain JSON in UTF-8, or its headers do not say so."""

    http_status: ClassVar[int] = 415
    title: ClassVar[str] = "Unsupported media type"


def described_body(model: type[JsonBody]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads this body itself. service/app.py adds the model to the schemas."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def read_json(
    model: type[Body], headers: Sequence[tuple[bytes, bytes]], receive: Receive, max_request_bytes: int
) -> Body:
    """The body as `model`. `max_request_bytes` is SEGUE_MAX_REQUEST_BYTES.

    Raises WrongMediaType, BodyTooLarge, RequestValidationError, and ClientDisconnect if the client leaves before the
    body is complete.
    """
    max_bytes = model.bytes_limit(max_request_bytes)
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
    """The body as `model`, without conversions. Raises RequestValidationError with at most 100 errors."""
    if len(body) > _UNCOUNTED_BYTES and _values(body, model.max_values()) > model.max_values():
        raise _too_much(
            "too_many_values",
            f"{len(body):,} bytes of JSON",
            f"At most {model.max_values():,} JSON values: {model.remedy}",
        )
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        count = error.error_count()
        if count > MAX_COUNTED_ERRORS:
            raise _too_much(
                "too_many_errors",
                f"wrong in {count:,} places",
                f"A body as openapi.json describes it: {model.remedy}",
            ) from None
        found = error.errors(include_url=False)[:MAX_LISTED_ERRORS]
        errors = [{**one, "loc": ("body", *one["loc"])} for one in found]
        if found and found[0]["type"] == "json_invalid":
            errors[0]["input"] = body[:_LONGEST_INVALID].decode("utf-8", "replace")  # not as Python writes bytes
        raise RequestValidationError(errors) from error


def _check_headers(model: type[JsonBody], headers: Sequence[tuple[bytes, bytes]], max_bytes: int) -> None:
    """Refuse what these headers say of the body, as far as they can tell.

    Whatever a browser sends for a page of another site without asking first says that it is something else than JSON,
    or nothing (https://fetch.spec.whatwg.org/#cors-safelisted-request-header, 2026).
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _BODY_HEADERS:
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


def _too_large(model: type[JsonBody], max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes:,} bytes: {model.remedy}")


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
