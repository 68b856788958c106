"""Read a JSON request body: check its headers and size, and validate its content.

Validation runs on the event loop, so a body with a hundred thousand errors must not take more time than a valid body.
Two rules limit the work. A body with more JSON values than the largest valid request is rejected before it is parsed.
If validation finds too many errors, only their number is reported.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from segue.errors import SegueError
from segue.safe_files import parse_json
from service.problems import MAX_COUNTED_ERRORS, MAX_LISTED_ERRORS

_JSON: Final = b"application/json"
_BODY_HEADERS: Final = frozenset({b"content-type", b"content-length", b"content-encoding", b"content-range"})
_LONGEST_SHOWN: Final = 80
_LONGEST_INVALID: Final = 400  # bytes of invalid JSON to keep; responses show 80 characters of them
_ITEMS_IN_LIMIT: Final = 100  # SEGUE_MAX_REQUEST_BYTES is the limit for a body with this number of events
_UNCOUNTED_BYTES: Final = 16_384  # validating a body of up to this size takes at most a few milliseconds
# An event has up to five members, each with one value, and the event itself is one more value. _OUTER_VALUES are the
# values of the outer object.
_VALUES_PER_ITEM: Final = 6
_OUTER_VALUES: Final = 20


class JsonBody(BaseModel):
    """Base class of request bodies. Unknown members are errors, and values are not converted to other types.

    The default of 256 KiB for SEGUE_MAX_REQUEST_BYTES is enough for every valid body in unescaped UTF-8: an event has
    two ids of up to 256 characters with up to four bytes each, and about 130 further bytes.
    """

    model_config = ConfigDict(extra="forbid")

    max_items: ClassVar[int]  # maximum number of events
    max_other_values: ClassVar[int] = 0  # maximum number of values in other lists
    max_bytes: ClassVar[int | None] = None  # maximum size; None if it depends on the number of events
    remedy: ClassVar[str]  # advice in the error message for a body that is too large

    @classmethod
    def max_values(cls) -> int:
        """Return an upper bound of the number of JSON values in a valid body."""
        return cls.max_items * _VALUES_PER_ITEM + cls.max_other_values + _OUTER_VALUES

    @classmethod
    def bytes_limit(cls, max_request_bytes: int) -> int:
        """Return the maximum body size in bytes. `max_request_bytes` is SEGUE_MAX_REQUEST_BYTES."""
        if cls.max_bytes is not None:
            return min(max_request_bytes, cls.max_bytes)
        return max_request_bytes * cls.max_items // _ITEMS_IN_LIMIT


Body = TypeVar("Body", bound=JsonBody)


class BodyTooLarge(SegueError):
    """The request body is larger than the service accepts."""

    http_status: ClassVar[int] = 413
    title: ClassVar[str] = "Body too large"


class WrongMediaType(SegueError):
    """The request body is not declared as uncompressed JSON in UTF-8."""

    http_status: ClassVar[int] = 415
    title: ClassVar[str] = "Unsupported media type"


def described_body(model: type[JsonBody]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads its JSON body with this module instead of FastAPI.

    service/app.py adds the schema of `model` to the OpenAPI document.
    """
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def read_json(
    model: type[Body], headers: Sequence[tuple[bytes, bytes]], receive: Receive, max_request_bytes: int
) -> Body:
    """Read and validate a request body as `model`. `max_request_bytes` is SEGUE_MAX_REQUEST_BYTES.

    Raises WrongMediaType, BodyTooLarge and RequestValidationError for invalid bodies, and ClientDisconnect if the
    client disconnects before the body is complete.
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
    """Parse and validate `body` as `model`, without type conversions. Repeated members of an object are errors.

    Raises RequestValidationError with at most MAX_LISTED_ERRORS errors.
    """
    if len(body) > _UNCOUNTED_BYTES and _values(body, model.max_values()) > model.max_values():
        raise _rejected(
            "too_many_values",
            f"{len(body):,} bytes of JSON",
            f"At most {model.max_values():,} JSON values: {model.remedy}",
        )
    try:
        content = model.model_validate_json(body, strict=True)
    except ValidationError as error:
        count = error.error_count()
        if count > MAX_COUNTED_ERRORS:
            raise _rejected(
                "too_many_errors",
                f"wrong in {count:,} places",
                f"A body as openapi.json describes it: {model.remedy}",
            ) from None
        found = error.errors(include_url=False)[:MAX_LISTED_ERRORS]
        errors = [{**one, "loc": ("body", *one["loc"])} for one in found]
        if found and found[0]["type"] == "json_invalid":
            errors[0]["input"] = body[:_LONGEST_INVALID].decode("utf-8", "replace")  # text, not a bytes repr
        raise RequestValidationError(errors) from error
    try:
        parse_json(body)  # pydantic uses the last one of repeated members
    except ValueError as error:
        raise _rejected("repeated_member", str(error), "Each member of an object once, and numbers of JSON") from None
    return content


def _check_headers(model: type[JsonBody], headers: Sequence[tuple[bytes, bytes]], max_bytes: int) -> None:
    """Raise WrongMediaType or BodyTooLarge if the headers of the body are not acceptable.

    This check also blocks cross-site requests. A browser sends a request of another site's page without a CORS
    preflight only if its Content-Type is not JSON or is missing
    (https://fetch.spec.whatwg.org/#cors-safelisted-request-header, 2026).
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
    """Return True if a Content-Type is JSON in UTF-8, the only charset for JSON (RFC 8259, 8.1, 2017)."""
    media_type, *parameters = (part.strip().lower() for part in kind.split(b";"))
    charsets = [
        value.strip(b'"') for name, _, value in (one.partition(b"=") for one in parameters) if name == b"charset"
    ]
    return media_type == _JSON and all(charset in (b"utf-8", b"utf8") for charset in charsets)


def _shown(value: bytes) -> str:
    return ascii(value[:_LONGEST_SHOWN].decode("latin-1"))


def _too_large(model: type[JsonBody], max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes:,} bytes: {model.remedy}")


def _rejected(kind: str, found: str, expected: str) -> RequestValidationError:
    summary: dict[str, Any] = {"type": kind, "loc": ("body",), "msg": expected, "found": found}
    return RequestValidationError([summary])


def _values(body: bytes | bytearray, most: int) -> int:
    """Estimate the number of values in a JSON text.

    A comma, `[` or `{` precedes each value, so these characters are counted, except within strings.
    If the text has clearly more than `most` values, the result may be imprecise, but it is larger than `most`. The
    estimate is much faster than parsing the text.
    """
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = bare.count(b'"')
    if quotes > 4 * most:  # two for each name and two for each text
        return quotes
    outside = b"".join(bare.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{")
