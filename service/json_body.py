"""The one way to read a JSON body: what its headers say, how large it may be, and what is in it.

Both ways to a route read bodies here (service/quick_path.py and service/dependencies.py), so that the same request
gets the same answer on each.
"""

from collections.abc import Sequence
from typing import ClassVar, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from segue.errors import SegueError
from service.problems import MOST_ERRORS

Body = TypeVar("Body", bound=BaseModel)

_JSON: Final = b"application/json"
_ABOUT_THE_BODY: Final = frozenset({b"content-type", b"content-length", b"content-encoding", b"content-range"})
_LONGEST_SHOWN: Final = 80


class BodyTooLarge(SegueError):
    """The request's body is larger than the service takes."""

    http_status: ClassVar[int] = 413
    title: ClassVar[str] = "Body too large"


class WrongMediaType(SegueError):
    """The request's body is not plain JSON in UTF-8, or does not say so."""

    http_status: ClassVar[int] = 415
    title: ClassVar[str] = "Unsupported media type"


async def read_json(
    model: type[Body], headers: Sequence[tuple[bytes, bytes]], receive: Receive, max_bytes: int
) -> Body:
    """The body as `model`, validated once. Numbers must be numbers and text must be text: nothing is converted.

    Raises WrongMediaType, BodyTooLarge for more than `max_bytes` bytes, RequestValidationError, and ClientDisconnect
    where the client has gone before the body was whole.
    """
    _check_headers(headers, max_bytes)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        more = message.get("more_body", False)
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)[:MOST_ERRORS]
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from error


def _check_headers(headers: Sequence[tuple[bytes, bytes]], max_bytes: int) -> None:
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
        raise _too_large(max_bytes)


def _is_json(kind: bytes) -> bool:
    """Whether a Content-Type is JSON in UTF-8, the only charset that JSON has (RFC 8259, 8.1, 2017)."""
    media_type, *parameters = (part.strip().lower() for part in kind.split(b";"))
    charsets = [
        value.strip(b'"') for name, _, value in (one.partition(b"=") for one in parameters) if name == b"charset"
    ]
    return media_type == _JSON and all(charset in (b"utf-8", b"utf8") for charset in charsets)


def _shown(value: bytes) -> str:
    return ascii(value[:_LONGEST_SHOWN].decode("latin-1"))


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes:,} bytes: send fewer events at a time")
